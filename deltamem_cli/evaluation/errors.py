"""The one error of measuring."""

from __future__ import annotations

from deltamem_cli.errors import DeltamemError


class EvaluationError(DeltamemError):
    """What keeps a measurement from being made, or from going on."""
