"""Bytes that others provide, from files, pipes and devices: bounded, and never waited for in silence."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import BinaryIO

MOST = 64 << 20  # bytes, unless the caller says more
_SILENCE = 3.0  # seconds


def _nobody(_sentence: str) -> None: ...


tell: Callable[[str], None] = _nobody  # the person who waits; the command line puts itself here


def whole_file(path: Path, most: int = MOST) -> bytes:
    """What a file, a pipe or a device says to its end. most: bytes that it may say. Raises OSError, for more too."""
    if _is_regular(path):
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > most:  # a size alone is quickly made; so much memory is not
                raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MB", str(path))
            return _bounded(file, str(path), most)
    with _waiting(str(path)), path.open("rb") as file:
        return _bounded(file, str(path), most)


def whole_stream(stream: BinaryIO, name: str) -> bytes:
    """The same for one that is open already."""
    with _waiting(name):
        return _bounded(stream, name)


def why_no_file(path: Path) -> str | None:
    """What keeps `path` from being read as a file, to stand behind its name; None for a file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to a file that does not exist" if os.path.islink(path) else "does not exist"
    except OSError as error:
        return f"can't be reached ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    return "is a folder" if stat.S_ISDIR(mode) else "is a pipe or a device and no file"


def check_regular(path: Path) -> None:
    """Raises OSError for a pipe or a device, where a file has to be read in more than one go or written into."""
    if not _is_regular(path):
        raise OSError(errno.EINVAL, "it is a pipe or a device and no file", str(path))


def _is_regular(path: Path) -> bool:
    """Folders and what is missing count as well: opening them tells better what is wrong."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _bounded(stream: BinaryIO, name: str, most: int = MOST) -> bytes:
    data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it says more than {most >> 20} MB", name)
    return data


@contextmanager
def _waiting(name: str) -> Iterator[None]:
    timer = Timer(_SILENCE, lambda: tell(f"Waiting for the end of {name}; Ctrl-C gives up."))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
