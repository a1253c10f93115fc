"""What was typed at the prompt, for the arrow keys: a private file, or only this process's memory."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit.history import FileHistory, History

from deltamem_cli import config, files
from deltamem_cli.session import typed_lines
from deltamem_cli.session.typed_lines import TypedFor
from deltamem_cli.text import whole

if TYPE_CHECKING:
    from deltamem_cli.store.wiping import Typed


class ChatHistory(History):
    """A history of which lines can go while it is in use."""

    @abstractmethod
    def forget(self, deleted: Sequence[Typed]) -> None:
        """The arrow keys no longer find what was typed for what was deleted."""

    def _load_again(self) -> None:
        # prompt_toolkit knows no way to take a line back
        self._loaded_strings = list(self.load_history_strings())


def open_history(typed_for: Callable[[], TypedFor], *, keep: bool) -> ChatHistory:
    """The user's history; with `keep` off, or as the configuration says, one that ends with the process.

    typed_for: what is typed now is for that.
    """
    if not keep or not config.value("history"):
        return PassingHistory(typed_for)
    return PrivateHistory(typed_lines.history_path(), typed_for)


class PassingHistory(ChatHistory):
    """A history that nothing keeps."""

    def __init__(self, typed_for: Callable[[], TypedFor]) -> None:
        super().__init__()
        self._typed_for = typed_for
        self._lines: list[tuple[str, TypedFor]] = []

    def load_history_strings(self) -> Iterable[str]:
        """The entries, latest first."""
        return [text for text, _ in reversed(self._lines)]

    def store_string(self, string: str) -> None:
        """Adds an entry."""
        self._lines.append((string, self._typed_for()))

    def forget(self, deleted: Sequence[Typed]) -> None:
        """As ChatHistory says."""
        self._lines = [line for line in self._lines if not typed_lines.goes(*line, deleted)]
        self._load_again()


class PrivateHistory(FileHistory, ChatHistory):
    """A history file that only its user may read. What can't be written is not kept: a chat must not end for it."""

    def __init__(self, path: Path, typed_for: Callable[[], TypedFor]) -> None:
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

    def forget(self, deleted: Sequence[Typed]) -> None:
        """The file has the last word: what was taken out of it is not found any more."""
        self._load_again()
