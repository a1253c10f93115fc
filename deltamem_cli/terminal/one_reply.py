"""One question and its reply on the screen, in a chat and outside one; decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

from deltamem_cli.terminal.interrupts import keys_wait, stopping
from deltamem_cli.terminal.reply_view import progress_bar, reply_view
from deltamem_cli.terminal.thoughts import Thoughts

if TYPE_CHECKING:
    from deltamem_cli.server.same_user.client import WarmTurn
    from deltamem_cli.session.chat import ChatSession

Progress = Callable[[int, int], None]


class Turn(Protocol):
    """What is asked of a session, or of a turn that a server holds."""

    def stop(self) -> None:
        """Ends the reply soon."""


def show_reply(
    session: Turn,
    reply: Callable[[Progress], Generator[str, None, None]],
    *,
    stream: bool = True,
    show_thinking: bool | None = None,
) -> None:
    """Shows what `reply` yields; Ctrl-C stops it, and what was shown is kept. reply: session.ask or the like.

    Raises engine.Cancelled when it was stopped before the reply began.
    """
    with (
        stopping(session.stop),
        keys_wait(),
        progress_bar("reading") as progress,
        closing(reply(progress)) as pieces,
        closing(Thoughts(show_thinking, stream=stream)) as thoughts,
    ):
        first = _answer_begins(pieces, thoughts)
        if first is None:
            return
        with reply_view(stream=stream) as view:
            view.add(first)
            for piece in pieces:
                view.add(piece)


def _answer_begins(pieces: Iterable[str], thoughts: Thoughts) -> str | None:
    """Shows what is thought. Returns the answer's first piece."""
    from deltamem_cli.session.thinking import Thought

    for piece in pieces:
        if not isinstance(piece, Thought):
            thoughts.close()
            return piece
        thoughts.add(piece)
    return None


def remember(session: ChatSession, text: str) -> None:
    """Writes `text` into the memory, with a progress bar when it is long. Raises engine.Cancelled at Ctrl-C."""
    with stopping(session.stop), keys_wait(), progress_bar("remembering") as progress:
        session.remember(text, progress=progress)


def warn_of_loop(session: ChatSession | WarmTurn) -> str | None:
    """What to tell when the last reply was ended because it repeated itself."""
    if not session.stats.looped:
        return None
    return (
        "The reply kept repeating itself, so it was cut off here. To let replies run on: -o loop_guard 0, or in a chat: "
        "/set loop_guard 0"
    )


def warn_of_dropped(session: ChatSession | WarmTurn) -> str | None:
    """What to tell when turns have left the window since it was asked last."""
    if not session.take_dropped():
        return None
    kept = "; the memory keeps what they wrote" if session.writes else ""
    return (
        f"The context of {session.context_filled[1]:,} tokens is full: from now on, the oldest turns drop out{kept}. "
        "For a larger one: --ctx-size"
    )
