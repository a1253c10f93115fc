"""Pastes between marks, also while the model works: without them, the terminal types what is pasted line by line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deltamem_cli import ending

_ON, _OFF = b"\x1b[?2004h", b"\x1b[?2004l"

_wanted = False


@contextmanager
def marked() -> Iterator[None]:
    """Inside, pastes are marked, for what knows the marks: the prompt, which gets what was pasted before it."""
    global _wanted
    if _wanted or not sys.stdin.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
        yield
        return
    _wanted = True
    ending.put_right.append(unmark)
    mark_again()
    try:
        yield
    finally:
        unmark()
        ending.put_right.remove(unmark)
        _wanted = False


def mark_again() -> None:
    """After a prompt, which ends its own marks."""
    if _wanted:
        _write(_ON)


@contextmanager
def unmarked() -> Iterator[None]:
    """Inside marked(), for what reads lines and would take a mark for a part of them."""
    unmark()
    try:
        yield
    finally:
        mark_again()


def unmark() -> None:
    """However the process ends."""
    if _wanted:
        _write(_OFF)


def _write(code: bytes) -> None:
    screen = next((file for file in (1, 2) if os.isatty(file)), None)
    if screen is not None:
        with suppress(OSError):
            os.write(screen, code)
