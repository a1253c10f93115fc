"""Whether a reply goes round in circles; plain tokens in, yes or no out."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 24  # tokens that the repeats take together: a row of dashes or zeros is no loop yet
LONGEST_PART = 128  # tokens of what is repeated


def is_looping(tokens: Sequence[int], repeats: int) -> bool:
    """Whether the last tokens are one stretch, verbatim, at least `repeats` times in a row; 0: never."""
    if not repeats:
        return False
    for size in range(1, min(LONGEST_PART, len(tokens) // repeats) + 1):
        times = max(repeats, -(-SHORTEST // size))
        if len(tokens) >= times * size and _is_periodic(tokens[-times * size :], size):
            return True
    return False


def _is_periodic(tokens: Sequence[int], size: int) -> bool:
    return list(tokens[size:]) == list(tokens[:-size])
