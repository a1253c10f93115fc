"""The file of what was typed at the chat's prompt, and taking out of it what belongs to deleted turns; draws no prompt.

The format is prompt_toolkit's: an entry is lines that begin with +, whatever stands between entries does not.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_cli.paths import data_dir

if TYPE_CHECKING:
    from deltamem_cli.store.records import Turn


def history_path() -> Path:
    return data_dir() / "history"


def erase_turns(turns: Iterable[Turn]) -> None:
    """What is deleted from the transcript goes from here too: entries that hold what these turns' users said."""
    said = (message.text.strip() for turn in turns for message in turn.messages if message.role == "user")
    with suppress(OSError):  # a history that can't be written is not kept either
        _erase({text for text in said if text})


def _erase(texts: Collection[str]) -> None:
    """The file is written over, not only replaced. Raises OSError."""
    path = history_path()
    if not texts or not path.exists():
        return
    with path.open("r+b") as file:
        old = file.read()
        entries = _entries(old.decode("utf-8", "surrogateescape"))
        kept = [entry for entry in entries if not _holds(entry, texts)]
        if len(kept) == len(entries):
            return
        text = "".join("\n# kept\n" + "".join(f"+{line}\n" for line in entry.split("\n")) for entry in kept)
        new = text.encode("utf-8", "surrogateescape")
        file.seek(0)
        file.write(new + b"\0" * max(0, len(old) - len(new)))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(len(new))


def _entries(text: str) -> list[str]:
    entries: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.startswith("+"):
            entries[-1].append(line[1:])
        elif entries[-1]:
            entries.append([])
    return ["\n".join(lines) for lines in entries if lines]


def _holds(entry: str, texts: Collection[str]) -> bool:
    argument = entry.partition(" ")[2].strip()  # of /remember and the like
    # short texts ("yes") are a part of too much
    return any(text in (entry.strip(), argument) or (len(text) > 8 and text in entry) for text in texts)
