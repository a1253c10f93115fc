"""Opens the database that is meant and finds the conversation in it. Nothing heavy at import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_cli.terminal.output import note

if TYPE_CHECKING:
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.records import Conversation


def open_store(database: Path | None, *, create: bool = False, wipe_marked: bool = True) -> Store:
    """The database, to change it; where there is none yet it reads as an empty one and is made only with `create`.

    wipe_marked: first goes what an earlier command deleted and could not wipe.
    """
    from deltamem_cli.commands import editor
    from deltamem_cli.session import wiping
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.location import default_path

    editor.remove_left()
    store = Store.open(database or default_path(), create=create)
    if wipe_marked:
        wiping.wipe(store, note, patience=wiping.BEFOREHAND)
    return store


def read_store(database: Path | None) -> Store:
    """The database, to read alone: nothing is written, so it may lie where nothing can be."""
    from deltamem_cli.commands import editor
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.location import default_path

    editor.remove_left()
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
