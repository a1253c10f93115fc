"""What a shell's Tab offers for names: profiles, conversations, models, adapters, settings. Never fails, only offers less.

Nothing heavy at import: a command's options name these functions, and few runs of dmem complete anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from deltamem_cli.store.database import Store


def _quietly(offers: Callable[[typer.Context], list[Any]]) -> Callable[[typer.Context, str], list[Any]]:
    """Those of `offers` (words, or pairs of a word and what it is) that begin with what is typed.

    None when something is wrong: the command itself will say so.
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[Any]:
        try:
            found = offers(ctx)
        except Exception:  # noqa: BLE001 (whatever it is, it must not be printed into the line that is typed)
            return []
        return [offer for offer in found if (offer if isinstance(offer, str) else offer[0]).startswith(incomplete)]

    return complete


@_quietly
def profiles(ctx: typer.Context) -> list[str]:
    """Names of the stored profiles."""
    from deltamem_cli.store import profiles as stored

    with _store(ctx) as store:
        return [profile.name for profile in stored.all_of(store)]


@_quietly
def profiles_or_new(ctx: typer.Context) -> list[str]:
    """Names of the stored profiles, and NEW."""
    from deltamem_cli.store.profiles import NEW

    return [NEW, *profiles(ctx, "")]


@_quietly
def conversations(ctx: typer.Context) -> list[tuple[str, str]]:
    """Of the profile that is named before it, else of the usual one; the last one first."""
    from deltamem_cli.commands.finding import profile_name
    from deltamem_cli.store import conversations as stored
    from deltamem_cli.store import profiles as stored_profiles
    from deltamem_cli.terminal.output import printable

    with _store(ctx) as store:
        profile = stored_profiles.find(store, profile_name(ctx.params.get("profile")))
        return [(one.id, printable(one.heading)) for one in stored.all_of(store, profile)] if profile else []


@_quietly
def models(ctx: typer.Context) -> list[str]:
    """Those that are on this machine."""
    from deltamem_cli.models import catalogue

    return [entry.name for entry in catalogue().values() if entry.model]


@_quietly
def models_to_pull(ctx: typer.Context) -> list[str]:
    """Models with a repository on the hub."""
    from deltamem_cli.models import catalogue

    return [entry.name for entry in catalogue().values() if entry.repo]


@_quietly
def adapters(ctx: typer.Context) -> list[str]:
    """Adapters that have a name of their own."""
    from deltamem_cli.models.adapters import known_adapters

    return [adapter.name for adapter in known_adapters() if adapter.name != str(adapter.path)]


@_quietly
def options(ctx: typer.Context) -> list[tuple[str, str]]:
    """Names of sampling options."""
    from deltamem_cli.config import KEYS

    prefix = "options."
    return [(name.removeprefix(prefix), key.help) for name, key in KEYS.items() if name.startswith(prefix)]


@_quietly
def settings(ctx: typer.Context) -> list[tuple[str, str]]:
    """Names of settings, with their help."""
    from deltamem_cli.config import KEYS

    return [(name, key.help) for name, key in KEYS.items()]


@_quietly
def setting_values(ctx: typer.Context) -> list[str]:
    """What the setting that is named before it can be."""
    from deltamem_cli.config import find

    key = find(ctx.params["name"])
    named = {"model": models, "adapter": adapters, "profile": profiles}.get(key.name)
    return named(ctx, "") if named else list(key.kind.choices)


@contextmanager
def _store(ctx: typer.Context) -> Iterator[Store]:
    from deltamem_cli import paths
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.location import default_path

    database = ctx.params.get("database")
    with Store.look(paths.expanded(database) if database else default_path()) as store:
        yield store
