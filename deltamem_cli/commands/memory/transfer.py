"""`dmem memory export` and `import`: a conversation's memory as one file to carry away. Loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_cli.commands.finding import open_store, pick_conversation, profile_name, read_store
from deltamem_cli.commands.options.stored import (
    CidOption,
    DatabaseOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    ProfileOption,
)
from deltamem_cli.commands.output_file import refuse_existing
from deltamem_cli.terminal.output import count, note, print_json, printable

if TYPE_CHECKING:
    from deltamem_cli.store.bundle import Bundle


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, such as work.dmem.")],
    profile: ProfileOption = None,
    cid: CidOption = None,
    transcript: Annotated[bool, typer.Option("--transcript", help="Include the text.")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Export a conversation's memory to a file.

    The file holds the memory after every turn, with the fingerprints of the model and adapter.

    \b
    Examples:
      dmem memory export work.dmem --transcript
    """
    from deltamem_cli.session import documents
    from deltamem_cli.store import bundle, portable

    refuse_existing(file, force)
    with read_store(database) as store:
        conversation = pick_conversation(store, profile, cid)
        taken = bundle.read(store, conversation, transcript=transcript)
    bundle.check_holds(taken)  # what could not be imported again
    portable.save(file, taken)
    if as_json:
        print_json({"file": str(file), "size": file.stat().st_size, **documents.contents(taken)})
    else:
        note(f"wrote {file}: {_summary(taken)}")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File written by `dmem memory export`.")],
    profile: ProfileOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Import a memory from a file as a new conversation.

    The whole file is checked first.

    \b
    Examples:
      dmem memory import work.dmem --profile work
    """
    from deltamem_cli.session import documents
    from deltamem_cli.store import bundle, portable, profiles

    taken = portable.load(file)
    name = profiles.check_name(profile_name(profile))
    made = None
    if not dry_run:
        with open_store(database, create=True) as store:
            made = bundle.write(store, profiles.ensure(store, name), taken)
    if as_json:
        print_json(
            {
                "conversation": made.id if made else None,
                "profile": name,
                "dry_run": dry_run,
                **documents.contents(taken),
            }
        )
        return
    note(f"{'would import' if dry_run else 'imported'} {_summary(taken)} into profile {name}")
    if made:
        typer.echo(made.id)


def _summary(taken: Bundle) -> str:
    from deltamem_cli.session import documents

    contents = documents.contents(taken)
    owners = "; ".join(printable(f"{one['model']} with {one['adapter']}") for one in contents["written_by"])
    texts = count(contents["messages"], "message") if contents["messages"] else "no text"
    return f"{count(contents['turns'], 'turn')}, {count(contents['states'], 'state')}, {texts}" + (
        f", written by {owners}" if owners else ""
    )
