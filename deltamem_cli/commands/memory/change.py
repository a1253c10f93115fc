"""`dmem memory undo`, `reset` and `copy`: changing what is kept. Asks before it deletes; loads no model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.finding import open_store, pick_conversation, profile_name, read_store
from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.stored import (
    CidOption,
    DatabaseOption,
    DryRunOption,
    JsonOption,
    ProfileOption,
    YesOption,
)
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.session.wiping import wipe
from deltamem_cli.terminal.output import count, name_turns, note, print_json, size
from deltamem_cli.terminal.questions import confirm

if TYPE_CHECKING:
    from deltamem_cli.store.reset import Extent


def undo(
    turns_: Annotated[int, typer.Argument(metavar="[N]", help="Number of turns.", min=1)] = 1,
    profile: ProfileOption = None,
    cid: CidOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Undo the last N turns and delete their text.

    The memory is exactly what it was before them.

    \b
    Examples:
      dmem memory undo
      dmem memory undo 2 --dry-run
    """
    from deltamem_cli.store import locks, turns

    with (read_store if dry_run else open_store)(database) as store:
        conversation = pick_conversation(store, profile, cid)
        if not dry_run:
            locks.hold(store, conversation.id)  # what is shown below is what goes
        every = turns.all_of(store, conversation.id)
        if turns_ > len(every):
            raise DeltamemError(f"Can't undo {count(turns_, 'turn')}: conversation {conversation.id} has {len(every)}; "
                                "see: dmem memory history")  # fmt: skip
        gone = every[-turns_:]
        if not as_json:
            name_turns(gone)
        if not dry_run:
            confirm(f"Undo {count(turns_, 'turn')} of conversation {conversation.id}?", yes)
            turns.undo(store, conversation.id, turns_)
            wipe(store, note)
    numbers = [turn.number for turn in gone]
    if as_json:
        print_json({"conversation": conversation.id, "undone": numbers, "dry_run": dry_run})
    else:
        note(f"{'would undo' if dry_run else 'undid'} {count(len(numbers), 'turn')}")


def reset(
    profile: ProfileOption = None,
    cid: CidOption = None,
    transcript: Annotated[bool, typer.Option("--transcript", help="Delete the turns and their text too.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Reset every conversation of the profile.")] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Clear the memory for good.

    No byte of the old states is left in the database files.

    \b
    Examples:
      dmem memory reset --profile work --transcript
    """
    from deltamem_cli.store import conversations, locks, profiles
    from deltamem_cli.store.reset import extent
    from deltamem_cli.store.reset import reset as reset_store

    if all_ and cid is not None:
        raise UsageError("--all and --cid can't be used together; drop one of them")
    with (read_store if dry_run else open_store)(database) as store:
        if all_:
            chosen = conversations.all_of(store, profiles.get(store, profile_name(profile)))
            what = f"the memory of profile {profile_name(profile)} ({count(len(chosen), 'conversation')})"
        else:
            chosen = [pick_conversation(store, profile, cid)]
            what = f"the memory of conversation {chosen[0].id} (profile {chosen[0].profile})"
        if not dry_run:
            for one in chosen:
                locks.hold(store, one.id)  # what is shown below is what goes
        gone = extent(store, chosen, transcript=transcript)
        if not as_json:
            _say_extent(what, gone, transcript)
        if not dry_run:
            confirm("Clear it? This can't be undone.", yes)
            gone = reset_store(store, chosen, transcript=transcript)
            wipe(store, note)
    if as_json:
        ids = [conversation.id for conversation in chosen]
        print_json({"dry_run": dry_run, "transcript": transcript, "ids": ids, **asdict(gone)})
    elif not dry_run:
        note("cleared")


def scrub(database: DatabaseOption = None) -> None:
    """Wipe what deleted turns left in the database files.

    Undo, reset and forget do this themselves, as soon as no other program is reading the database.

    \b
    Examples:
      dmem memory scrub
    """
    from deltamem_cli.session.typed_lines import erase
    from deltamem_cli.store import wiping

    with open_store(database, wipe_marked=False) as store:
        wiping.wipe(store, erase)
    note("wiped")


def copy(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PROFILE|NEW",
            help="Target profile, or NEW for the same one.",
            autocompletion=completion.profiles_or_new,
        ),
    ],
    profile: ProfileOption = None,
    cid: CidOption = None,
    at: Annotated[
        int | None, typer.Option("--at", metavar="TURN", help="Branch after this turn.  [default: last]", min=1)
    ] = None,
    state_only: Annotated[bool, typer.Option("--state-only", help="Copy the memory without the turns.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Branch a conversation: copy it up to a turn.

    The copy and the original then go separate ways.

    \b
    Examples:
      dmem memory copy --to NEW --at 5
      dmem memory copy --to work
    """
    from deltamem_cli.store import bundle, profiles

    with (read_store if dry_run else open_store)(database) as store:
        source = pick_conversation(store, profile, cid)
        target_name = source.profile if to == profiles.NEW else profiles.check_name(to)
        taken = bundle.read(store, source, at=at)
        if state_only:
            taken = bundle.state_only(taken)
        bundle.check_holds(taken)  # before the profile is made
        made = bundle.write(store, profiles.ensure(store, target_name), taken) if not dry_run else None
    report: dict[str, Any] = {
        "from": source.id,
        "turns": len(taken.turns),
        "profile": target_name,
        "conversation": made.id if made else None,
        "dry_run": dry_run,
    }
    if as_json:
        print_json(report)
        return
    what = "the memory alone" if state_only else count(len(taken.turns), "turn")
    note(f"{'would copy' if dry_run else 'copied'} {what} of {source.id} to profile {target_name}")
    if made:
        typer.echo(made.id)


def _say_extent(what: str, gone: Extent, transcript: bool) -> None:
    note(f"{what}:")
    note(f"  {count(gone.states, 'state')} ({size(gone.state_bytes)})")
    if transcript:
        note(f"  {count(gone.turns, 'turn')} with {count(gone.messages, 'message')}")
    else:
        note("  the transcript stays (to delete it too: --transcript)")
    if gone.branches:
        note(f"  copies remain in {', '.join(gone.branches)}")
