"""What was typed at the prompt, for the arrow keys: a private file, or only this process's memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from deltamem_cli import config, files
from deltamem_cli.commands.typed_lines import history_path
from deltamem_cli.text import whole


def open_history(*, keep: bool) -> History:
    """The user's history; with `keep` off, or as the configuration says, one that ends with the process."""
    if not keep or not config.value("history"):
        return InMemoryHistory()
    return PrivateHistory(history_path())


class PrivateHistory(FileHistory):
    """A history file that only its user may read. What can't be written is not kept: a chat must not end for it."""

    def __init__(self, path: Path) -> None:
        with suppress(OSError):
            files.make_folder(path.parent)
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
            super().store_string(whole(string))
