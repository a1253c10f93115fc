"""Models as a list shows them: size, whether they fit into this machine, whether they remember."""

from __future__ import annotations

from dataclasses import dataclass

from deltamem_cli import config, paths
from deltamem_cli.errors import DeltamemError
from deltamem_cli.models import ram
from deltamem_cli.models.entries import STARTER, Entry, catalogue, packaged_adapters, recommended
from deltamem_cli.models.facts import Facts, parts, read_facts
from deltamem_cli.models.resolving import entry_of, find_adapter


@dataclass(frozen=True)
class Listed:
    """An entry with what its files and this machine say. None: cannot be told."""

    entry: Entry
    facts: Facts | None
    size: int | None
    needed: int | None  # bytes of memory
    fits: str | None  # yes, tight, no
    adapter: str | None  # its file, or the repository that a pull takes it from
    is_default: bool
    is_recommended: bool = False


def listing() -> list[Listed]:
    """Every model that has a name. Raises DeltamemError when the configuration makes no sense."""
    entries = catalogue()
    default = default_entry(entries)
    machine = ram.of_machine()
    return [describe(entry, machine, is_default=entry is default) for entry in entries.values()]


def describe(entry: Entry, machine: ram.Memory | None, *, is_default: bool = False) -> Listed:
    """An entry with its size in bytes, RAM needed and adapter; unknown facts are None."""
    size, facts = entry.size, entry.facts
    if entry.model and facts is None:  # the user's own, in the configuration
        try:
            files = parts(entry.model)
            size, facts = sum(file.stat().st_size for file in files), read_facts(files)
        except DeltamemError:
            pass  # a damaged file is named where it is used; a list goes on
    needed = ram.needed(size, facts) if size and facts else None
    fits = machine.verdict(needed) if machine and needed else None
    is_recommended = entry.name == recommended().name and entry.repo == recommended().repo
    return Listed(entry, facts, size, needed, fits, _adapter(entry), is_default, is_recommended)


def default_entry(entries: dict[str, Entry]) -> Entry | None:
    """The model that is used when none is named; None when it is a file without a name."""
    said = config.value("model") or STARTER
    return entries.get(said) or entry_of(paths.expanded(said), entries)


def _adapter(entry: Entry) -> str | None:
    if entry.model is None:
        packaged = packaged_adapters().get(entry.name) if entry.packaged else None
        return str(packaged) if packaged else entry.adapter
    try:
        file = find_adapter(entry.model, entry)
    except DeltamemError:
        return entry.adapter
    return str(file) if file else None
