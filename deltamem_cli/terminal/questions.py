"""Asks before something is deleted."""

from __future__ import annotations

import sys

import typer

from deltamem_cli.errors import UsageError


def confirm(question: str, yes: bool) -> None:
    """Go on only with --yes or a yes at the terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("This deletes, and there is no terminal to confirm it; add --yes, or try --dry-run first")
    from deltamem_cli.terminal.interrupts import lines_gathered

    with lines_gathered():
        typer.confirm(question, abort=True, err=True)
