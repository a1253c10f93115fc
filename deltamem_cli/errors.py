"""The errors that a user may see: one plain sentence that names the thing, the cause and the next step."""

from __future__ import annotations


class DeltamemError(Exception):
    """Base of all user-visible failures; `cli.main` alone catches it and prints its text."""

    exit_code = 1


class UsageError(DeltamemError):
    """The command line asks for something that cannot be asked for."""

    exit_code = 2
