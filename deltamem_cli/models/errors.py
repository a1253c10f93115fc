"""What can go wrong with models by name."""

from __future__ import annotations

from deltamem_cli.errors import DeltamemError


class ModelError(DeltamemError):
    """A model or adapter that is asked for cannot be had; the text is one sentence for the user."""


class Stopped(ModelError):
    """Ctrl-C during a download; what came so far is kept."""

    exit_code = 130
