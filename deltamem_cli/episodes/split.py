"""The one place that says which values, phrasings and kinds of fact train, which validate, and which the evaluation alone reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

TRAIN = "train"
VALIDATION = "validation"  # a training run looks at these to see how it goes
HELD_OUT = "held-out"  # `dmem eval` alone reads these
VALUE_SHARE = 0.2
PHRASING_SHARE = 0.25
VALIDATION_SHARE = 0.1


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:8], "big")


def part_of_value(value: str) -> str:
    """Part of a value, by its text alone: the same word is in one part whatever kind of fact uses it."""
    place = _digest("value " + value) / 2**64
    if place < VALUE_SHARE:
        return HELD_OUT
    return VALIDATION if place < VALUE_SHARE + VALIDATION_SHARE else TRAIN


def values_of(values: Sequence[str], part: str) -> list[str]:
    """Those of `values` that belong to `part`, in order."""
    return [v for v in values if part_of_value(v) == part]


def phrasings_of(phrasings: Sequence[str], part: str, share: float = PHRASING_SHARE) -> list[str]:
    """The phrasings of one part, ordered by hash and cut; a short list has none to validate with, but some held out."""
    ordered = sorted(phrasings, key=lambda p: _digest("phrasing " + p))
    held_out = max(1, round(share * len(ordered)))
    validation = held_out + int(VALIDATION_SHARE * len(ordered))
    cut = {HELD_OUT: slice(held_out), VALIDATION: slice(held_out, validation), TRAIN: slice(validation, None)}
    return ordered[cut[part]]
