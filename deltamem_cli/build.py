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
    commit, version = str(said.get("llama_cpp_commit", "unknown")), said.get("llama_cpp_version")
    return f"llama.cpp {commit[:12]}{f' ({version})' if version else ''}, llama-cpp-python {said.get('llama_cpp_python', 'unknown')}"
