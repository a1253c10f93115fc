"""Files as a whole: replaced at once, private to their owner, locked by the kernel. Knows nothing of what is in them."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltamem_cli.errors import DeltamemError

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30  # a byte that is never written: Windows locks bar reading, and others must read the file

    def _lock(file: int) -> None:
        os.lseek(file, _FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        # flock, not lockf: it belongs to the open file, so closing another handle in this process does not drop it.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD = {errno.EWOULDBLOCK, errno.EACCES}  # flock says the first, Windows the second
_LONGEST_STEM = 60  # of a draft's name, which has to fit beside the longest of names


class NoLocks(DeltamemError):
    """The file system that a lock is asked of has none."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty draft beside `path`, readable by its owner alone, that takes its place when the block is over.

    Whoever reads `path` sees the old file or the whole new one; if the block fails, the old one stays. A link is
    replaced and not followed. What is no file (a pipe, a device) can't be replaced: it is written into. Raises OSError.
    """
    if _is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "draft"
            yield draft
            path.write_bytes(draft.read_bytes())
        return
    # a fresh name: nobody else's file is touched
    file, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name[:_LONGEST_STEM]}.", suffix=".part")
    os.close(file)
    draft = Path(name)
    try:
        yield draft
        _sync(draft)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    if os.name == "posix":
        with suppress(OSError):  # some file systems can't; the file itself is whole
            _sync(path.parent)


def write(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, whole or not at all. Raises OSError."""
    with replacing(path) as draft:
        draft.write_bytes(data)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it that are missing, for their owner alone. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def take_lock(path: Path) -> int | None:
    """The open file `path`, made if missing, that no other process has locked; None while another one has.

    The kernel drops the lock when its process ends, kill -9 and crash included. Raises NoLocks, OSError.
    """
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            _lock(file)
            # drop_lock() removes the file: make sure that it was not the old one that we locked
            if os.fstat(file).st_ino == os.stat(path).st_ino:
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(file)
            if error.errno in _HELD:
                return None
            raise NoLocks(
                f"{path} can't be locked because its file system has no locks ({error.strerror}), so two programs could "
                "spoil each other's work there; keep the file on another disk: --database for memories, DMEM_HOME for all"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def drop_lock(path: Path, file: int) -> None:
    """What take_lock() took; the file goes too."""
    with suppress(OSError):  # Windows cannot remove an open file; a left-over file is harmless
        os.unlink(path)
    os.close(file)


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
