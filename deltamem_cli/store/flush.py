"""Brings committed turns from the system's memory to the disk, in the background; knows files, no tables.

A commit returns when the operating system has it: that survives the death of the process. What power loss asks for,
an fsync, takes from a millisecond to a second on a busy disk, and is done here while the user reads. SQLite's
synchronous=FULL would do the same fsync inside the commit.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

QUIET = 0.5  # seconds without a commit before a pass: one that is beside a commit holds it up
LONGEST = 3.0  # seconds that commits in close sequence are kept waiting for their pass
WAL_BYTES = 8 << 20  # beyond this the WAL is moved into the database, which the commit after it pays with an fsync


class Flusher:
    """One background pass at a time; what is committed during a pass is served by the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = Path(f"{path}-wal")
        self._guard = threading.Lock()
        self._wanted = False
        self._first = self._latest = 0.0  # of the commits that want a pass
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    def soon(self) -> None:
        """A pass in a moment; returns at once."""
        with self._guard:
            self._latest = time.monotonic()
            if not self._wanted:
                self._wanted, self._first = True, self._latest
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dmem-flush", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until everything that was committed before this call is on the disk."""
        thread = self._thread
        if thread is not None:
            self._hurry.set()
            thread.join()
            self._hurry.clear()

    def _run(self) -> None:
        while True:
            while not self._hurry.wait(QUIET):
                now = time.monotonic()
                if now - self._latest >= QUIET or now - self._first >= LONGEST:
                    break
            with self._guard:
                if not self._wanted:
                    self._thread = None
                    return
                self._wanted = False
            # Nobody is there to be told: what a failing disk says here it says again at the next commit.
            with suppress(OSError, sqlite3.Error):
                self._pass()

    def _pass(self) -> None:
        # Closing the WAL's handle drops no lock: SQLite holds its locks on the two other files.
        with open(self._wal, "rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        if size > WAL_BYTES:
            with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
