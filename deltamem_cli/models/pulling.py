"""`dmem model pull` and `import`: a model's files, and the adapter that is known for it, under a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deltamem_cli import config, files, paths
from deltamem_cli.models import choosing, hub, ram, registry
from deltamem_cli.models.entries import Entry, catalogue, known_adapter
from deltamem_cli.models.errors import ModelError
from deltamem_cli.models.facts import Facts, parts, read_facts, stem
from deltamem_cli.models.registry import ModelRecord
from deltamem_cli.models.resolving import converted_adapter, is_repository
from deltamem_cli.text import short

Tell = Callable[[str], None]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def pull(said: str, *, name: str | None, tell: Tell) -> ModelRecord:
    """Downloads the model that a name of the catalogue or `owner/repo[:file]` means, and the adapter known for it.

    Raises DeltamemError; when only the adapter fails, the model stays.
    """
    entries = catalogue()
    entry = entries.get(said)
    if entry is None:
        spec = choosing.parse(said)
        if spec is None:
            raise ModelError(
                f"{short(said)} is not a model that can be pulled: give a name in dmem model list, or owner/repo[:file] on the hub."
            )
        entry = Entry("", "pulled", repo=spec[0], file=spec[1])
    if entry.repo is None:
        return _only_its_adapter(entry, tell)
    repository = hub.look(entry.repo)
    names, why = choosing.choose(entry.repo, repository.files, entry.file)
    name = name or entry.name or stem(names[0])
    _check_name(name, entries, entry.repo, names[0].rpartition("/")[2])
    size = sum(repository.files[one].size for one in names)
    license = repository.license or entry.license
    tell(f"{names[0]}" + (f" and {len(names) - 1} more parts" if len(names) > 1 else "") + f" of {entry.repo}")
    tell(f"{size / 1e6:,.1f} MB, license: {license or 'not stated'}" + (f"; {why}" if why else ""))
    needed, machine = ram.needed(size, entry.facts or Facts()), ram.of_machine()
    found = repository.files[names[0]].sha256
    if entry.sha256 and found and found != entry.sha256:
        tell(f"it is not the file that dmem knows as {entry.name}: its sha256 is {found}, and not {entry.sha256}")
    if machine and machine.verdict(needed) == "no":
        tell(f"it needs about {needed / 1e9:.1f} GB of RAM and this machine has {machine.total / 1e9:.1f} GB")
    files = tuple(hub.download(repository, names))
    record = ModelRecord(name, files, size, read_facts(files), entry.repo, license)
    before = entries[name].record if name in entries else None
    registry.write(replace(record, adapter=before.adapter if before else None))
    return _with_adapter(record, entry, tell)


def register(file: Path, name: str | None) -> ModelRecord:
    """Gives a file that stays where it is a name. Raises DeltamemError."""
    file = paths.expanded(file).absolute()
    files = tuple(parts(file))
    facts = read_facts(files)
    name = name or stem(file.name)
    entries = catalogue()
    _check_name(name, entries, None, file.name)
    known = entries[name].record if name in entries else None
    # a file that was moved is followed
    if known is not None and known.files[0].exists() and known.files[0].absolute() != file.absolute():
        raise _taken(name)
    record = ModelRecord(name, files, sum(part.stat().st_size for part in files), facts, license=facts.license)
    registry.write(record)
    return record


def check_removable(entry: Entry) -> None:
    """Raises ModelError for what is not the user's to remove, or not there."""
    if entry.origin == "packaged":
        raise ModelError(f"{entry.name} comes with the package and can't be removed alone.")
    if entry.record is None and entry.path is None:
        raise ModelError(f"{entry.name} is not on this machine, so there is nothing to remove; see: dmem model list")


def remove(entry: Entry) -> None:
    """Forgets a file of the user's, deletes one that was pulled. Raises DeltamemError."""
    check_removable(entry)
    if entry.record is not None and entry.path is None:
        if entry.record.repo is not None:
            hub.delete(list(entry.record.files))
        registry.remove(entry.name)
    # what the configuration says of a model that can be pulled again stays
    if (entry.repo is None or entry.origin == "pulled") and entry.name in config.table("models"):
        config.set_entry("models", entry.name, None)


def _with_adapter(record: ModelRecord, entry: Entry, tell: Tell) -> ModelRecord:
    known = known_adapter(record.facts) if entry.adapter is None else entry
    if known is None or known.adapter is None or not is_repository(known.adapter):
        return record
    repository = hub.look(known.adapter)
    license = repository.license or known.adapter_license
    tell(f"its δ-mem adapter: {known.adapter}, license: {license or 'not stated'}")
    record = replace(record, adapter=_converted(repository, record, license))
    registry.write(record)
    return record


def _only_its_adapter(entry: Entry, tell: Tell) -> ModelRecord:
    if entry.origin == "packaged":
        raise ModelError(f"{entry.name} comes with the package, so there is nothing to pull.")
    record = _with_adapter(entry.record, entry, tell) if entry.record and entry.model else None
    if record is None or record.adapter is None:
        raise ModelError(f"{entry.name} is a local file, and no adapter for it is known.")
    return record


def _converted(repository: hub.Repository, record: ModelRecord, license: str | None) -> Path:
    """The published adapter in `repository` as a file for the model."""
    from deltamem_cli.adapter.convert import convert
    from deltamem_cli.adapter.published import CONFIG_FILE, WEIGHT_FILES

    weights = next((name for name in WEIGHT_FILES if name in repository.files), None)
    if weights is None or CONFIG_FILE not in repository.files:
        raise ModelError(
            f"{repository.name} has no published δ-mem adapter, so {record.name} was pulled without one: correct "
            f"models.{record.name}.adapter with: dmem config edit"
        )
    wanted = [name for name in (CONFIG_FILE, weights, "README.md") if name in repository.files]
    file, *_ = hub.download(repository, wanted)  # all of them into one folder
    out = converted_adapter(record.name)
    files.make_folder(out.parent)
    convert(file.parent, record.files[0], out, license=license)
    return out


def _check_name(name: str, entries: dict[str, Entry], repo: str | None, file: str) -> None:
    if not _NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        raise ModelError(
            f"{short(name)} can't be a model's name: use letters, digits, dots and dashes, such as --name my-model."
        )
    taken = entries.get(name)
    if taken is None:
        return
    lies = taken.path or (taken.record.files[0] if taken.record else None)
    if taken.repo != repo or (lies is not None and lies.name != file):
        raise _taken(name)


def _taken(name: str) -> ModelError:
    return ModelError(f"There is already a model {name}: choose another name with --name, or: dmem model rm {name}")
