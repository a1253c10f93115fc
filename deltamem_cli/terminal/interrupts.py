"""Ctrl-C, the end of the terminal, and keys that are pressed while the model works: it stops in order, they wait."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from deltamem_cli.terminal import pastes
from deltamem_cli.terminal.last_resort import LEAVE, terminal_changed, watching

_AGAIN = 0.05  # seconds
Handler = Callable[[int, "FrameType | None"], None]


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit inside, so that what is open is closed and the terminal is as it was.

    When the native library does not return, the process ends without that.
    """

    lost: list[tuple[threading.Timer, int]] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        tell(number)
        raise SystemExit(128 + number)

    def again(dropped: sys.UnraisableHookArgs) -> None:
        # Python drops what is raised while it clears an object away: the signal is sent once more, when that is over
        for number in LEAVE:
            if isinstance(dropped.exc_value, SystemExit) and dropped.exc_value.code == 128 + number:
                timer = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
                lost.append((timer, number))
                timer.start()
                return
        unraisable(dropped)

    unraisable, sys.unraisablehook = sys.unraisablehook, again
    with watching() as tell:
        previous = _handle(LEAVE, leave)
        try:
            yield
        finally:
            for timer, _ in lost:
                timer.cancel()  # what is still open outside is not to be killed
            for number, handler in previous.items():
                signal.signal(number, handler)
            sys.unraisablehook = unraisable
    if lost:
        raise SystemExit(128 + lost[0][1])


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C calls `stop`, each time it is pressed, and raises nothing.

    SIGTERM and SIGHUP call it too: the reply ends and is committed, and SystemExit is raised when the block is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    leaving: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            leaving.append(number)
            tell(number)
        stop()

    with watching() as tell:
        previous = _handle([signal.SIGINT, *LEAVE], handle)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if leaving:
                raise SystemExit(128 + leaving[0])


def _handle(numbers: Iterable[int], handler: Handler) -> dict[int, Any]:
    """Number and handler until now of each that is handled: what nohup lets pass goes on passing."""
    ignored = {number for number in LEAVE if signal.getsignal(number) is signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number in numbers if number not in ignored}


def keys_wait() -> AbstractContextManager[None]:
    """What is typed inside is not shown, which would tear what is drawn; the next prompt gets it, key by key.

    A terminal that gathers lines would turn Enter into another key, and keep 4095 letters of a line and no more.
    """
    return _lines(gathered=False)


@contextmanager
def lines_gathered() -> Iterator[None]:
    """For what reads lines itself within keys_wait(): questions and editors."""
    with _lines(gathered=True), pastes.unmarked():
        yield


@contextmanager
def _lines(*, gathered: bool) -> Iterator[None]:
    try:
        import termios
    except ImportError:  # Windows shows nothing by itself
        yield
        return
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    old = termios.tcgetattr(sys.stdin)
    mode = [*old]
    for index, flags in {0: termios.ICRNL, 3: termios.ECHO | termios.ICANON}.items():
        mode[index] = mode[index] | flags if gathered else mode[index] & ~flags
    if not gathered:
        mode[3] |= termios.NOFLSH  # Ctrl-C stops a reply; without this, it throws away what is typed already, too
    termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)  # NOW: the others may throw away what is typed already
    try:
        with terminal_changed(sys.stdin.fileno(), old):
            yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, old)
