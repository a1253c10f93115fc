"""The one place that says which values, phrasings and kinds of fact are for training and which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

TRAIN = "train"
HELD_OUT = "held-out"
VALUE_SHARE = 0.2
PHRASING_SHARE = 0.25


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:8], "big")


def part_of_value(value: str) -> str:
    """Part of a value, by its text alone: the same word is in one part whatever kind of fact uses it."""
    return HELD_OUT if _digest("value " + value) < VALUE_SHARE * 2**64 else TRAIN


def values_of(values: Sequence[str], part: str) -> list[str]:
    return [v for v in values if part_of_value(v) == part]


def phrasings_of(phrasings: Sequence[str], part: str, share: float = PHRASING_SHARE) -> list[str]:
    """The phrasings of one part. The list is ordered by hash and cut, so that both parts have some of a short list."""
    ordered = sorted(phrasings, key=lambda p: _digest("phrasing " + p))
    cut = max(1, round(share * len(ordered)))
    return ordered[:cut] if part == HELD_OUT else ordered[cut:]
