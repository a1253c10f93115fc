"""Connections that read a database and make, change or convert nothing on disk; knows no tables.

SQLite itself makes a WAL and its index to read a database that nobody has open. Told that the file is immutable it
makes nothing, but it does not see what others write then either: seen() tells whether anybody has begun to.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import ExitStack
from pathlib import Path

from deltamem_cli.store.beside import enter, leave

Seen = tuple[tuple[int, ...], ...]


def connect(path: Path, timeout: float, closing: ExitStack) -> tuple[sqlite3.Connection, Seen | None]:
    """A connection, and if it does not see what others write, what seen() said before. Raises sqlite3.Error, OSError.

    closing: gets the connection, and what has to be taken away after it.
    """
    wal, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    before = seen(path)
    strange = enter(path)
    closing.callback(leave, path)
    if strange or not wal.exists() or (not index.exists() and wal.stat().st_size == 0):
        return _connect(path, "ro&immutable=1", timeout, closing), before
    if index.exists():
        connection = _connect(path, "ro", timeout, closing)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return connection, None
        except sqlite3.OperationalError as error:
            if "lock" in str(error):
                raise
    # A process died and left a WAL, whose index is gone, or can't be made again where nothing can be written.
    folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="dmem-")))
    for file in (path, wal):
        shutil.copyfile(file, folder / file.name)
    return _connect(folder / path.name, "ro", timeout, closing), None


def seen(path: Path) -> Seen:
    """Another value than before when somebody has written to the database since, or is about to."""
    return _identity(path), _identity(Path(f"{path}-wal"))


def _connect(path: Path, mode: str, timeout: float, closing: ExitStack) -> sqlite3.Connection:
    uri = f"{path.as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    closing.callback(connection.close)
    return connection


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
