"""What can go wrong in the store, as sentences; knows SQLite's own error texts, so that nobody else has to."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltamem_cli.errors import DeltamemError


class StoreError(DeltamemError):
    """The store cannot do what was asked; nothing that was committed before is touched."""


class NotFound(StoreError):
    """No profile, conversation or turn of that name."""


class InvalidName(StoreError):
    """What can't be the name of a profile."""


class FingerprintMismatch(StoreError):
    """A state was written by another model or adapter than the loaded one."""


@dataclass(frozen=True)
class Holder:
    """Who holds a conversation. Fields are None while the holder is just arriving.

    brief: it asks one question and ends by itself, so another one may wait for it.
    """

    pid: int | None = None
    since: str | None = None
    host: str | None = None
    brief: bool = False

    def __str__(self) -> str:
        if self.pid is None:
            return "another dmem"
        return f"process {self.pid} on {self.host} since {self.since}"


class ConversationBusy(StoreError):
    """Another process holds the conversation; `holder` says who."""

    def __init__(self, conversation: str, holder: Holder) -> None:
        self.conversation = conversation
        self.holder = holder
        super().__init__(
            f"Conversation {conversation} is in use by {holder}; close it there, or open it here with "
            "--read-only, or branch it with: dmem memory copy --to NEW"
        )


WAY_OUT = "put a backup in its place with: dmem log restore FILE, or move it away and dmem starts a new one"

# First match wins; the texts are those of sqlite3_errstr() and stable since 3.7.
_SENTENCES = {
    "could not decode": f"is damaged (a text in it is no UTF-8); {WAY_OUT}",  # first: the text follows, and may say anything
    "codec can't decode": f"is damaged (a text in it is no UTF-8); {WAY_OUT}",
    "disk is full": (
        "could not be written because the disk is full; what was saved before is intact, "
        "so free some space and try again"
    ),
    "readonly database": (
        "could not be written because it or its folder is read-only; make both writable, "
        "or choose another database with --database"
    ),
    "unable to open": (
        "could not be opened; check that its folder exists and that you may write there, "
        "or choose another database with --database"
    ),
    "not a database": (
        "is not a dmem database; choose another with --database, or move it away and dmem starts a new one"
    ),
    "malformed": f"is damaged; {WAY_OUT}",
    "no such table": f"is damaged ({{error}}); {WAY_OUT}",
    "no such column": f"is damaged ({{error}}); {WAY_OUT}",
    "no such tokenizer": (
        "could not be used because search needs SQLite 3.34 or newer; install dmem with a Python that has it"
    ),
    "no file locks": (
        "could not be used because its file system has no locks, so two programs could spoil each other's work there; "
        "choose a database on another disk with --database"
    ),
    "no such file": "could not be used because it or its folder does not exist; check the path",
    "is locked": "is being written by another dmem that doesn't finish; close that one and try again",
    "disk i/o error": (
        "could not be read or written (I/O error, often a full or failing disk); "
        "what was saved before is intact, so check the disk and try again"
    ),
}

_AS_SQLITE_SAYS = {
    errno.ENOSPC: "disk is full",
    errno.EDQUOT: "disk is full",
    errno.EACCES: "readonly database",
    errno.EPERM: "readonly database",
    errno.EROFS: "readonly database",
    errno.EIO: "disk i/o error",
    errno.ENOENT: "no such file",
    errno.ENOLCK: "no file locks",
}


def sentence(path: Path | str, error: Exception) -> str:
    """The one sentence for what SQLite or the operating system said about `path`."""
    text = _AS_SQLITE_SAYS.get(getattr(error, "errno", None) or 0, getattr(error, "strerror", None) or str(error))
    if text == "locking protocol":  # so SQLite calls a file system that grants it no locks
        text = "no file locks"
    for needle, rest in _SENTENCES.items():
        if needle in text.lower():
            return f"{path} {rest.format(error=text)}"
    return f"{path} could not be used ({text}); check it with: dmem doctor"


@contextmanager
def as_sentences(path: Path | str) -> Iterator[None]:
    """Turn what SQLite and the operating system raise inside the block into StoreError."""
    try:
        yield
    # Python decodes what SQLite says, which quotes a damaged table's name
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise StoreError(sentence(path, error)) from error
