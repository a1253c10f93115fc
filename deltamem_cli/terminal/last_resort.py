"""Ends the process when it was told to end and the native library does not let it: what is committed is whole anyway.

Python runs a signal's handler only when the library returns, which may take minutes or never happen. The kernel's
signal is therefore written into a socket as well, and a thread of its own reads that.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from deltamem_cli import ending
from deltamem_cli.terminal import pastes

# Sent when the terminal closes or the machine shuts down.
LEAVE = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_PATIENCE = 0.8  # seconds for what the library does
_FOR_THE_DISK = 5.0  # seconds more, when it has let go and a turn is being stored
_LIBRARY = "llama_"  # threads that the engine starts for long calls: llama_decode, llama_tokenize


class _Watch:
    def __init__(self) -> None:
        self._reads, self._writes = socket.socketpair()
        self._writes.setblocking(False)
        self._over = threading.Event()
        self.in_order = False  # the handler has run
        self._before = self.arm()
        threading.Thread(target=self._run, name="last_resort", daemon=True).start()

    def arm(self) -> int:
        """The signals' file descriptor until now."""
        return signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)

    def tell(self, number: int) -> None:
        self.in_order = True
        with suppress(OSError):
            self._writes.send(bytes([number]))

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._over.set()
        self._writes.close()

    def _run(self) -> None:
        with self._reads:
            while data := self._reads.recv(64):
                for number in data:
                    if number in LEAVE:
                        self._end(number)
                        return

    def _end(self, number: int) -> None:
        if self._over.wait(_PATIENCE):
            return
        held = any(thread.name.startswith(_LIBRARY) for thread in threading.enumerate())
        if self.in_order and not held and self._over.wait(_FOR_THE_DISK):
            return
        restore_terminal()
        os._exit(128 + number)


_watch: _Watch | None = None
_terminal: list[tuple[int, Any]] = []  # (file descriptor, its mode) as found, while it is another


@contextmanager
def watching() -> Iterator[Callable[[int], None]]:
    """Inside, SIGTERM and SIGHUP end the process within a second or so, in order or not.

    For the main thread. Yields what a handler of them calls, with their number.
    """
    global _watch
    if _watch is not None:
        watch_again()
        yield _watch.tell
        return
    _watch = _Watch()
    try:
        yield _watch.tell
    finally:
        _watch.close()
        _watch = None


def watch_again() -> None:
    """After an asyncio loop, which takes the signals for itself and leaves them to nobody."""
    if _watch is not None:
        _watch.arm()


@contextmanager
def terminal_changed(file: int, mode: Any) -> Iterator[None]:
    """`mode`: what the terminal has to be set to again, whatever ends the process."""
    _terminal.append((file, mode))
    ending.put_right.append(restore_terminal)
    try:
        yield
    finally:
        ending.put_right.remove(restore_terminal)
        _terminal.pop()


def restore_terminal() -> None:
    """Set the terminal as it was found, if it is another now; show the cursor."""
    if not _terminal:
        return
    pastes.unmark()
    import termios

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # in the background, it would stop this process
    with suppress(OSError, termios.error):
        file, mode = _terminal[0]
        termios.tcsetattr(file, termios.TCSANOW, mode)
        if sys.stdout is not None and os.isatty(1):
            os.write(1, b"\x1b[?25h")  # rich hides the cursor
