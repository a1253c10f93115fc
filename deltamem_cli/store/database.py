"""One open database file: safe to open, private, transactional, really erased; knows nothing of turns or profiles.

Durability: WAL with synchronous=NORMAL. A commit is one write that no disk is waited for, so it survives the death of
the process at once; flush.py brings it to the disk moments later, and close() waits for that. Power lost in between
costs the last turn as a whole, never half of it: the WAL is checked frame by frame when it is read again.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deltamem_cli import files
from deltamem_cli.store import beside, migrations, read_only
from deltamem_cli.store.errors import StoreError, as_sentences, sentence
from deltamem_cli.store.flush import Flusher
from deltamem_cli.text import whole

if TYPE_CHECKING:
    from sqlite_utils import Database
    from typing_extensions import Self

    from deltamem_cli.store.lock_file import ConversationLock

BUSY_SECONDS = 30.0  # a commit takes milliseconds; only a vacuum of a big file comes near
_T = TypeVar("_T")
WAL_PAGES = 16_000  # 64 MB: checkpoints are flush.py's, but should it fail a commit makes one by itself


class Store:
    """An open database. Not for use by two threads at once."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self.connection = connection
        self.connection.row_factory = sqlite3.Row
        self.path = path
        self.locks: dict[str, ConversationLock] = {}  # conversations this store holds, see locks.py
        self._file: tuple[int, int] | None = None
        self._flusher: Flusher | None = None
        self._opened = ExitStack()  # what is to be done after the connection is closed
        self._seen: read_only.Seen | None = None  # of the files of a store that others can't tell of their writing

    @classmethod
    def open(cls, path: Path | str, *, create: bool = True, migrate_to: int = migrations.LATEST) -> Store:
        """Open `path`, made and brought up to date as needed; of an old one a copy is kept beside it until that is done.

        With `create` off a missing file reads as an empty database and nothing is made on disk.
        """
        path = _real(path)
        if not _exists(path):
            if not create:
                return cls.memory()
            _make_private_file(path)
        connection = None
        with as_sentences(path):
            beside.put_strange_wal_aside(path)
            beside.enter(path)
            file = _identity(path)
            try:
                connection = sqlite3.connect(
                    path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
                )
                _check_is_ours(connection, path)
                _close_to_others(path)
                _use_wal(connection)
                store = cls(connection, path)
                store._file, store._flusher = file, Flusher(path)
                store._configure()
                store._migrate(migrate_to)
                store._opened.callback(beside.leave, path)
            except BaseException:
                if connection is not None:
                    connection.close()
                beside.leave(path)
                raise
        return store

    @classmethod
    def memory(cls) -> Store:
        """A store that lives in this process alone, for temporary and read-only sessions."""
        store = cls(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False), None)
        store._configure()
        store._migrate(migrations.LATEST)
        return store

    @classmethod
    def look(cls, path: Path) -> Store:
        """Open an existing database to read alone: nothing is made, put right or brought up to date on disk."""
        path = _real(path)
        _exists(path)
        with as_sentences(path), ExitStack() as opened:
            connection, seen = read_only.connect(path, BUSY_SECONDS, opened)
            _check_is_ours(connection, path)
            store = cls(connection, path)
            store._seen, store._opened = seen, opened.pop_all()
        return store

    @classmethod
    def read(cls, path: Path | str) -> Store:
        """Open `path` to read alone, whatever its layout; where there is none it reads as an empty database."""
        path = _real(path)
        if not _exists(path):
            return cls.memory()
        with suppress(StoreError, OSError):  # reading goes around it; any other program would spoil the database
            beside.put_strange_wal_aside(path)
        store = cls.look(path)
        if store.layout == migrations.LATEST:
            return store
        with closing(store):
            copy = cls(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False), None)
            with as_sentences(path):
                store._steadily(lambda: store.connection.backup(copy.connection))
                copy._configure()
                copy._migrate(migrations.LATEST)
            copy.path = path
        return copy

    @property
    def layout(self) -> int:
        """The last migration that the file has seen."""
        return self._version()

    @property
    def db(self) -> Database:
        """The connection as sqlite-utils has it, for layouts and search.

        Made when asked for: importing it takes as long as everything else that `memory inspect` does.
        """
        from sqlite_utils import Database

        return Database(self.connection, execute_plugins=False)

    @property
    def name(self) -> str:
        """The path, as messages call it."""
        return str(self.path) if self.path else "the temporary database"

    def copy_to(self, path: Path) -> None:
        """Write what is committed as another database, whole or not at all, readable by its owner alone."""
        with as_sentences(path), files.replacing(path) as draft, closing(sqlite3.connect(draft)) as copy:
            self._steadily(lambda: self.connection.backup(copy))
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, that a backup may be moved as

    def close(self) -> None:
        """Let go of every conversation and close, everything being on the disk. The last to close empties the WAL."""
        for lock in list(self.locks.values()):
            lock.release()
        self.locks.clear()
        if self._flusher:
            self._flusher.wait()
        with suppress(sqlite3.Error):
            self.connection.close()
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Takes the write lock first, so that what is read inside is still true when it commits.

        Inside another transaction it is a part of that one.
        """
        if self.connection.in_transaction:
            yield
            return
        self._check_still_there()
        with as_sentences(self.name):
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield
                self.connection.execute("COMMIT")
                if self._flusher:
                    self._flusher.soon()
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back already; its own error is the one to show
                    self.connection.rollback()
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Several queries that see one and the same moment, whatever others commit meanwhile; never waits."""
        if self.connection.in_transaction:
            yield
            return
        with as_sentences(self.name):
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.connection.rollback()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Every row of a query. A list, because a half-read cursor would keep the WAL from being emptied."""
        with as_sentences(self.name):
            return self._steadily(lambda: [dict(row) for row in self.connection.execute(sql, _bound(parameters))])

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> dict[str, Any] | None:
        """The first row, None when there is none. Raises StoreError."""
        return next(iter(self.rows(sql, parameters)), None)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Change rows inside the open transaction."""
        self.connection.execute(sql, _bound(parameters))

    def insert(self, table: str, **values: Any) -> int:
        """Insert one row inside the open transaction and return its rowid."""
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        cursor = self.connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", _bound(values.values()))
        return int(cursor.lastrowid or 0)

    def scrub(self, *, patience: float = BUSY_SECONDS) -> None:
        """Wipe the bytes of everything that was deleted from the database file, its WAL and its search indexes.

        secure_delete zeroes what a DELETE frees, but copies remain: words in FTS segments, cells that b-tree pages
        left behind when they were rearranged, old pages in the WAL. So: rebuild the indexes, write the file anew, and
        cut the WAL to nothing. Blocks that the file system has freed are out of an application's reach.

        patience: seconds to wait for others that read or write. Raises StoreError; it can be done again.
        """
        left = "Bytes of what was deleted could not be wiped yet"
        self.connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}").fetchall()
        try:
            with self.transaction():
                for index in ("messages_fts", "messages_trigram"):
                    self.execute(f"INSERT INTO {index} ({index}) VALUES ('rebuild')")
            with as_sentences(self.name):
                self.connection.execute("VACUUM")
                busy = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except StoreError as error:
            raise StoreError(f"{left}: {error}, and then run: dmem memory scrub") from error
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}").fetchall()
        if busy and self.path:
            raise StoreError(
                f"{left} because another program is reading {self.path}; the next command wipes them, or close that "
                "program and run: dmem memory scrub"
            )

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file; empty when it is sound."""
        found = [row["integrity_check"] for row in self.rows("PRAGMA integrity_check")]
        found += [f"row without its parent in {row['table']}" for row in self.rows("PRAGMA foreign_key_check")]
        return [line for line in found if line != "ok"]

    def counts(self) -> dict[str, int]:
        """How many profiles, conversations and turns it keeps."""
        tables = ("profiles", "conversations", "turns")
        return {table: self.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in tables}

    def _steadily(self, read: Callable[[], _T]) -> _T:
        """What `read` finds; where the connection can't see that others write, found again if somebody did meanwhile."""
        while True:
            try:
                found = read()
            except sqlite3.Error:
                if not self._overtaken():
                    raise
            else:
                if not self._overtaken():
                    return found
            assert self.path
            inside = self.connection.in_transaction
            self._opened.close()
            self.connection, self._seen = read_only.connect(self.path, BUSY_SECONDS, self._opened)
            self.connection.row_factory = sqlite3.Row
            if inside:
                self.connection.execute("BEGIN")

    def _overtaken(self) -> bool:
        return self._seen is not None and self.path is not None and read_only.seen(self.path) != self._seen

    def _configure(self) -> None:
        for pragma in (
            "foreign_keys = ON",
            "secure_delete = ON",
            "synchronous = NORMAL",
            "temp_store = MEMORY",  # a VACUUM must not leave transcripts in the system's temporary folder
            f"wal_autocheckpoint = {WAL_PAGES}",
        ):
            self.connection.execute(f"PRAGMA {pragma}").fetchall()

    def _migrate(self, target: int) -> None:
        kept = Path(f"{self.path}.before-update") if self.path else None
        if self._version() != target:
            with self.transaction():  # asked again inside: another process may have migrated meanwhile
                version = self._version()
                if version and version < target and self.path and kept:
                    with Store.look(self.path) as before:  # this connection is writing, so it can't be copied from
                        before.copy_to(kept)
                if version < target:
                    migrations.apply(self.db, version, target)
        if kept and kept.exists():
            if self._flusher:
                self._flusher.wait()
            kept.unlink(missing_ok=True)

    def _version(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    @property
    def is_there(self) -> bool:
        """Whether the file that was opened is still the one at its path."""
        return self.path is None or _identity(self.path) == self._file

    def _check_still_there(self) -> None:
        # SQLite would go on writing into a deleted file, and the turn would be lost without a word.
        if not self.is_there:
            raise StoreError(
                f"{self.path} was removed or replaced while in use, so this was not saved; "
                "put it back or start dmem again"
            )


def _bound(parameters: Iterable[Any]) -> list[Any]:
    """As SQLite takes them: text is UTF-8, and names of files need not be."""
    return [whole(value) if isinstance(value, str) else value for value in parameters]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _real(path: Path | str) -> Path:
    # Locks, WAL and fsync are of files beside this one: a link to it must lead to the same ones.
    return Path(os.path.realpath(path))


def _exists(path: Path) -> bool:
    with as_sentences(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return False
    if not stat.S_ISREG(mode):  # a pipe would be waited for, a device may have no end
        raise StoreError(f"{path} is not a file, so it can't be a database; give another with --database")
    return True


def _make_private_file(path: Path) -> None:
    with as_sentences(path):
        files.make_folder(path.parent)
        # Made before SQLite sees it: SQLite gives -wal and -shm the mode of the database file.
        with suppress(FileExistsError):  # another thread's, whose locks closing a handle would drop
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _close_to_others(path: Path) -> None:
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(OSError):  # not ours, or not there
            if os.stat(name).st_mode & 0o077:
                os.chmod(name, 0o600)


def _check_is_ours(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if (application != migrations.APPLICATION_ID and not (empty and version == 0)) or version < 0:
        raise StoreError(sentence(path, sqlite3.DatabaseError("file is not a database")))
    if version > migrations.LATEST:
        raise StoreError(
            f"{path} was written by a newer dmem (layout {version}, this one knows up to {migrations.LATEST}); "
            "update deltamem-cli, or choose another database with --database"
        )


def _use_wal(connection: sqlite3.Connection) -> None:
    # The busy timeout does not cover this switch when two processes meet on a new file.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if "lock" not in str(error).lower() or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
