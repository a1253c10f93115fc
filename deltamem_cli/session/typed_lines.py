"""The file of what was typed at the chat's prompt, and taking out of it what belongs to deleted turns; draws no prompt.

The format is prompt_toolkit's: an entry is lines that begin with +, whatever stands between entries does not. Before an
entry stands what it was typed for: a conversation and the number that its next turn was to get. So commands, mistyped
ones too, go with the turn that they led to.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_cli import files
from deltamem_cli.paths import data_dir

if TYPE_CHECKING:
    from deltamem_cli.store.wiping import Typed

TypedFor = tuple[str, int]  # a conversation and the number that its next turn was to get
_FOR = re.compile(r"^# .* conversation (\S+) turn (\d+)$", re.MULTILINE)
_PATIENCE = 1.0  # seconds that another process, which writes a line or takes some out, is waited for


@dataclass(frozen=True)
class _Entry:
    """head: the lines that stand before it."""

    head: str
    text: str

    @property
    def typed_for(self) -> TypedFor | None:
        """None: an earlier dmem did not write it down."""
        known = _FOR.search(self.head)
        return (known[1], int(known[2])) if known else None

    def __str__(self) -> str:
        return self.head + "".join(f"+{line}\n" for line in self.text.split("\n"))


def history_path() -> Path:
    """The file of typed lines, which need not exist."""
    return data_dir() / "history"


def add(text: str, conversation: str, turn: int) -> None:
    """Appends what was typed for turn `turn`. Raises OSError."""
    entry = _Entry(f"\n# {datetime.now()} conversation {conversation} turn {turn}\n", text)
    path = history_path()
    with _alone(path), path.open("ab") as file:
        file.write(str(entry).encode("utf-8", "replace"))


def erase(typed: Sequence[Typed]) -> None:
    """Takes out what was typed for these turns; the file is written over, not only replaced. Raises OSError."""
    path = history_path()
    if not path.exists():
        return
    with _alone(path), path.open("r+b") as file:
        old = file.read()
        entries = _entries(old.decode("utf-8", "surrogateescape"))
        kept = [entry for entry in entries if not goes(entry.text, entry.typed_for, typed)]
        if len(kept) == len(entries):
            return
        new = "".join(map(str, kept)).encode("utf-8", "surrogateescape")
        file.seek(0)
        file.write(new + b"\0" * max(0, len(old) - len(new)))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(len(new))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other dmem changes the file inside, if its file system has locks and the other one does not take long."""
    lock = path.with_name(f"{path.name}.lock")
    deadline, held = time.monotonic() + _PATIENCE, None
    while held is None:
        try:
            held = files.take_lock(lock)
        except (files.NoLocks, OSError):
            break
        if held is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
    try:
        yield
    finally:
        if held is not None:
            files.drop_lock(lock, held)


def _entries(text: str) -> list[_Entry]:
    entries: list[_Entry] = []
    for head, lines in re.findall(r"((?:^(?!\+).*\n)*)((?:^\+.*(?:\n|\Z))+)", text, re.MULTILINE):
        entries.append(_Entry(head, "\n".join(line[1:] for line in lines.removesuffix("\n").split("\n"))))
    return entries


def goes(text: str, typed_for: TypedFor | None, deleted: Sequence[Typed]) -> bool:
    """Whether a line, typed for this or nobody knows for what, goes with one of the deletions."""
    return any(_goes(text, typed_for, typed) for typed in deleted)


def _goes(text: str, typed_for: TypedFor | None, typed: Typed) -> bool:
    if not typed_for:
        return _holds(text, [*typed.said, *typed.systems])
    conversation, number = typed_for
    if conversation == typed.conversation and (
        number in typed.turns or (typed.since is not None and number >= typed.since)
    ):
        return True
    return _holds(text, typed.systems)  # typed for an earlier turn, or the conversation before


def _holds(entry: str, texts: Collection[str]) -> bool:
    argument = entry.partition(" ")[2].strip()  # of /remember and the like
    # short texts ("yes") are a part of too much
    return any(text in (entry.strip(), argument) or (len(text) > 8 and text in entry) for text in texts)
