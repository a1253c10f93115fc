"""The engine's error."""

from __future__ import annotations

from deltamem_cli.errors import DeltamemError


class EngineError(DeltamemError):
    """A model, a context or a request that cannot be served; the text says why and what to do."""
