"""What `dmem model pull` and `import` leave behind: one small file per model in the data folder."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deltamem_cli import files, paths
from deltamem_cli.models.errors import ModelError
from deltamem_cli.models.facts import Facts


@dataclass(frozen=True)
class ModelRecord:
    """A model whose files are on this machine, as they were when it came."""

    name: str
    files: tuple[Path, ...]  # all parts, in order
    size: int
    facts: Facts
    repo: str | None = None  # None: imported, the files are the user's
    license: str | None = None
    adapter: Path | None = None  # made for it when it was pulled


def read_all() -> dict[str, ModelRecord]:
    """By name. A file that can't be read counts as absent: pulling or importing again makes it anew."""
    found = {}
    for file in sorted(_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found[file.stem] = _record(file.stem, json.loads(file.read_text(encoding="utf-8")))
    return found


def write(record: ModelRecord) -> None:
    """Raises ModelError."""
    file = _folder() / f"{record.name}.json"
    document = {key: value for key, value in asdict(record).items() if key != "name"}
    try:
        files.make_folder(file.parent)
        files.write(file, json.dumps(document, default=str, indent=1).encode("utf-8"))
    except OSError as error:
        raise ModelError(
            f"{record.name} can't be registered in {file.parent} ({error.strerror}): make it a folder that you "
            "can write to."
        ) from error


def remove(name: str) -> None:
    """Forgets a pulled or imported model; its files stay."""
    (_folder() / f"{name}.json").unlink(missing_ok=True)


def _folder() -> Path:
    return paths.data_dir() / "models"


def _record(name: str, said: dict[str, Any]) -> ModelRecord:
    known = {field.name for field in fields(Facts)}
    facts = Facts(**{key: value for key, value in said["facts"].items() if key in known})
    adapter = Path(said["adapter"]) if said.get("adapter") else None
    files = tuple(Path(file) for file in said["files"])
    if not files:
        raise ValueError(name)
    return ModelRecord(name, files, int(said["size"]), facts, said.get("repo"), said.get("license"), adapter)
