"""Ctrl-C, and the end of the terminal, while the model works: they stop it, and what it did so far stays in order."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Sent when the terminal closes or the machine shuts down: the reply ends and is committed before the process ends.
_LEAVE = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C calls `stop`, each time it is pressed, and raises nothing.

    SIGTERM and SIGHUP call it too and raise SystemExit when the block is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    leaving: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            leaving.append(number)
        stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, *_LEAVE)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if leaving:
            raise SystemExit(128 + leaving[0])


@contextmanager
def no_echo() -> Iterator[None]:
    """What is typed inside is not shown, which would tear what is drawn; the next prompt gets it."""
    try:
        import termios
    except ImportError:  # Windows shows nothing by itself
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    old = termios.tcgetattr(sys.stdin)
    quiet = [*old]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)  # NOW: the others may throw away what is typed already
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, old)
