"""The errors that a user may see: one plain sentence that names the thing, the cause and the next step."""

from __future__ import annotations

import os

from deltamem_cli.text import sentence


class DeltamemError(Exception):
    """Base of all user-visible failures; `cli.main` alone catches it and prints its text."""

    exit_code = 1

    def __str__(self) -> str:
        return sentence(super().__str__())


class UsageError(DeltamemError):
    """The command line asks for something that cannot be asked for."""

    exit_code = 2


def refused_by_system(error: Exception) -> str | None:
    """The sentence for a path that the system can't take, where nobody has put it into words before; else None."""
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, bytes)):
        return None
    return sentence(
        f"{os.fsdecode(error.filename)} can't be used ({error.strerror}): check the path, or choose another one."
    )
