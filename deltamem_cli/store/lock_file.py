"""One file that a process holds for as long as it may change a conversation; knows no database."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from deltamem_cli import files
from deltamem_cli.store.errors import ConversationBusy, Holder, as_sentences
from deltamem_cli.store.ids import now


class ConversationLock:
    """A held conversation; released by release(), by the store's close(), or by the end of the process."""

    def __init__(self, path: Path, conversation: str, *, brief: bool = False) -> None:
        """Take it or raise ConversationBusy at once. brief: to be told to others, see Holder."""
        self.path = path
        self.conversation = conversation
        with as_sentences(path):
            files.make_folder(path.parent)
            file = files.take_lock(path)
        if file is None:
            raise ConversationBusy(conversation, read_holder(path))
        self._file = file
        _write_holder(file, brief=brief)

    def release(self) -> None:
        """Lets go of the lock; may be called again."""
        if self._file >= 0:
            files.drop_lock(self.path, self._file)
        self._file = -1


def read_holder(path: Path) -> Holder:
    """Who holds the lock, as far as the file tells."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Holder()


def _write_holder(file: int, *, brief: bool) -> None:
    text = json.dumps({"pid": os.getpid(), "since": now(), "host": socket.gethostname(), "brief": brief})
    with suppress(OSError):  # a full disk must not keep anybody from reading their memory
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, text.encode())
