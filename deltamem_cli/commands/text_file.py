"""A text file that the user names, read whole and as UTF-8."""

from __future__ import annotations

import errno
from pathlib import Path

from deltamem_cli import reading
from deltamem_cli.errors import DeltamemError
from deltamem_cli.text import decoded


def file_text(file: Path) -> str:
    """What a file says. Raises DeltamemError when it can't be read or is no text."""
    try:
        data = reading.whole_file(file)
    except OSError as error:
        way_out = "use a part of it" if error.errno == errno.EFBIG else "check the path"
        raise DeltamemError(f"{file} can't be read ({error.strerror or error}): {way_out}.") from None
    text = decoded(data)
    if "\0" in text:
        raise DeltamemError(f"{file} is not a text file: convert it to plain text first.")
    if not text.strip():
        raise DeltamemError(f"{file} is empty, so there is nothing to read: check the path.")
    return text
