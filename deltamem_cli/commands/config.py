"""`dmem config`: what is set, where it comes from, and changing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.model import check_no_folder
from deltamem_cli.commands.options.stored import JsonOption
from deltamem_cli.errors import DeltamemError
from deltamem_cli.terminal.output import note, print_json, printable

if TYPE_CHECKING:
    from deltamem_cli.config.keys import Key

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="A setting in dmem config list.", autocompletion=completion.settings)
]


@app.callback()
def config() -> None:
    """Show and change settings.

    They are kept in one TOML file. Environment variables and flags win over it.

    \b
    Examples:
      dmem config list
      dmem config set model qwen3-4b
      dmem config set options.temperature 0.4
    """


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List every setting: its value, source and purpose.

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
        typer.echo(f"{key.name:<27}{_readable(key, facts['value'])}{origin}")
        typer.secho(f"    {key.help}", dim=True)


@app.command()
def get(name: KeyArgument, as_json: JsonOption = False) -> None:
    """Print the value of a setting, or nothing if it has none.

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
        str, typer.Argument(metavar="VALUE", help="The new value.", autocompletion=completion.setting_values)
    ],
    as_json: JsonOption = False,
) -> None:
    """Change a setting in the file. Keeps the file's comments.

    \b
    Examples:
      dmem config set ctx_size 8192
      dmem config set gpu_layers -1
      dmem config set system "You are terse."
    """
    from deltamem_cli.config import find, set_value

    key = find(name)
    if key.name in ("model", "adapter", "template"):
        check_no_folder(value, key.name)
    set_value(key.name, value)
    _report(key, as_json)


@app.command()
def unset(name: KeyArgument, as_json: JsonOption = False) -> None:
    """Remove a setting from the file.

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
    """Edit the file in $VISUAL or $EDITOR.

    A new file explains every setting. If your text has an error, the old file stays and your text is kept as a draft
    for the next edit.

    \b
    Examples:
      dmem config edit
    """
    from deltamem_cli.commands.editor import open_editor
    from deltamem_cli.config import drafts, file
    from deltamem_cli.config.errors import ConfigError

    before = drafts.current()
    if drafts.begin(before):
        note(f"Continuing with the draft {drafts.location()}")
    failed = None
    try:
        open_editor(drafts.location())
    except DeltamemError as error:
        failed = error  # what was written before that is in the draft all the same
    try:
        changed = drafts.finish(before)
    except ConfigError as error:
        if not drafts.location().exists():
            raise
        raise ConfigError(
            f"{str(error).rstrip('.')}. Nothing was changed, and your text is kept: continue with dmem config edit, or "
            f"delete {drafts.location()}"
        ) from error
    if failed:
        raise failed
    note(f"wrote {file.location()}" if changed else "Nothing was changed.")


@app.command()
def path() -> None:
    """Print the path of the file, even if it doesn't exist yet.

    \b
    Examples:
      dmem config path
    """
    from deltamem_cli.config import file

    typer.echo(str(file.location()))


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
