"""`dmem config`: what is set, where it comes from, and changing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands import completing
from deltamem_cli.commands.shared import JsonOption, note, print_json, printable
from deltamem_cli.errors import DeltamemError

if TYPE_CHECKING:
    from deltamem_cli.config.keys import Key

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="Setting; dmem config list shows all.", autocompletion=completing.settings)
]


@app.callback()
def config() -> None:
    """Show and change the settings: one TOML file, under what environment variables say and flags say.

    \b
    Examples:
      dmem config list
      dmem config set model qwen3-4b
      dmem config set options.temperature 0.4
    """


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List every setting with its value, where that comes from, and what it is for.

    \b
    Examples:
      dmem config list
      dmem config list --json | jq '.[] | select(.source != "default")'
    """
    from deltamem_cli.config.keys import KEYS

    if as_json:
        print_json([_facts(key, documented=True) for key in KEYS.values()])
        return
    for key in KEYS.values():
        facts = _facts(key)
        origin = "" if facts["source"] == "default" else f"  ({facts['source']})"
        typer.echo(f"{key.name:<24}{_readable(key, facts['value'])}{origin}")
        typer.secho(f"    {key.help}", dim=True)


@app.command()
def get(name: KeyArgument, as_json: JsonOption = False) -> None:
    """Print the value of one setting; nothing when it has none.

    \b
    Examples:
      dmem config get model
      dmem config get options.temperature --json
    """
    from deltamem_cli.config import find

    key = find(name)
    facts = _facts(key)
    if as_json:
        print_json(facts)
    elif facts["value"] is None:
        note(_readable(key, None))
    else:
        typer.echo(facts["value"] if key.kind.type is str else _readable(key, facts["value"]))


# a value may be -1
@app.command("set", context_settings={"ignore_unknown_options": True})
def set_(
    name: KeyArgument,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="What it is to be.", autocompletion=completing.setting_values)
    ],
    as_json: JsonOption = False,
) -> None:
    """Write one setting into the file. Comments in it stay.

    \b
    Examples:
      dmem config set ctx_size 8192
      dmem config set gpu_layers -1
      dmem config set system "You are terse."
    """
    from deltamem_cli.config import find, set_value

    key = find(name)
    set_value(key.name, value)
    _report(key, as_json)


@app.command()
def unset(name: KeyArgument, as_json: JsonOption = False) -> None:
    """Take one setting out of the file.

    \b
    Examples:
      dmem config unset ctx_size
    """
    from deltamem_cli.config import file, find
    from deltamem_cli.config import unset as take_out

    key = find(name)
    if not take_out(key.name):
        note(f"{key.name} was not set in {file.location()}")
    _report(key, as_json)


@app.command()
def edit() -> None:
    """Open the file in $VISUAL or $EDITOR. A new one explains every setting.

    What is wrong keeps the old file: your text waits in a draft, and edit goes on with it.

    \b
    Examples:
      dmem config edit
    """
    from deltamem_cli.config import drafts, file
    from deltamem_cli.config.errors import ConfigError

    before = drafts.current()
    if drafts.begin(before):
        note(f"Going on with the draft {drafts.location()}")
    failed = _open_editor(drafts.location())
    try:
        changed = drafts.finish(before)
    except ConfigError as error:
        if not drafts.location().exists():
            raise
        raise ConfigError(
            f"{str(error).rstrip('.')}. Nothing was changed, and your text is kept: go on with dmem config edit, or "
            f"delete {drafts.location()}"
        ) from error
    if failed:
        raise failed
    note(f"wrote {file.location()}" if changed else "Nothing was changed.")


@app.command()
def path() -> None:
    """Print where the file is, or will be.

    \b
    Examples:
      dmem config path
    """
    from deltamem_cli.config import file

    typer.echo(str(file.location()))


def _open_editor(draft: Path) -> DeltamemError | None:
    """What went wrong; what was written before that is in the draft all the same."""
    import click

    try:
        click.edit(filename=str(draft))
    except click.ClickException as error:
        return DeltamemError(f"The editor did not work ({error.message.strip()}): set EDITOR to one that does.")
    return None


def _report(key: Key, as_json: bool) -> None:
    """What a change left behind."""
    facts = _facts(key)
    if as_json:
        print_json(facts)
        return
    wins = f", as {facts['source']} says" if facts["source"].startswith("environment") else ""
    note(f"{key.name} is {_readable(key, facts['value'])}{wins}")


def _facts(key: Key, *, documented: bool = False) -> dict[str, Any]:
    from deltamem_cli.config import source, value

    said, origin = value(key.name), source(key.name)
    if key.name.startswith("options.") and origin == "default":
        from deltamem_cli.models.recommending import recommended_for

        said, origin = recommended_for(value("model")).get(key.name.removeprefix("options."), (said, origin))
    facts = {"key": key.name, "value": str(said) if isinstance(said, Path) else said, "source": origin}
    if documented:
        facts |= {
            "default": key.default,
            "otherwise": key.otherwise or None,
            "variable": key.variable,
            "expects": key.kind.expects,
            "help": key.help,
        }
    return facts


def _readable(key: Key, value: Any) -> str:
    if value is None:
        return f"({key.otherwise})"
    return str(value).lower() if isinstance(value, bool) else printable(value)
