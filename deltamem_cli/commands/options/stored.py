"""Options of the commands on what is stored: whose, where, how it is shown; and `-o KEY VALUE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deltamem_cli.commands.options import completion
from deltamem_cli.errors import UsageError

ProfileOption = Annotated[
    str | None,
    typer.Option(
        "-p",
        "--profile",
        metavar="NAME",
        help="Profile.  [config: profile]",
        autocompletion=completion.profiles,
    ),
]
CidOption = Annotated[
    str | None,
    typer.Option(
        "--cid",
        metavar="ID",
        help="Conversation: its ID, or the start or end of it.  [default: last]",
        autocompletion=completion.conversations,
    ),
]
NewOption = Annotated[bool, typer.Option("--new", help="Start a new conversation.")]
ReadOnlyOption = Annotated[bool, typer.Option("--read-only", help="Read the memory without changing it.")]
NoLogOption = Annotated[bool, typer.Option("-n", "--no-log", help="Save the memory but not the text.")]
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
        autocompletion=completion.options,
    ),
]


def check_new(new: bool, cid: str | None) -> None:
    """Raises UsageError where --new and --cid are both given."""
    if new and cid is not None:
        raise UsageError("--new and --cid can't be used together; drop one of them")


class KeyValueCommand(TyperCommand):
    """A command whose `-o KEY VALUE` takes two words, as llm has it: Typer knows no repeated option of two values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Joins the two words behind every -o to KEY=VALUE, then parses as Click."""
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
