"""One question from the command line and its reply: what `dmem ask` and `dmem chat QUESTION` have in common."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deltamem_cli import reading
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.terminal.output import note, print_json, printable
from deltamem_cli.text import decoded, whole

if TYPE_CHECKING:
    from deltamem_cli.server.same_user.client import WarmTurn
    from deltamem_cli.session.chat import ChatSession
    from deltamem_cli.session.loading import Loaded
    from deltamem_cli.session.request import Request
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.errors import Holder


def question(words: list[str] | None, *, example: str) -> str | None:
    """What is asked: standard input that is no terminal, and the words behind it. None: neither is there.

    Raises UsageError, with `example`, for a pipe or words that say nothing.
    """
    parts = []
    if sys.stdin is not None and not sys.stdin.isatty():
        parts.append(decoded(standard_input()).strip())
    parts.append(whole(" ".join(words or [])).strip())
    text = "\n\n".join(part for part in parts if part)
    if text:
        return text
    if len(parts) > 1 or words:
        raise no_question(example)
    return None


def standard_input() -> bytes:
    """To its end. Raises DeltamemError."""
    try:
        return reading.whole_stream(sys.stdin.buffer, "standard input")
    except OSError as error:
        raise DeltamemError(
            f"Standard input can't be read ({error.strerror or error}): give it from elsewhere, or none with </dev/null"
        ) from None


def no_question(example: str) -> UsageError:
    """The error for a command line that asks nothing; `example` shows one that does."""
    return UsageError(f"There is no question; ask one, such as: {example}")


def answer(
    stack: ExitStack, store: Store, request: Request, text: str, *, stream: bool = True, as_json: bool = False
) -> None:
    """Asks, shows the reply, or with as_json prints it with its numbers, and commits what `request` lets it.

    Raises typer.Exit with 130 when it was interrupted.
    """
    from deltamem_cli.engine import Cancelled
    from deltamem_cli.session.opening import open_chat
    from deltamem_cli.terminal import one_reply

    start = time.perf_counter()
    session, loaded = open_chat(stack, store, request, waiting=tell_of_waiting)
    seconds = time.perf_counter() - start
    if loaded.why_no_memory and request.memory:
        note(f"Memory is off: {loaded.why_no_memory}")
    if loaded.why_no_gpu:
        note(loaded.why_no_gpu)
    if session.prompt.why_no_system:
        note(printable(session.prompt.why_no_system))
    try:
        if as_json:
            print_json(_document(session, loaded, request, text, seconds))
        else:
            one_reply.show_reply(
                session,
                lambda progress: session.ask(text, progress=progress),
                stream=stream,
                show_thinking=request.show_thinking,
            )
    except Cancelled:
        raise typer.Exit(130) from None
    _warn(session)


def answer_from_server(
    database: Path | None, request: Mapping[str, Any], text: str, *, stream: bool, as_json: bool
) -> bool:
    """As answer(), by a server that has the model loaded; False, with nothing done, when none runs that would do the same.

    request: the fields of a Request that are not as by default.
    """
    from deltamem_cli.server.same_user import client
    from deltamem_cli.store.location import default_path

    turn = client.ask(database or default_path(), text, request)
    if turn is None:
        return False
    from deltamem_cli.terminal import one_reply

    if as_json:
        from deltamem_cli.terminal.interrupts import stopping

        with stopping(turn.stop):
            for _ in turn.pieces():
                pass
        print_json(dict(turn.document))
    else:
        show = request.get("show_thinking")
        one_reply.show_reply(turn, lambda progress: turn.pieces(), stream=stream, show_thinking=show)
    _warn(turn)
    return True


def _warn(turn: ChatSession | WarmTurn) -> None:
    """What there is to say of a turn that is over. Raises typer.Exit with 130 when it was interrupted."""
    from deltamem_cli.terminal import one_reply

    for warning in (one_reply.warn_of_loop(turn), one_reply.warn_of_dropped(turn)):
        if warning:
            note(warning)
    if turn.stats.interrupted:
        raise typer.Exit(130)


def _document(session: ChatSession, loaded: Loaded, request: Request, text: str, seconds: float) -> dict[str, Any]:
    from deltamem_cli.session import documents
    from deltamem_cli.session.thinking import parted
    from deltamem_cli.terminal.interrupts import stopping

    with stopping(session.stop):
        thought, answered = parted(session.ask(text))
    return documents.asked(
        session, loaded, thought=thought, answered=answered, temporary=request.temporary, load_seconds=seconds
    )


def tell_of_waiting(holder: Holder) -> None:
    """Say who holds the memory that is waited for."""
    note(f"Waiting for another question to the same memory ({holder}); press Ctrl-C to give up.")
