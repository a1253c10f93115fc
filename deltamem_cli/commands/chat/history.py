"""What was typed at the prompt, for the arrow keys: a private file, or only this process's memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from deltamem_cli import config, files
from deltamem_cli.session import typed_lines
from deltamem_cli.text import whole


def open_history(typed_for: Callable[[], tuple[str, int]], *, keep: bool) -> History:
    """The user's history; with `keep` off, or as the configuration says, one that ends with the process.

    typed_for: the conversation and the number of the turn that what is typed now is for.
    """
    if not keep or not config.value("history"):
        return InMemoryHistory()
    return PrivateHistory(typed_lines.history_path(), typed_for)


class PrivateHistory(FileHistory):
    """A history file that only its user may read. What can't be written is not kept: a chat must not end for it."""

    def __init__(self, path: Path, typed_for: Callable[[], tuple[str, int]]) -> None:
        self._typed_for = typed_for
        with suppress(OSError):
            files.make_folder(path.parent)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            if os.stat(path).st_mode & 0o077:
                os.chmod(path, 0o600)
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """The entries, latest first; none when the file can't be read."""
        with suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        """Appends an entry; does nothing when the file can't be written."""
        with suppress(OSError):
            typed_lines.add(whole(string), *self._typed_for())
