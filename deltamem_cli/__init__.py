"""A local chat model whose δ-mem state outlives the session. For Python programs: Chat, and DeltamemError, which it raises."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # asked for rarely, and what they import costs more than the rest of the import
    if name == "__version__":
        from importlib.metadata import version

        return version("deltamem-cli")
    if name == "Chat":
        from deltamem_cli.api import Chat

        return Chat
    if name == "DeltamemError":
        from deltamem_cli.errors import DeltamemError

        return DeltamemError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
