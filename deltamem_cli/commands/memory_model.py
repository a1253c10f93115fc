"""`dmem memory probe`, `remember` and `forget`: what needs the model. Loads it only when there is something to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.model_options import (
    DEFAULT_HARDWARE,
    AdapterOption,
    ContextOption,
    Hardware,
    ModelOption,
    TemplateOption,
    grouped,
    key_values,
)
from deltamem_cli.commands.shared import (
    CidOption,
    DatabaseOption,
    DryRunOption,
    JsonOption,
    OptionOption,
    ProfileOption,
    YesOption,
    confirm,
    count,
    name_turns,
    note,
    open_store,
    pick_conversation,
    print_json,
    profile_name,
    read_store,
)
from deltamem_cli.commands.wiping import wipe
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.text import decoded, whole

if TYPE_CHECKING:
    from deltamem_cli.session.chat import ChatSession
    from deltamem_cli.session.forgetting import Forgotten
    from deltamem_cli.session.opening import Request
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.records import Conversation

_LONGEST_RANGE = 100_000


@grouped
def probe(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask the memory.")],
    profile: ProfileOption = None,
    cid: CidOption = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    option: OptionOption = None,
    template: TemplateOption = None,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Ask the memory alone, and store nothing.

    The model sees no earlier message.

    \b
    Examples:
      dmem memory probe "What is my name?" --profile work
    """
    from deltamem_cli.commands import chat_turn
    from deltamem_cli.engine import Cancelled
    from deltamem_cli.session.opening import Request, open_chat
    from deltamem_cli.session.thinking import parted

    with ExitStack() as stack:
        store = stack.enter_context(read_store(database))
        conversation = pick_conversation(store, profile, cid)
        _check_has_memory(store, conversation)
        request = Request(
            cid=conversation.id,
            model=model,
            adapter=adapter,
            read_only=True,
            options=key_values(option),
            replay_tokens=0,
            template=template,
            ctx_size=ctx_size,
            **asdict(hardware),
        )
        session, loaded = open_chat(stack, store, request)
        if loaded.why_no_memory or loaded.adapter is None:
            raise DeltamemError(f"The memory can't answer: {loaded.why_no_memory}")
        try:
            if not as_json:
                chat_turn.show_reply(session, lambda progress: session.ask(question, progress=progress))
                _check_whole(session)
                return
            with chat_turn.stopping(session.stop):
                _, reply = parted(session.ask(question))
        except Cancelled:
            raise typer.Exit(130) from None
    print_json(
        {
            "profile": conversation.profile,
            "conversation": conversation.id,
            "turns": conversation.n_turns,
            "model": loaded.model.name,
            "adapter": loaded.adapter.name,
            "question": question,
            "reply": reply,
        }
    )
    _check_whole(session)


@grouped
def remember(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to remember.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Remember a file's text.")] = None,
    profile: ProfileOption = None,
    cid: CidOption = None,
    new: Annotated[bool, typer.Option("--new", help="Start a new conversation.")] = False,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    no_log: Annotated[bool, typer.Option("-n", "--no-log", help="Save the memory but not the text.")] = False,
    template: TemplateOption = None,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Write text into the memory.

    Without TEXT and FILE, reads standard input.

    \b
    Examples:
      dmem memory remember "My sister is called Ana." --profile work
      dmem memory remember -f notes.txt
    """
    from deltamem_cli.commands import chat_turn, once
    from deltamem_cli.engine import Cancelled
    from deltamem_cli.session.opening import Request, open_chat

    if new and cid is not None:
        raise UsageError("--new and --cid can't be used together; drop one of them")
    wanted = _text(text, file)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(database, create=True))
        request = Request(
            profile=profile_name(profile),
            cid=cid,
            new=new,
            model=model,
            adapter=adapter,
            log=not no_log,
            brief=True,
            replay_tokens=0,
            template=template,
            ctx_size=ctx_size,
            **asdict(hardware),
        )
        session, loaded = open_chat(stack, store, request, waiting=once.tell_of_waiting)
        if not session.writes:
            raise DeltamemError(f"Nothing can be remembered: {loaded.why_no_memory}")
        try:
            chat_turn.remember(session, wanted)
        except Cancelled:
            note("Stopped; the memory is unchanged.")
            raise typer.Exit(130) from None
        number, stats = session.n_turns, session.stats
    if as_json:
        print_json(
            {
                "profile": session.profile.name,
                "conversation": session.conversation.id,
                "turn": number,
                "tokens_written": stats.written_tokens,
                "change": stats.changed,
            }
        )
    else:
        note(
            f"remembered as turn {number} of conversation {session.conversation.id}: "
            f"{count(stats.written_tokens, 'token')} written, the memory changed by {stats.changed:.4g}"
        )


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
    from deltamem_cli.commands.chat_render import progress_bar
    from deltamem_cli.commands.interrupts import stopping
    from deltamem_cli.engine import Cancelled
    from deltamem_cli.session import forgetting
    from deltamem_cli.session.opening import Request

    numbers = parse_turns(turns_)
    with ExitStack() as stack:
        store = stack.enter_context((read_store if dry_run else open_store)(database))
        conversation = pick_conversation(store, profile, cid)
        if not dry_run:
            from deltamem_cli.store import locks

            locks.hold(store, conversation.id)  # what is shown below is what goes
        planned = forgetting.plan(store, conversation.id, numbers)
        if not as_json:
            name_turns(planned.turns)
            if planned.later:
                note(f"{count(len(planned.later), 'later turn')} will be replayed: {ranges(planned.later)}")
        if not dry_run:
            confirm(f"Forget {count(len(planned.turns), 'turn')} of conversation {conversation.id} for good?", yes)
        cancelled: list[bool] = []
        engine: dict[str, Any] = {"engine": None}
        if planned.later:
            request = Request(cid=conversation.id, model=model, adapter=adapter, ctx_size=ctx_size, **asdict(hardware))
            engine = _load(stack, store, conversation, request)

        def stop() -> None:
            cancelled.append(True)
            if engine["engine"]:
                engine["engine"].cancel()

        try:
            with stopping(stop), progress_bar("replaying") as progress:
                result = forgetting.forget(
                    store,
                    conversation.id,
                    numbers=numbers,
                    progress=progress,
                    stopped=lambda: bool(cancelled),
                    dry_run=dry_run,
                    **engine,
                )
        except Cancelled:
            note("Stopped; nothing was forgotten.")
            raise typer.Exit(130) from None
        if not dry_run:
            wipe(store, note)
    if as_json:
        print_json(
            {
                "conversation": conversation.id,
                "dry_run": dry_run,
                "forgotten": list(result.turns),
                "replayed": list(result.later),
                "norm_before": result.norm_before,
                "norm_after": result.norm_after,
            }
        )
    else:
        forget_report(result, dry_run=dry_run)


def forget_report(result: Forgotten, *, dry_run: bool = False) -> None:
    """What forgetting did, or would do, to the memory."""
    note(f"{'would forget' if dry_run else 'forgot'} {count(len(result.turns), 'turn')} ({ranges(result.turns)})")
    if result.later:
        note(f"{'would replay' if dry_run else 'replayed'} {count(len(result.later), 'later turn')}")
    note(f"norm of the memory: {result.norm_before:.4g} before, {result.norm_after:.4g} after")


def parse_turns(words: Sequence[str]) -> list[int]:
    """Turn numbers of words like 3, 5-7 and 3,5-7. Raises UsageError."""
    numbers: set[int] = set()
    for word in ",".join(words).split(","):
        if not word:
            continue
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < first + _LONGEST_RANGE:
            raise UsageError(f"{word} is not a turn: give numbers and ranges, such as 3 5-7")
        numbers.update(range(first, last + 1))
    if not numbers:
        raise UsageError("No turn was given: give numbers and ranges, such as 3 5-7")
    return sorted(numbers)


def ranges(numbers: Sequence[int]) -> str:
    """1, 3-5"""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _load(stack: ExitStack, store: Store, conversation: Conversation, request: Request) -> dict[str, Any]:
    """Engine, model and adapter that wrote the conversation's memory. Raises DeltamemError when they are others."""
    from deltamem_cli.session.opening import find_profile, load, restore

    loaded = load(stack, _as_written(store, conversation, request), find_profile(store, request))
    if loaded.adapter is None:
        raise DeltamemError(f"The later turns can't be replayed: {loaded.why_no_memory}")
    restore(store, conversation, loaded)
    return {"engine": loaded.engine, "model": loaded.model, "adapter": loaded.adapter}


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


def _check_whole(session: ChatSession) -> None:
    """Raises typer.Exit with 130 for a reply that was interrupted."""
    if session.stats.interrupted:
        raise typer.Exit(130)


def _check_has_memory(store: Store, conversation: Conversation) -> None:
    from deltamem_cli.store import states

    if states.latest(store, conversation.id) is None:
        raise DeltamemError(
            f"The memory of conversation {conversation.id} is empty, so there is nothing to ask: "
            "write something with: dmem chat"
        )


def _text(text: str | None, file: Path | None) -> str:
    """What is to be remembered: the argument, a file, or standard input."""
    from deltamem_cli.commands import once
    from deltamem_cli.commands.chat_do import file_text

    if text is not None and file is not None:
        raise UsageError("TEXT and --file can't be used together; drop one of them")
    if file is not None and str(file) != "-":
        return file_text(file)
    if text is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError('There is nothing to remember: give a text, such as: dmem memory remember "I like tea."')
        text = decoded(once.standard_input())
    if not text.strip():
        raise UsageError("The text is empty, so there is nothing to remember: give some text.")
    return whole(text).strip()
