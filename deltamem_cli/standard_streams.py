"""The three standard streams: open whatever the caller closed, and clear about what can't be written or read.

A file that is opened while one of them is closed takes its number, and what is printed then goes into that file.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from deltamem_cli.errors import DeltamemError


class OutputGone(DeltamemError):
    """Standard output takes nothing."""


class _Output(io.FileIO):
    given_up = False

    def write(self, data: object) -> int:
        if self.given_up:
            return memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise  # who reads has gone on purpose
        except OSError as error:
            raise OutputGone(
                f"Standard output can't be written ({error.strerror}): direct it to a place that is open and has room. "
                "What was stored is stored."
            ) from None


class _Notes(io.FileIO):
    def write(self, data: object) -> int:
        """What nobody can be told is no reason to stop."""
        with suppress(OSError):
            super().write(data)  # type: ignore[arg-type]
        return memoryview(data).nbytes  # type: ignore[arg-type]


def prepare() -> None:
    """Replaces what sys has of them, at the start of the process; streams that others have put there stay."""
    for number in range(3):
        _open_closed(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    for name, number, raw in (("stdout", 1, _Output), ("stderr", 2, _Notes)):
        now = getattr(sys, name)
        if now is None or (now is getattr(sys, f"__{name}__") and isinstance(now, io.TextIOWrapper) and _is_plain(now)):
            buffered = io.BufferedWriter(raw(number, "w", closefd=False))
            encoding = now.encoding if now else "utf-8"
            stream = io.TextIOWrapper(buffered, encoding, line_buffering=name == "stderr" or os.isatty(number))
            setattr(sys, name, stream)


def finish() -> None:
    """Writes what is left for standard output. Raises OutputGone, BrokenPipeError."""
    try:
        sys.stdout.flush()
    except (OutputGone, BrokenPipeError):
        raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
        if isinstance(raw, _Output):
            raw.given_up = True  # Python tries again at its end
        raise


def _open_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        # to be read only: writing fails as it does where it is closed
        file = os.open(os.devnull, os.O_RDONLY)
        if file != number:
            os.dup2(file, number)
            os.close(file)
        os.set_inheritable(number, True)


def _is_plain(stream: io.TextIOWrapper) -> bool:
    """A console of Windows is no file, and its encoding not the one of files."""
    return not (os.name == "nt" and stream.isatty())
