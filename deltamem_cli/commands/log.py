"""`dmem log`: the transcripts, listed, shown, searched and written out, and the database saved and restored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deltamem_cli.commands.finding import pick_conversation, profile_name, read_store
from deltamem_cli.commands.options.stored import CidOption, DatabaseOption, ForceOption, JsonOption, ProfileOption
from deltamem_cli.commands.output_file import refuse_existing, write_file
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.terminal import transcript
from deltamem_cli.terminal.output import as_json, count, moment, note, print_document, print_json, printable
from deltamem_cli.text import short, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltamem_cli.store.database import Store
    from deltamem_cli.store.records import Profile, Turn

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

AllOption = Annotated[bool, typer.Option("--all", help="Include every profile.")]
LimitOption = Annotated[int, typer.Option("-l", "--limit", metavar="N", help="Maximum number of results.", min=1)]


@app.callback()
def log() -> None:
    """List, show, search and export transcripts.

    \b
    Examples:
      dmem log list --all
      dmem log search lisbon
      dmem log show | less
    """


@app.command("list")
def list_(
    profile: ProfileOption = None,
    all_: AllOption = False,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """List the conversations, latest first.

    \b
    Examples:
      dmem log list --all
      dmem log list --profile work --json
    """
    from deltamem_cli.session import documents
    from deltamem_cli.store import conversations

    with read_store(database) as store:
        found = conversations.all_of(store, _scope(store, profile, all_))
    if as_json:
        print_json([documents.facts(one) for one in found[:limit]])
        return
    if not found:
        note("No conversations yet; start one with: dmem chat")
    widest = max((len(one.profile) for one in found[:limit]), default=0)
    for one in found[:limit]:
        owner = f"{one.profile:<{widest}}  " if all_ else ""
        typer.echo(f"{one.id}  {moment(one.updated)}  {owner}{count(one.n_turns, 'turn'):>9}  {printable(one.heading)}")
    if len(found) > limit:
        note(f"{len(found) - limit} more; see them with --limit {len(found)}")


@app.command()
def show(
    profile: ProfileOption = None,
    cid: CidOption = None,
    turn: Annotated[int | None, typer.Option("--turn", metavar="N", help="Show only this turn.", min=1)] = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Show the transcript of a conversation.

    \b
    Examples:
      dmem log show --profile work
      dmem log show --turn 3
    """
    from deltamem_cli.session import documents
    from deltamem_cli.store import turns

    with read_store(database) as store, store.reading():
        conversation = pick_conversation(store, profile, cid)
        if turn is None:
            every: Sequence[Turn] = turns.all_of(store, conversation.id)
        else:
            every = [turns.get(store, conversation.id, turn)]
    if as_json:
        print_json(documents.transcript(conversation, every))
    else:
        typer.echo(transcript.readable(conversation, every), nl=False)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help='Words to find, all of them; quote "a phrase".')],
    profile: ProfileOption = None,
    all_: AllOption = False,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Search a profile's transcripts, or all of them with --all.

    Words match whole, whatever their case and accents. In text without spaces between words, such as Chinese or Thai,
    and for emoji, any part matches.

    \b
    Examples:
      dmem log search train vienna
      dmem log search --all '"my sister"'
    """
    from deltamem_cli.store.excerpt import MATCH_BEGIN, MATCH_END
    from deltamem_cli.store.search import search as search_store

    text = whole(" ".join(words))
    if not text.strip():
        raise UsageError("There is nothing to search for: give a word, such as: dmem log search lisbon")
    with read_store(database) as store:
        hits = search_store(store, text, _scope(store, profile, all_), limit)
    if as_json:
        plain = str.maketrans("", "", MATCH_BEGIN + MATCH_END)
        print_json([{**vars(hit), "excerpt": hit.excerpt.translate(plain)} for hit in hits])
        return
    if not hits:
        note(f"Nothing found for {short(text)}" + ("" if all_ else "; search every profile with --all"))
    for hit in hits:
        owner = f"{hit.profile}  " if all_ else ""
        typer.secho(
            f"{hit.conversation}  turn {hit.turn}  {owner}{moment(hit.created)}  {printable(hit.role)}", dim=True
        )
        # Split before control characters are taken out: the marks are control characters.
        for index, part in enumerate(hit.excerpt.replace(MATCH_END, MATCH_BEGIN).split(MATCH_BEGIN)):
            typer.secho(printable(part), nl=False, bold=index % 2 == 1)
        typer.echo("\n")


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="File to write.  [default: stdout]")] = None,
    profile: ProfileOption = None,
    cid: CidOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Export every conversation of the profile.")] = False,
    format_: Annotated[Literal["md", "json"], typer.Option("--format", help="Markdown or JSON.")] = "md",
    force: ForceOption = False,
    database: DatabaseOption = None,
) -> None:
    """Write transcripts as Markdown or JSON.

    \b
    Examples:
      dmem log export work.md --profile work --all
      dmem log export --format json | jq '.[].turns'
    """
    from deltamem_cli.session import documents
    from deltamem_cli.store import conversations, profiles, turns

    if all_ and cid is not None:
        raise UsageError("--all and --cid can't be used together; drop one of them")
    if file:
        refuse_existing(file, force)
    with read_store(database) as store, store.reading():
        if all_:
            chosen = conversations.all_of(store, profiles.get(store, profile_name(profile)))
        else:
            chosen = [pick_conversation(store, profile, cid)]
        talks = [(one, turns.all_of(store, one.id)) for one in chosen]
    if format_ == "json":
        text = as_json([documents.transcript(*talk) for talk in talks], "utf-8" if file else sys.stdout.encoding) + "\n"
    else:
        text = "\n".join(transcript.markdown(*talk) for talk in talks)
    if file is None:
        print_document(text.removesuffix("\n"))
        return
    write_file(file, text.encode("utf-8"))
    note(f"wrote {file}: {count(len(talks), 'conversation')}")


@app.command()
def path(database: DatabaseOption = None) -> None:
    """Print the path of the database.

    While dmem is running, the newest turns are in a file beside it; to copy everything, use dmem log backup.

    \b
    Examples:
      dmem log path
      ls -l "$(dmem log path)"
    """
    from deltamem_cli.store.location import default_path

    typer.echo(str(database or default_path()))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")],
    force: ForceOption = False,
    database: DatabaseOption = None,
) -> None:
    """Back up the database, even while a chat is open.

    Read the copy with --database, or put it back with dmem log restore.

    \b
    Examples:
      dmem log backup backup.db
      dmem log list --database backup.db
      dmem log restore backup.db
    """
    refuse_existing(file, force)
    with read_store(database) as store:
        if store.path is None:
            raise DeltamemError("There is no database yet, so there is nothing to back up")
        if Path(f"{file}-wal").exists() or (file.exists() and file.samefile(store.path)):
            raise DeltamemError(f"{file} is a database in use; give another name")
        store.copy_to(file)
        turns = store.counts()["turns"]
    note(f"wrote {file}: {count(turns, 'turn')}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Backup written by `dmem log backup`.")],
    database: DatabaseOption = None,
) -> None:
    """Replace the database with a backup.

    The old database is kept beside it under another name.

    \b
    Examples:
      dmem log restore backup.db
    """
    from deltamem_cli.store.location import default_path
    from deltamem_cli.store.restoring import restore as restore_store

    path = database or default_path()
    old = restore_store(file, path)
    with read_store(path) as store:
        turns = store.counts()["turns"]
    note(f"restored {path}: {count(turns, 'turn')}" + (f"; the old one is kept as {old}" if old else ""))


def _scope(store: Store, profile: str | None, all_: bool) -> Profile | None:
    """The profile to look in, None for all. The default profile need not exist: then there is nothing in it."""
    from deltamem_cli.store import profiles
    from deltamem_cli.store.records import Profile

    if all_:
        return None
    name = profile_name(profile)
    if name == profiles.DEFAULT:
        return profiles.find(store, name) or Profile(id=0, name=name)
    return profiles.get(store, name)
