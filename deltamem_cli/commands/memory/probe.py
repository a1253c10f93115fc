"""`dmem memory probe`: asks a memory one question and keeps nothing of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_cli.commands.finding import pick_conversation, read_store
from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    AdapterOption,
    ContextOption,
    Hardware,
    ModelOption,
    TemplateOption,
    grouped,
    key_values,
)
from deltamem_cli.commands.options.stored import (
    CidOption,
    DatabaseOption,
    JsonOption,
    OptionOption,
    ProfileOption,
)
from deltamem_cli.errors import DeltamemError
from deltamem_cli.terminal.output import print_json

if TYPE_CHECKING:
    from deltamem_cli.session.chat import ChatSession
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.records import Conversation


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
    from deltamem_cli.engine import Cancelled
    from deltamem_cli.session.opening import open_chat
    from deltamem_cli.session.request import Request
    from deltamem_cli.session.thinking import parted
    from deltamem_cli.terminal import one_reply

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
                one_reply.show_reply(session, lambda progress: session.ask(question, progress=progress))
                _check_whole(session)
                return
            with one_reply.stopping(session.stop):
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
