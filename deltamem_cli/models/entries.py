"""Every model that has a name: the packaged one, those we know, the user's own in the configuration, pulled and imported ones."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deltamem_cli import config, paths
from deltamem_cli.errors import DeltamemError
from deltamem_cli.models import registry
from deltamem_cli.models.errors import ModelError
from deltamem_cli.models.facts import Facts
from deltamem_cli.models.registry import ModelRecord
from deltamem_cli.text import short

STARTER = "starter"
FIELDS = ("repo", "file", "adapter", "path")  # of [models.NAME]


@dataclass(frozen=True)
class Packaged:
    """An adapter that comes with the package: its file, and what files of its model call themselves, in any quantisation."""

    file: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A model by its name. None: not known, or there is none."""

    name: str
    origin: str  # packaged, catalogue, config, pulled, imported
    path: Path | None = None  # the user's own file, or the packaged one
    repo: str | None = None
    file: str | None = None  # file in repo, or quantisation
    adapter: str | None = None  # a file, an adapter's name, or the repository of a published one
    license: str | None = None
    adapter_license: str | None = None
    packaged: Packaged | None = None
    size: int | None = None
    sha256: str | None = None  # of its file, when it is one that was tried
    facts: Facts | None = None
    record: ModelRecord | None = None  # of what was pulled or imported
    options: Mapping[str, float | int] = field(default_factory=dict)  # of replies, that suit it; see session.opening

    @property
    def model(self) -> Path | None:
        """Its file on this machine, the first of several; None while it is not there."""
        path = self.path or (self.record.files[0] if self.record else None)
        return path if path is not None and path.is_file() else None


_STARTER = Entry(
    STARTER,
    "packaged",
    license="apache-2.0",
    facts=Facts("SmolLM2-135M-Instruct", "llama", 134_515_008, "Q4_1", 8192, 576, 30, 23_040),
    # the second name is the one in the files that its makers converted
    packaged=Packaged(paths.STARTER_ADAPTER, ("SmolLM2-135M-Instruct", "Smollm2 135M 8k Lc100K Mix1 Ep2")),
    options={"temperature": 0.2, "top_p": 0.9},
)
_KNOWN = (
    Entry(
        "qwen3-4b",
        "catalogue",
        repo="unsloth/Qwen3-4B-Instruct-2507-GGUF",
        file="Qwen3-4B-Instruct-2507-Q4_K_M.gguf",
        adapter="declare-lab/delta-mem_qwen3_4b-instruct",
        license="apache-2.0",
        adapter_license="CC-BY-4.0",
        size=2_497_281_120,
        facts=Facts("Qwen3-4B-Instruct-2507", "qwen3", 4_022_468_096, "Q4_K_M", 262_144, 2560, 36, 147_456),
    ),
    Entry(
        "qwen2.5-coder-0.5b",
        "catalogue",
        repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        license="apache-2.0",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        facts=Facts("Qwen2.5-Coder-0.5B-Instruct", "qwen2", 630_167_424, "Q4_K_M", 32_768, 896, 24, 12_288),
    ),
    Entry(
        "qwen2.5-coder-1.5b",
        "catalogue",
        repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        license="apache-2.0",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        facts=Facts("Qwen2.5-Coder-1.5B-Instruct", "qwen2", 1_777_088_000, "Q4_K_M", 32_768, 1536, 28, 28_672),
    ),
)


def catalogue() -> dict[str, Entry]:
    """All of them by name, ours first. Raises DeltamemError when the configuration makes no sense."""
    entries = {entry.name: entry for entry in (_starter(), *_KNOWN)}
    for name, said in sorted(config.table("models").items()):
        entries[name] = _merged(entries.get(name) or Entry(name, "config"), said)
    for name, record in registry.read_all().items():
        entries[name] = _with_record(entries.get(name), record)
    return entries


def known_adapter(facts: Facts) -> Entry | None:
    """The entry of ours whose published adapter was trained for the model that these facts are of."""
    published = (entry for entry in _KNOWN if entry.adapter and entry.facts)
    return next((entry for entry in published if entry.facts and _plain(entry.facts.name) == _plain(facts.name)), None)


def packaged_adapters() -> dict[str, Path]:
    """Those that come with the package, by the names of their models."""
    found = {e.name: paths.packaged_adapter(e.packaged.file) for e in (_STARTER, *_KNOWN) if e.packaged}
    return {name: path for name, path in found.items() if path is not None}


def packaged_for(facts: Facts) -> Path | None:
    """The packaged adapter of the model that these facts are of: by its name and shape, whatever the quantisation."""
    for entry in (_STARTER, *_KNOWN):
        shape = (facts.architecture, facts.embedding_length, facts.layers)
        ours = entry.facts and (entry.facts.architecture, entry.facts.embedding_length, entry.facts.layers)
        if entry.packaged and shape == ours and _plain(facts.name) in map(_plain, entry.packaged.names):
            return paths.packaged_adapter(entry.packaged.file)
    return None


def remembering() -> str:
    """The names of our models that have an adapter, as a sentence has them."""
    *first, last = [STARTER, *(entry.name for entry in _KNOWN if _remembers(entry))]
    return f"{', '.join(first)} and {last}" if first else last


def recommended() -> Entry:
    """The model for who wants more than the starter: the smallest of ours that remembers."""
    return min((entry for entry in _KNOWN if _remembers(entry)), key=lambda entry: entry.size or 0)


def _remembers(entry: Entry) -> bool:
    return bool(entry.adapter) or entry.name in packaged_adapters()


def _starter() -> Entry:
    with suppress(DeltamemError):  # said when the starter itself is asked for
        path = paths.starter_model()
        return replace(_STARTER, path=path, size=path.stat().st_size)
    return _STARTER


def _merged(entry: Entry, said: dict[str, Any]) -> Entry:
    for key, value in said.items():
        if key not in FIELDS or not isinstance(value, str) or not value:
            what = f"to {short(value)!r}, which must be text" if key in FIELDS else f"; it can have {', '.join(FIELDS)}"
            raise ModelError(
                f"The configuration sets models.{short(entry.name)}.{short(key)}{what}. Correct it with: dmem config edit"
            )
    if said.keys() & {"repo", "file", "path"}:  # another file than ours: what we knew of ours is void
        entry = replace(entry, license=None, size=None, sha256=None, facts=None, path=None, options={})
    if said.keys() & {"repo", "adapter", "path"}:
        entry = replace(entry, adapter=None, adapter_license=None, packaged=None)
    if "path" in said:
        entry = replace(entry, repo=None, file=None, path=paths.config_dir() / paths.expanded(said["path"]))
    return replace(entry, **{key: value for key, value in said.items() if key != "path"})


def _with_record(entry: Entry | None, record: ModelRecord) -> Entry:
    if entry is not None and (entry.repo or entry.path) and entry.repo != record.repo:
        return entry  # it means another file by now
    if entry is None or entry.repo is None:  # at most the adapter stands in the configuration
        origin = "imported" if record.repo is None else "pulled"
        entry = Entry(record.name, origin, repo=record.repo, adapter=entry.adapter if entry else None)
    return replace(entry, record=record, size=record.size, facts=record.facts, license=record.license or entry.license)


def _plain(name: str | None) -> str:
    return "".join(character for character in (name or "").lower() if character.isalnum())
