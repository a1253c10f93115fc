"""What a client sends of a conversation, compared with what is stored of it. Plain data; knows no protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# What a client's history says of a conversation:
# mirror: all of it. Turns that the client no longer has, or has in other words, are taken back.
# goes_on: one of the chats of a memory that is older than it. Only its own turns are taken back.
# append: nothing; the client sends only what is new.
Mode = Literal["mirror", "goes_on", "append"]

_SHORTEST_QUOTE = 12  # characters of what was said that tell a request about a conversation from one that continues it


@dataclass(frozen=True)
class Said:
    """A stored turn; texts are None where they were not kept. chat: the turn that its chat began with, if known."""

    number: int
    user: str | None
    assistant: str | None
    chat: int | None = None


@dataclass(frozen=True)
class History:
    """exchanges: (question, answer) each, oldest first. question: what is asked now. has_calls: of tools."""

    question: str
    exchanges: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    has_calls: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done before the question.

    undo: the number of the first turn to be taken back. show: turns to be visible, in place of what is. feed: exchanges
    that are not stored yet. chat: the turn that the client's chat began with; None: the one that comes next.
    """

    undo: int | None = None
    show: Sequence[int] | None = None
    feed: tuple[tuple[str, str], ...] = ()
    chat: int | None = None


def plan(history: History, stored: Sequence[Said], mode: Mode) -> Plan | None:
    """How `stored` becomes what the client has; None for a request beside the conversation, such as for its title."""
    if mode == "append" or not stored:
        return Plan(feed=history.exchanges)
    if mode == "mirror":
        return _mirrored(history, stored)
    if not history.exchanges:
        return None if _quotes(history.question, stored[-1]) else Plan()
    start, common = _overlap(history.exchanges, stored)
    rest = history.exchanges[common:]
    if not common:
        return Plan(feed=rest)
    kept, later = stored[start : start + common], stored[start + common :]
    chat = kept[0].chat or kept[0].number
    if not later:
        return Plan(feed=rest, chat=chat)
    own = [said for said in later if said.chat == chat]
    undo = own[0].number if own and later[-len(own) :] == own else None
    if own == later:
        return Plan(undo=undo, feed=rest, chat=chat)
    return Plan(undo=undo, show=[said.number for said in kept], feed=rest, chat=chat)


def _mirrored(history: History, stored: Sequence[Said]) -> Plan | None:
    first = stored[0]
    if not history.exchanges:  # asked anew from the start, or beside it
        return Plan(undo=first.number) if _same(first.user, history.question) else None
    start, common = _overlap(history.exchanges, stored)
    later = stored[start + common :]
    return Plan(undo=later[0].number if later else None, feed=history.exchanges[common:])


def _overlap(exchanges: Sequence[tuple[str, str]], stored: Sequence[Said]) -> tuple[int, int]:
    """Where in `stored` the client's history begins, and how many of its exchanges are there.

    A client may have left out the oldest turns. Of several places the one with most in common counts, of these the last.
    """
    best = (0, 0)
    for start in range(len(stored)):
        common = 0
        for (user, assistant), said in zip(exchanges, stored[start:], strict=False):
            if not (_same(said.user, user) and _same(said.assistant, assistant)):
                break
            common += 1
        if common and common >= best[1]:
            best = (start, common)
    return best


def _same(stored: str | None, sent: str) -> bool:
    return stored is None or stored.strip() == sent.strip()


def _quotes(question: str, said: Said) -> bool:
    """Whether a message repeats question and answer of a turn, as a request for a title does."""
    texts = [text.strip() for text in (said.user, said.assistant) if text and text.strip()]
    size = sum(map(len, texts))
    return len(texts) == 2 and size >= _SHORTEST_QUOTE and size < len(question) and all(t in question for t in texts)
