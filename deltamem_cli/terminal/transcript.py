"""A conversation's transcript as a person or a program reads it; prints nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltamem_cli.store.records import THINKING
from deltamem_cli.terminal.output import count, moment, printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltamem_cli.store.records import Conversation, Message, Turn


def facts(one: Conversation) -> dict[str, Any]:
    """A conversation without its turns, for JSON."""
    return {
        "conversation": one.id,
        "profile": one.profile,
        "title": one.heading,
        "created": one.created,
        "updated": one.updated,
        "turns": one.n_turns,
    }


def document(one: Conversation, every: Sequence[Turn]) -> dict[str, Any]:
    """A conversation with its turns, for JSON."""
    return {
        **facts(one),
        "turns": [
            {
                "turn": turn.number,
                "kind": turn.kind,
                "created": turn.created,
                "model": turn.model.name,
                "adapter": turn.adapter.name if turn.adapter else None,
                "interrupted": turn.interrupted,
                "messages": [{"role": message.role, "text": message.text} for message in _told(turn)],
            }
            for turn in every
        ],
    }


def readable(one: Conversation, every: Sequence[Turn]) -> str:
    """A transcript for the terminal, without control characters."""
    lines = [f"{one.id}  {one.profile}  {count(one.n_turns, 'turn')}  {printable(one.heading)}", ""]
    for turn in every:
        kind = "" if turn.kind == "chat" else f"  {printable(turn.kind)}"
        lines.append(f"── turn {turn.number}  {moment(turn.created)}  {printable(turn.model.name)}{kind}")
        for message in _told(turn):
            lines += [f"{printable(message.role)}:", printable_lines(message.text), ""]
        if turn.interrupted:
            lines += ["(interrupted)", ""]
    return "\n".join(lines) + "\n"


def markdown(one: Conversation, every: Sequence[Turn]) -> str:
    """A transcript as Markdown, for a file."""
    lines = [f"# {printable(one.heading) or one.id}", "", f"Profile {one.profile}, conversation {one.id}.", ""]
    for turn in every:
        lines += [f"## Turn {turn.number}, {moment(turn.created)}, {printable(turn.model.name)}", ""]
        for message in _told(turn):
            lines += [f"**{printable(message.role)}**", "", printable_lines(message.text), ""]
        if turn.interrupted:
            lines += ["*(interrupted)*", ""]
    return "\n".join(lines)


def _told(turn: Turn) -> list[Message]:
    """Its messages, without a thinking part that a template left empty."""
    return [message for message in turn.messages if message.text or message.role != THINKING]
