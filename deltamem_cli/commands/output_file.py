"""Files that the user names for a command to write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.terminal.output import note

if TYPE_CHECKING:
    from deltamem_cli.pictures.shapes import Picture


def refuse_existing(file: Path, force: bool) -> None:
    """Raises UsageError for a folder, and for a file that is there unless `force`."""
    if os.path.isdir(file):
        raise UsageError(f"{file} is a folder; give a file name")
    if os.path.isfile(file) and not force:  # a pipe or a device is written into
        raise UsageError(f"{file} already exists; replace it with --force or give another name")


def check_picture(file: Path) -> None:
    """Raises UsageError for a name that says neither SVG nor PNG."""
    if file.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"{file} is neither .svg nor .png; give --image a name that ends in one of them")


def write_picture(file: Path, picture: Picture) -> None:
    """Write an .svg or .png file, and say so."""
    check_picture(file)
    if file.suffix.lower() == ".svg":
        from deltamem_cli.pictures.svg import svg

        data = svg(picture)
    else:
        from deltamem_cli.pictures.png import png

        data = png(picture)
    write_file(file, data)
    note(f"wrote {file}")


def write_file(file: Path, data: bytes) -> None:
    """What is kept in a file of the user's, for its owner alone: whole, or the old one stays. Raises DeltamemError."""
    from deltamem_cli import files

    try:
        files.write(file, data)
    except FileNotFoundError as error:
        raise DeltamemError(
            f"{file} could not be written because its folder does not exist: check the path."
        ) from error
    except OSError as error:
        kept = "; the old one is intact" if os.path.exists(file) else ""
        raise DeltamemError(
            f"{file} could not be written ({error.strerror or error}){kept}: make room, or choose another place."
        ) from error
