"""Lines and documents for a terminal, a file or a pipe: what is printed never steers the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import typer

from deltamem_cli.text import STEERING, count, harmless, harmless_lines  # noqa: F401 (count is for those who print)

if TYPE_CHECKING:
    from deltamem_cli.store.records import Turn


def print_json(document: Any) -> None:
    """Prints one JSON document to stdout."""
    print_document(as_json(document, sys.stdout.encoding))


def as_json(document: Any, encoding: str) -> str:
    """What the encoding lacks is escaped, and what would steer a terminal: stored texts may hold any character."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2)
    return "\n".join(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))


def print_document(text: str) -> None:
    """A text that is to be kept as it is, on stdout: in UTF-8 where the stream's own encoding lacks a part of it."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
    typer.echo(text)


def note(text: str) -> None:
    """A line for the person, not for the pipe. What a file or a model put into it can't steer the terminal."""
    typer.echo(printable_lines(text), err=True)


def name_turns(turns: Sequence[Turn]) -> None:
    """What turns that are to be deleted say, a line each."""
    for turn in turns:
        note(f"turn {turn.number}: {beginning(opening_words(turn), 70)}")


def opening_words(turn: Turn) -> str:
    """The first message of a turn, or its kind when the text was not kept."""
    return turn.messages[0].text if turn.messages else f"({turn.kind})"


def beginning(text: str, longest: int) -> str:
    """As much of a text as a line has room for."""
    line = printable(text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def size(number: int) -> str:
    """Bytes in GB, MB or kB, as powers of ten."""
    unit, name = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if number >= pair[0]), (1e3, "kB"))
    return f"{number / unit:.1f} {name}"


def moment(stored: str) -> str:
    """A stored time as the user's clock shows it."""
    from datetime import datetime

    try:
        when = datetime.fromisoformat(stored.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):  # no time, or one that no clock of this zone shows
        return printable(stored)
    return when.strftime("%Y-%m-%d %H:%M")


def printable(text: object) -> str:
    """Stored text on one line; control characters (imported files may hold any) do not reach the terminal."""
    return harmless(str(text))


def printable_lines(text: str) -> str:
    """The same for a text of many lines, whose tabs stay."""
    return harmless_lines("\n".join(text.splitlines()))
