"""Identifiers and times; knows nothing of the database.

A conversation's id is a ULID: 48 bits of milliseconds and 80 random bits in 26 characters that sort by age.
"""

from __future__ import annotations

import secrets
import time
from datetime import datetime, timezone

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford: no i, l, o, u
_last: tuple[int, int] = (0, 0)


def new_id() -> str:
    """A new id, larger than every earlier one of this process."""
    global _last
    milliseconds, random = time.time_ns() // 1_000_000, secrets.randbits(80)
    if milliseconds <= _last[0]:  # same millisecond, or the clock went back
        milliseconds, random = _last[0], _last[1] + 1
    _last = (milliseconds, random)
    number = (milliseconds << 80) + random
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5))


def now() -> str:
    """This moment as stored everywhere: UTC, ISO 8601, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
