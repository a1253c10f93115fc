"""Adapters: which there are on this machine, where each comes from, which fit a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltamem_cli import config
from deltamem_cli.errors import DeltamemError
from deltamem_cli.models.entries import catalogue, packaged_adapters
from deltamem_cli.models.errors import ModelError
from deltamem_cli.models.resolving import (
    ADAPTER_SUFFIX,
    adapter_file,
    converted_adapter,
    find_adapter,
    registered_adapters,
)
from deltamem_cli.text import short


@dataclass(frozen=True)
class KnownAdapter:
    """An adapter file on this machine."""

    name: str
    path: Path
    origin: str  # packaged, registered, converted, or where it lies: beside MODEL, set for MODEL
    models: tuple[str, ...]  # that use it when no other is named


def known_adapters() -> list[KnownAdapter]:
    """All of them, each file once. Raises DeltamemError when the configuration makes no sense."""
    used: dict[Path, list[str]] = {}
    for entry in catalogue().values():
        if entry.model is not None:
            try:
                file = find_adapter(entry.model, entry)
            except DeltamemError:
                continue  # said where it is used
            if file is not None:
                used.setdefault(file.absolute(), []).append(entry.name)
    found: dict[Path, KnownAdapter] = {}
    for name, path, origin in _named():
        found.setdefault(path.absolute(), KnownAdapter(name, path, origin, tuple(used.get(path.absolute(), ()))))
    for path, models in used.items():
        beside = path.with_name(path.name.removesuffix(ADAPTER_SUFFIX) + ".gguf").is_file()
        origin = f"{'beside' if beside else 'set for'} {models[0]}"
        found.setdefault(path, KnownAdapter(str(path), path, origin, tuple(models)))
    return list(found.values())


def fitting(model: Path, adapters: Sequence[Path]) -> list[Path]:
    """Those of the adapters that are made for a model of this shape."""
    from deltamem_cli.adapter.base_model import read_base_model
    from deltamem_cli.adapter.format import read_adapter

    try:
        base = read_base_model(model)
    except DeltamemError:
        return []
    found = []
    for path in adapters:
        with suppress(DeltamemError):
            config = read_adapter(path).config
            if (config.architecture, config.embedding_length, config.block_count) == (
                base.architecture,
                base.embedding_length,
                base.block_count,
            ):
                found.append(path)
    return found


def set_default(model: str, adapter: str | None) -> None:
    """Which adapter goes with a model; None: the one that belongs to it by itself. Raises DeltamemError."""
    entry = catalogue().get(model)
    if entry is None:
        raise ModelError(
            f"There is no model {short(model)}: see dmem model list, or register a file with: dmem model import"
        )
    said = dict(config.table("models").get(model, {}))
    said.pop("adapter", None)
    if adapter is not None:
        file = adapter_file(adapter)
        if entry.model is not None and not fitting(entry.model, [file]):
            raise ModelError(f"{file} is not made for {short(model)}; to see its base model: dmem adapter show {file}")
        said["adapter"] = adapter if _is_name(adapter) else str(file.absolute())
    if said or model in config.table("models"):
        config.set_entry("models", model, said or None)


def check_removable(known: KnownAdapter) -> None:
    """Raises ModelError for what is not ours to delete."""
    if known.origin == "packaged":
        raise ModelError(f"{known.name} comes with the package and can't be removed alone.")
    if known.origin not in ("registered", "converted"):
        raise ModelError(f"{known.name} is your own file: delete {known.path}.")


def remove(known: KnownAdapter) -> None:
    """Deletes a converted one, forgets a registered one. Raises ModelError for others."""
    check_removable(known)
    if known.origin == "registered":
        config.set_entry("adapters", known.name, None)
    else:
        known.path.unlink(missing_ok=True)


def _named() -> Iterator[tuple[str, Path, str]]:
    for name, path in packaged_adapters().items():
        yield name, path, "packaged"
    for name, path in registered_adapters().items():
        yield name, path, "registered"
    for path in sorted(converted_adapter("x").parent.glob(f"*{ADAPTER_SUFFIX}")):
        yield path.name.removesuffix(ADAPTER_SUFFIX), path, "converted"


def _is_name(adapter: str) -> bool:
    return any(adapter == name for name, _, _ in _named())
