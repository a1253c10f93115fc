"""Small tables of text in the cache folder; losing one costs time and nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from deltamem_cli import files
from deltamem_cli.paths import cache_dir

_MOST = 256  # entries; the oldest go


def read(name: str) -> dict[str, str]:
    """What write() kept under this name; empty when nothing is or it can't be read."""
    try:
        known = json.loads(_file(name).read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            return {}
        return {key: value for key, value in known.items() if isinstance(value, str)}
    except (OSError, ValueError, RecursionError):
        return {}


def write(name: str, known: dict[str, str]) -> None:
    """Keep the newest entries of `known`; a cache that can't be written is no error."""
    file = _file(name)
    with contextlib.suppress(OSError):
        files.make_folder(file.parent)
        files.write(file, json.dumps(dict(list(known.items())[-_MOST:]), indent=0).encode("utf-8"))


def _file(name: str) -> Path:
    return cache_dir() / f"{name}.json"
