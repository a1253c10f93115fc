"""What a check tells: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    """`found` is a fact; `advice` is what to do, empty when there is nothing to do."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Flags:
    """What is looked at: what a chat with these flags would use."""

    profile: str | None = None
    model: str | None = None
    adapter: str | None = None
    database: Path | None = None


def worst(checks: Sequence[Check]) -> Verdict:
    """The verdict on all checks together: broken before warning before ok."""
    verdicts = {check.verdict for check in checks}
    return "broken" if "broken" in verdicts else "warning" if "warning" in verdicts else "ok"
