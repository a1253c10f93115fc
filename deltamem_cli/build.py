"""What the installed native build says of itself; loads no library."""

from __future__ import annotations

import json
from typing import Any

from deltamem_cli import paths
from deltamem_cli.errors import DeltamemError


def info() -> dict[str, Any]:
    """build.json, which the build wrote: versions, commit, patches. Empty when there is none that can be read."""
    try:
        said = json.loads((paths.native_dir() / "build.json").read_text(encoding="utf-8"))
    except (DeltamemError, OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def upstream() -> str:
    """Which llama.cpp it is, on one line."""
    said = info()
    if not said:
        return "llama.cpp: no native build is installed, see: dmem doctor"
    keys = ("llama_cpp_commit", "llama_cpp_version", "llama_cpp_python")
    commit, version, release = (str(said.get(key, "unknown")) for key in keys)
    return f"llama.cpp {commit[:12]} ({version}), llama-cpp-python {release}"
