"""From what stands behind --model and --adapter to files. Never asks the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from deltamem_cli import config, paths
from deltamem_cli.errors import DeltamemError
from deltamem_cli.models import choosing
from deltamem_cli.models.entries import Entry, catalogue, packaged_adapters, packaged_for
from deltamem_cli.models.errors import ModelError
from deltamem_cli.models.facts import parts, read_facts
from deltamem_cli.reading import why_no_file
from deltamem_cli.text import short

ADAPTER_SUFFIX = ".deltamem.gguf"


@dataclass(frozen=True)
class ModelFile:
    """A model on this machine. A path that has no name is its own."""

    path: Path
    adapter: Path | None  # the one that belongs to it
    name: str
    options: Mapping[str, float | int] = field(default_factory=dict)  # of replies, that we recommend for it


def resolve(said: str | Path) -> ModelFile:
    """The model that a name, `owner/repo[:file]` or a path means. Raises DeltamemError."""
    text = os.fspath(said)
    entries = catalogue()
    entry = entries.get(text) or (None if _is_path(text) else _pulled_from(text, entries))
    if entry is not None:
        return _model_file(entry)
    path = paths.expanded(text)
    if path.is_file():
        entry = entry_of(path, entries)
        return _model_file(entry) if entry else ModelFile(path, find_adapter(path, None), str(path))
    if _is_path(text) or path.exists() or not choosing.parse(text):
        raise ModelError(_absent(text, entries))
    raise ModelError(f"{text} is not a file and has not been pulled yet; get it with: dmem model pull {text}")


def find_adapter(model: Path, entry: Entry | None) -> Path | None:
    """The adapter that belongs to a model: what the configuration says, what was made when it was pulled, the file
    beside it, the packaged one. Raises ModelError when the configuration names one that is not there.
    """
    if entry and entry.adapter and not is_repository(entry.adapter):
        return adapter_file(entry.adapter)
    made = entry.record.adapter if entry and entry.record else None
    if made and made.is_file():
        return made
    beside = model.with_suffix(ADAPTER_SUFFIX)
    if beside.is_file():
        return beside
    try:
        return packaged_for((entry.facts if entry else None) or read_facts(parts(model)))
    except DeltamemError:  # a damaged file is named where it is loaded
        return None


def adapter_file(said: str | Path) -> Path:
    """The file of an adapter by its name or path. Raises ModelError."""
    text = os.fspath(said)
    if registered := registered_adapters().get(text):
        path = registered
    elif packaged := packaged_adapters().get(text):
        path = packaged
    else:
        path = paths.expanded(text)
        converted = converted_adapter(text) if not _is_path(text) else path
        path = converted if converted.is_file() else path
    if why := why_no_file(path):
        if _is_bare(text) and path == Path(text) and not path.exists():  # no name's file that is gone
            raise ModelError(f"There is no adapter {short(text)}, and no file of that name; see: dmem adapter list")
        raise ModelError(f"The adapter file {path} {why}: check the path, or see: dmem adapter list")
    return path


def registered_adapters() -> dict[str, Path]:
    """Those of the configuration: [adapters.NAME] with a path. Raises ModelError."""
    found = {}
    for name, said in sorted(config.table("adapters").items()):
        path = said.get("path")
        if set(said) != {"path"} or not isinstance(path, str) or not path:
            raise ModelError(
                f"The configuration gives the adapter {short(name)} something other than a path. Correct it with: "
                "dmem config edit"
            )
        found[name] = paths.config_dir() / paths.expanded(path)
    return found


def converted_adapter(name: str) -> Path:
    """Where the adapter that is made for a pulled model lies."""
    return paths.data_dir() / "adapters" / f"{name}{ADAPTER_SUFFIX}"


def is_repository(adapter: str) -> bool:
    """Whether what an entry says of its adapter is a repository on the hub and no file."""
    return choosing.parse(adapter) is not None and not adapter.endswith(".gguf") and not Path(adapter).exists()


def _is_path(text: str) -> bool:
    return text.endswith(".gguf") and ":" not in text or text.startswith(("/", "./", "../", "~", ".\\", "..\\"))


def _is_bare(text: str) -> bool:
    """A word that may be meant as a name or as a file here."""
    return not _is_path(text) and Path(text).name == text


def _model_file(entry: Entry) -> ModelFile:
    path = entry.model
    if path is None:
        if entry.origin == "packaged":
            paths.starter_model()  # raises, and says why
        if entry.repo:
            raise ModelError(
                f"The model {short(entry.name)} is not here yet: get it with: dmem model pull {entry.name}"
            )
        gone = entry.path or (entry.record.files[0] if entry.record else None)
        if gone is None:
            raise ModelError(
                f"The configuration gives the model {short(entry.name)} neither path nor repo: add one with: dmem config edit"
            )
        where = f"can't be read, as {gone} {why_no_file(gone)}" if gone.exists() else f"is gone from {gone}"
        raise ModelError(
            f"The file of the model {short(entry.name)} {where}: put it back, or forget it with: "
            f"dmem model rm {entry.name}"
        )
    return ModelFile(path, find_adapter(path, entry), entry.name, entry.options)


def entry_of(path: Path, entries: dict[str, Entry]) -> Entry | None:
    """The entry whose file this is."""
    absolute = path.absolute()
    return next((entry for entry in entries.values() if entry.model == absolute), None)


def _pulled_from(text: str, entries: dict[str, Entry]) -> Entry | None:
    spec = choosing.parse(text)
    if spec is None or Path(text).is_file():
        return None
    repo, wanted = spec
    found = [
        entry
        for entry in entries.values()
        if entry.repo == repo and entry.record and (not wanted or choosing.matches(entry.record.files[0].name, wanted))
    ]
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found)
        raise ModelError(f"More than one model was pulled from {repo}: choose one of {names}.")
    return found[0] if found else None


def _absent(text: str, entries: dict[str, Entry]) -> str:
    near = get_close_matches(text, entries, n=1)
    if near:
        return f"There is no model {short(text)}: did you mean {near[0]}? See: dmem model list"
    if _is_bare(text) and not paths.expanded(text).exists():
        return (
            f"There is no model {short(text)}, and no file of that name: choose one with --model; see: dmem model list"
        )
    why = why_no_file(paths.expanded(text)) or "can't be read"
    return f"The model file {text} {why}: check the path or choose another with --model; see: dmem model list"
