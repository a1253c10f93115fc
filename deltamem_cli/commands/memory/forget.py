"""`dmem memory forget`: takes turns out of a memory. Loads the model only when there is something to replay."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.finding import open_store, pick_conversation, read_store
from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    AdapterOption,
    ContextOption,
    Hardware,
    ModelOption,
    grouped,
)
from deltamem_cli.commands.options.stored import (
    CidOption,
    DatabaseOption,
    DryRunOption,
    JsonOption,
    ProfileOption,
    YesOption,
)
from deltamem_cli.errors import DeltamemError
from deltamem_cli.session.wiping import wipe
from deltamem_cli.terminal.output import count, name_turns, note, print_json
from deltamem_cli.terminal.questions import confirm
from deltamem_cli.terminal.turn_numbers import forget_report, parse_turns, ranges

if TYPE_CHECKING:
    from deltamem_cli.session.request import Request
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.records import Conversation


@grouped
def forget(
    turns_: Annotated[list[str], typer.Argument(metavar="TURN...", help="Turn numbers and ranges, such as 3 5-7.")],
    profile: ProfileOption = None,
    cid: CidOption = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Forget turns as if they had never been said.

    Deletes their text and replays the later turns without them; nothing changes until that is complete. For the numbers
    of turns: dmem memory history

    \b
    Examples:
      dmem memory forget 3 5-7 --profile work
    """
    from deltamem_cli.engine import Cancelled
    from deltamem_cli.session import documents, forgetting
    from deltamem_cli.session.request import Request
    from deltamem_cli.terminal.interrupts import stopping
    from deltamem_cli.terminal.reply_view import progress_bar

    numbers = parse_turns(turns_)
    with ExitStack() as stack:
        store = stack.enter_context((read_store if dry_run else open_store)(database))
        conversation = pick_conversation(store, profile, cid)
        if not dry_run:
            from deltamem_cli.store import locks

            locks.hold(store, conversation.id)  # what is shown below is what goes
        planned = forgetting.plan(store, conversation.id, numbers)
        loaded: dict[str, Any] = {"seat": None}
        if planned.later:  # before anything is promised: it is refused where the model is another one
            request = Request(cid=conversation.id, model=model, adapter=adapter, ctx_size=ctx_size, **asdict(hardware))
            loaded = _load(stack, store, conversation, request)
        if not as_json:
            name_turns(planned.turns)
            if planned.later:
                note(f"{count(len(planned.later), 'later turn')} will be replayed: {ranges(planned.later)}")
        if not dry_run:
            confirm(f"Forget {count(len(planned.turns), 'turn')} of conversation {conversation.id} for good?", yes)
        cancelled: list[bool] = []

        def stop() -> None:
            cancelled.append(True)
            if loaded["seat"]:
                loaded["seat"].cancel()

        try:
            with stopping(stop), progress_bar("replaying") as progress:
                result = forgetting.forget(
                    store,
                    conversation.id,
                    numbers=numbers,
                    progress=progress,
                    stopped=lambda: bool(cancelled),
                    dry_run=dry_run,
                    **loaded,
                )
        except Cancelled:
            note("Stopped; nothing was forgotten.")
            raise typer.Exit(130) from None
        if not dry_run:
            wipe(store, note)
    if as_json:
        print_json(documents.forgotten(conversation.id, result, dry_run=dry_run))
    else:
        forget_report(result, dry_run=dry_run)


def _load(stack: ExitStack, store: Store, conversation: Conversation, request: Request) -> dict[str, Any]:
    """Seat, model and adapter that wrote the conversation's memory. Raises DeltamemError when they are others."""
    from deltamem_cli.session.loading import load, restore
    from deltamem_cli.session.request import find_profile

    loaded = load(stack, _as_written(store, conversation, request), find_profile(store, request))
    if loaded.adapter is None:
        raise DeltamemError(f"The later turns can't be replayed: {loaded.why_no_memory}")
    restore(store, conversation, loaded)
    return {"seat": loaded.seat, "model": loaded.model, "adapter": loaded.adapter}


def _as_written(store: Store, conversation: Conversation, request: Request) -> Request:
    """What decides the numbers, where the user does not: in another context the turns would have seen something else."""
    from deltamem_cli.store import turns

    kinds = {"ctx_size": int, "cache_type_k": str, "cache_type_v": str, "flash_attention": str}
    every = turns.all_of(store, conversation.id, messages=False)
    for name, kind in kinds.items():
        known = [turn.settings[name] for turn in every if isinstance(turn.settings.get(name), kind)]
        if getattr(request, name) is None and known:
            request = replace(request, **{name: known[-1]})
    return request
