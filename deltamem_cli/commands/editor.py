"""The user's editor: opened on a file, or on a message, whose file is gone afterwards; after a kill, at the next start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltamem_cli import files
from deltamem_cli.errors import DeltamemError
from deltamem_cli.reading import whole_file
from deltamem_cli.text import decoded

# Of a folder in the system's folder for such things: reading a memory never writes beside it.
_PREFIX = "dmem-message-"
_LOCK = "lock"  # held while the editor is open


def open_editor(file: Path) -> None:
    """Returns when the editor is closed. Raises DeltamemError when it fails."""
    import click

    try:
        click.edit(filename=str(file))
    except click.ClickException as error:
        raise DeltamemError(f"The editor failed ({error.message.strip()}): set EDITOR to one that works.") from None


def edited(text: str) -> str:
    """`text` as the editor leaves it. Raises DeltamemError when it fails, OSError."""
    with _folder() as folder:
        file = folder / "message.md"
        file.write_bytes(text.encode())
        open_editor(file)
        return decoded(whole_file(file)).replace("\r\n", "\n")


def remove_left() -> None:
    """Deletes the messages that a killed dmem could not."""
    import tempfile

    with suppress(OSError), os.scandir(tempfile.gettempdir()) as found:
        for entry in found:
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError, files.NoLocks):  # another user's, too
                    _remove(Path(entry))


@contextmanager
def _folder() -> Iterator[Path]:
    """For its owner alone, with whatever the editor puts beside the file."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = None
    try:
        with suppress(files.NoLocks):
            lock = files.take_lock(folder / _LOCK)
        yield folder
    finally:
        if lock is not None:
            files.drop_lock(folder / _LOCK, lock)
        shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path) -> None:
    lock = files.take_lock(folder / _LOCK)
    if lock is not None:
        files.drop_lock(folder / _LOCK, lock)
        shutil.rmtree(folder, ignore_errors=True)
