"""What was typed at the prompt, for the arrow keys: a private file, or only this process's memory."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from deltamem_cli import config
from deltamem_cli.paths import data_dir


def open_history(*, keep: bool) -> History:
    """The user's history; with `keep` off, or as the configuration says, one that ends with the process."""
    if not keep or not config.value("history"):
        return InMemoryHistory()
    return PrivateHistory(history_path())


def history_path() -> Path:
    return data_dir() / "history"


class PrivateHistory(FileHistory):
    """A history file that only its user may read. What can't be written is not kept: a chat must not end for it."""

    def __init__(self, path: Path) -> None:
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            if os.stat(path).st_mode & 0o077:
                os.chmod(path, 0o600)
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def erase(texts: Collection[str]) -> None:
    """Takes entries that hold one of `texts` out of the history file, for turns that are to be forgotten.

    The file is written over, not only replaced. Raises OSError.
    """
    path = history_path()
    wanted = [text.strip() for text in texts if text.strip()]
    if not wanted or not path.exists():
        return
    kept = [entry for entry in FileHistory(str(path)).load_history_strings() if not _holds(entry, wanted)]
    lines = "".join("\n# kept\n" + "".join(f"+{line}\n" for line in entry.split("\n")) for entry in reversed(kept))
    data = lines.encode("utf-8", "surrogateescape")
    with path.open("r+b") as file:
        old = os.fstat(file.fileno()).st_size
        file.write(data + b"\0" * max(0, old - len(data)))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(len(data))


def _holds(entry: str, texts: Collection[str]) -> bool:
    # short texts ("yes") are a part of too much
    return any(text == entry.strip() or (len(text) > 8 and text in entry) for text in texts)
