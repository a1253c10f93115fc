"""`dmem doctor`: looks at everything that a chat needs and says what to do. Changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import typer

from deltamem_cli.commands.options.model import AdapterOption, ModelOption
from deltamem_cli.commands.options.stored import DatabaseOption, JsonOption, ProfileOption
from deltamem_cli.terminal.output import count, print_json, printable

if TYPE_CHECKING:
    from deltamem_cli.diagnosis import Check

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_COLORS = {"ok": "green", "warning": "yellow", "broken": "red"}
_INDENT = 24  # columns of verdict and name


@app.command()
def doctor(
    profile: ProfileOption = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Check that everything works, and suggest fixes. Changes nothing.

    Checks the installation, configuration, database, model and adapter: loads the last two as a chat does and has them
    read one word. Exits with 1 if something is broken.

    \b
    Examples:
      dmem doctor
      dmem doctor --model qwen3-4b
      dmem doctor --json | jq '.checks[] | select(.verdict != "ok")'
    """
    from deltamem_cli.diagnosis import Flags, diagnose, worst

    checks = []
    for check in diagnose(Flags(profile, model, adapter, database)):
        checks.append(check)
        if not as_json:
            _print(check)
    verdict = worst(checks)
    if as_json:
        print_json({"verdict": verdict, "checks": [_facts(check) for check in checks]})
    else:
        typer.echo(_summary(checks))
    if verdict == "broken":
        raise typer.Exit(1)


def _print(check: Check) -> None:
    color = _COLORS[check.verdict] if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else None
    head = f"{typer.style(f'{check.verdict:<8}', fg=color)}{check.name:<16}"
    typer.echo(head + _column(printable(check.found)))
    if check.advice:
        typer.echo(" " * _INDENT + _column(f"→ {printable(check.advice)}"))


def _column(text: str) -> str:
    """The text behind the names, wrapped between words where stdout is a terminal."""
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - _INDENT, 20)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * _INDENT}".join(lines)


def _summary(checks: list[Check]) -> str:
    broken = sum(check.verdict == "broken" for check in checks)
    warnings = sum(check.verdict == "warning" for check in checks)
    if broken:
        return f"{count(broken, 'thing')} broken" + (f", {count(warnings, 'warning')}." if warnings else ".")
    return f"It works, with {count(warnings, 'warning')}." if warnings else "Everything is in order."


def _facts(check: Check) -> dict[str, Any]:
    return {"check": check.name, "verdict": check.verdict, "found": check.found, "advice": check.advice or None}
