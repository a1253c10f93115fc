"""What the commands on stored memories have in common: their options, and finding what is meant. Prints questions only.

Nothing heavy at import: the store is opened by the functions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from deltamem_cli.commands import completing
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.text import STEERING, harmless, harmless_lines

if TYPE_CHECKING:
    from deltamem_cli.memory_view.picture import Picture
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.records import Conversation, Turn

ProfileOption = Annotated[
    str | None,
    typer.Option(
        "-p",
        "--profile",
        metavar="NAME",
        help="Profile.  [config: profile]",
        autocompletion=completing.profiles,
    ),
]
CidOption = Annotated[
    str | None,
    typer.Option(
        "--cid",
        metavar="ID",
        help="Conversation: its ID, or the start or end of it.  [default: last]",
        autocompletion=completing.conversations,
    ),
]
DatabaseOption = Annotated[
    Path | None, typer.Option("-d", "--database", metavar="FILE", help="Database file.  [config: database]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Don't ask for confirmation.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would happen, without changing anything.")]
ForceOption = Annotated[bool, typer.Option("-f", "--force", help="Replace FILE if it exists.")]

# With cls=KeyValueCommand on the command; every entry arrives as KEY=VALUE.
OptionOption = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--option",
        metavar="KEY VALUE",
        help="Sampling option, such as: -o temperature 0.7",
        autocompletion=completing.options,
    ),
]


class KeyValueCommand(TyperCommand):
    """A command whose `-o KEY VALUE` takes two words, as llm has it: Typer knows no repeated option of two values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        rest = iter(args)
        for arg in rest:
            joined.append(arg)
            if arg == "--":
                break
            if arg in ("-o", "--option"):
                key, value = next(rest, None), None
                if key is not None and "=" not in key:
                    value = next(rest, None)
                joined += [word for word in [key if value is None else f"{key}={value}"] if word is not None]
        return super().parse_args(ctx, [*joined, *rest])


def open_store(database: Path | None, *, create: bool = False, wipe_marked: bool = True) -> Store:
    """The database, to change it; where there is none yet it reads as an empty one and is made only with `create`.

    wipe_marked: first goes what an earlier command deleted and could not wipe.
    """
    from deltamem_cli.commands import wiping
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.location import default_path

    store = Store.open(database or default_path(), create=create)
    if wipe_marked:
        wiping.wipe(store, note, patience=wiping.BEFOREHAND)
    return store


def read_store(database: Path | None) -> Store:
    """The database, to read alone: nothing is written, so it may lie where nothing can be."""
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.location import default_path

    return Store.read(database or default_path())


def profile_name(profile: str | None) -> str:
    """What the flag says, else the configuration."""
    from deltamem_cli import config

    return profile or str(config.value("profile"))


def pick_conversation(store: Store, profile: str | None, cid: str | None) -> Conversation:
    """The conversation that --cid names, else the last one of the profile."""
    from deltamem_cli.store import conversations, profiles
    from deltamem_cli.store.errors import NotFound

    if cid is not None:
        return conversations.get(store, cid)
    name = profile_name(profile)
    if name == profiles.DEFAULT and profiles.find(store, name) is None:
        raise NotFound("There are no conversations yet; start one with: dmem chat")
    found = conversations.latest(store, profiles.get(store, name))
    if found is None:
        raise NotFound(f"Profile {name} has no conversation yet; start one with: dmem chat --profile {name}")
    return found


def confirm(question: str, yes: bool) -> None:
    """Go on only with --yes or a yes at the terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("This deletes, and there is no terminal to confirm it; add --yes, or try --dry-run first")
    from deltamem_cli.commands.interrupts import lines_gathered

    with lines_gathered():
        typer.confirm(question, abort=True, err=True)


def refuse_existing(file: Path, force: bool) -> None:
    if os.path.isdir(file):
        raise UsageError(f"{file} is a folder; give a file name")
    if os.path.isfile(file) and not force:  # a pipe or a device is written into
        raise UsageError(f"{file} already exists; replace it with --force or give another name")


def check_picture(file: Path) -> None:
    """Raises UsageError for a name that says neither SVG nor PNG."""
    if file.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"{file} is neither .svg nor .png; give --image a name that ends in one of them")


def write_picture(file: Path, picture: Picture) -> None:
    """Write an .svg or .png file, and say so."""
    check_picture(file)
    if file.suffix.lower() == ".svg":
        from deltamem_cli.memory_view.svg import svg

        data = svg(picture)
    else:
        from deltamem_cli.memory_view.png import png

        data = png(picture)
    write_file(file, data)
    note(f"wrote {file}")


def write_file(file: Path, data: bytes) -> None:
    """What is kept in a file of the user's, for its owner alone: whole, or the old one stays. Raises DeltamemError."""
    from deltamem_cli import files

    try:
        files.write(file, data)
    except FileNotFoundError as error:
        raise DeltamemError(
            f"{file} could not be written because its folder does not exist: check the path."
        ) from error
    except OSError as error:
        kept = "; the old one is intact" if os.path.exists(file) else ""
        raise DeltamemError(
            f"{file} could not be written ({error.strerror or error}){kept}: make room, or choose another place."
        ) from error


def print_json(document: Any) -> None:
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
        note(f"turn {turn.number}: {printable(opening_words(turn)[:70])}")


def opening_words(turn: Turn) -> str:
    return turn.messages[0].text if turn.messages else f"({turn.kind})"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(number: int) -> str:
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
