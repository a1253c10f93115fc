"""Turn numbers as people write and read them, and what forgetting them did."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltamem_cli.errors import UsageError
from deltamem_cli.terminal.output import count, note
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.session.forgetting import Forgotten


_LONGEST_RANGE = 100_000


def forget_report(result: Forgotten, *, dry_run: bool = False) -> None:
    """What forgetting did, or would do, to the memory."""
    note(f"{'would forget' if dry_run else 'forgot'} {count(len(result.turns), 'turn')} ({ranges(result.turns)})")
    if result.later:
        note(f"{'would replay' if dry_run else 'replayed'} {count(len(result.later), 'later turn')}")
    note(f"norm of the memory: {result.norm_before:.4g} before, {result.norm_after:.4g} after")


def parse_turns(words: Sequence[str]) -> list[int]:
    """Turn numbers of words like 3, 5-7 and 3,5-7. Raises UsageError."""
    numbers: set[int] = set()
    for word in ",".join(words).split(","):
        if not word:
            continue
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < first + _LONGEST_RANGE:
            raise UsageError(f"{short(word)} is not a turn: give numbers and ranges, such as 3 5-7")
        numbers.update(range(first, last + 1))
    if not numbers:
        raise UsageError("No turn was given: give numbers and ranges, such as 3 5-7")
    return sorted(numbers)


def ranges(numbers: Sequence[int]) -> str:
    """1, 3-5"""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
