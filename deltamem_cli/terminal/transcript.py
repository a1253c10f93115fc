"""A conversation's transcript as a person reads it; prints nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltamem_cli.session.documents import told
from deltamem_cli.terminal.output import count, moment, printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltamem_cli.store.records import Conversation, Turn


def readable(one: Conversation, every: Sequence[Turn]) -> str:
    """A transcript for the terminal, without control characters."""
    lines = [f"{one.id}  {one.profile}  {count(one.n_turns, 'turn')}  {printable(one.heading)}", ""]
    for turn in every:
        kind = "" if turn.kind == "chat" else f"  {printable(turn.kind)}"
        lines.append(f"── turn {turn.number}  {moment(turn.created)}  {printable(turn.model.name)}{kind}")
        for message in told(turn):
            lines += [f"{printable(message.role)}:", printable_lines(message.text), ""]
        if turn.interrupted:
            lines += ["(interrupted)", ""]
    return "\n".join(lines) + "\n"


def markdown(one: Conversation, every: Sequence[Turn]) -> str:
    """A transcript as Markdown, for a file."""
    lines = [f"# {printable(one.heading) or one.id}", "", f"Profile {one.profile}, conversation {one.id}.", ""]
    for turn in every:
        lines += [f"## Turn {turn.number}, {moment(turn.created)}, {printable(turn.model.name)}", ""]
        for message in told(turn):
            lines += [f"**{printable(message.role)}**", "", printable_lines(message.text), ""]
        if turn.interrupted:
            lines += ["*(interrupted)*", ""]
    return "\n".join(lines)
