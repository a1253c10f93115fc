"""The files that SQLite keeps beside a database, and whether anybody has it open; knows no tables.

They belong to a database by their names alone. SQLite would write the pages of a WAL into whatever file is in the
place of the one that the WAL was left by.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltamem_cli.store.errors import StoreError, as_sentences

ENDINGS = ("-wal", "-shm", "-journal")

# What SQLite locks of a database file: everybody who has it open holds a shared lock on the last 510 of these bytes.
_LOCKS_START, _LOCKS_LENGTH = 0x40000000, 512


# Databases that this process has open, by how many stores. POSIX locks belong to the process: closing any handle of such a
# file would drop them all, and another program, which then believes itself alone, would take the WAL away.
_ours: Counter[Path] = Counter()
_guard = threading.RLock()


def enter(path: Path) -> bool:
    """To be called before a store opens the database, and leave() after it has closed it. Returns has_strange_wal()."""
    with _guard:
        strange = has_strange_wal(path)
        _ours[path] += 1
        return strange


def leave(path: Path) -> None:
    """See enter()."""
    with _guard:
        _ours[path] -= 1
        if not _ours[path]:
            del _ours[path]


def has_strange_wal(path: Path) -> bool:
    """Whether the WAL beside the database is another one's, left when a file was put in its place.

    A database says in its header whether it has a WAL, and says so before it has one. One that this process has open
    was asked before.
    """
    with _guard:
        try:
            # the size first: a new database gets its header before its WAL
            if _ours[path] or not Path(f"{path}-wal").stat().st_size:
                return False
            with path.open("rb") as file:
                return file.read(20)[18:20] != b"\x02\x02"
        except OSError:
            return False


def put_strange_wal_aside(path: Path) -> None:
    """It is kept, under a name that SQLite does not know. Raises StoreError when the database is in use, or OSError."""
    with _guard:
        if not has_strange_wal(path):
            return
        with alone(path):
            if has_strange_wal(path):
                os.rename(f"{path}-wal", fresh_name(Path(f"{path}-wal")))
                forget(path)


def keep(path: Path) -> Path:
    """Give the database, with its own WAL, a second name, and return it. Raises OSError."""
    kept = fresh_name(path)
    for end in ("", *ENDINGS):
        if end != "-shm" and Path(f"{path}{end}").exists():
            try:
                os.link(f"{path}{end}", f"{kept}{end}")
            except OSError:  # a file system without hard links
                shutil.copy2(f"{path}{end}", f"{kept}{end}")
    return kept


def forget(path: Path) -> None:
    """Remove what lies beside it. Raises OSError."""
    for end in ENDINGS:
        Path(f"{path}{end}").unlink(missing_ok=True)


def fresh_name(path: Path) -> Path:
    """A name beside `path` that no file has."""
    number = 1
    while True:
        name = path.with_name(f"{path.name}.old{'' if number == 1 else number}")
        if not any(Path(f"{name}{end}").exists() for end in ("", *ENDINGS)):
            return name
        number += 1


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody has the database open inside, and who opens it waits. Raises StoreError when somebody has.

    Not for a process that has it open itself: it would lose SQLite's locks. On Windows an open file can't be renamed.
    """
    if sys.platform == "win32" or not path.exists():
        yield
        return
    import fcntl

    with as_sentences(path):
        file = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKS_LENGTH, _LOCKS_START)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StoreError(f"{path} is in use by another dmem; close that and try again") from None
        yield
    finally:
        with suppress(OSError):
            os.close(file)
