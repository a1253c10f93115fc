"""A local chat model whose δ-mem state outlives the session; the package itself exports its version only."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    if name == "__version__":
        # asked for rarely, and reading the metadata costs more than the rest of the import
        from importlib.metadata import version

        return version("deltamem-cli")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
