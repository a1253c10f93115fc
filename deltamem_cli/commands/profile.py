"""`dmem profile`: names with their own memory, model, adapter, system prompt and sampling options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltamem_cli import paths
from deltamem_cli.commands.finding import open_store, read_store
from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.model import adapter_option, check_no_folder, grouped, model_option
from deltamem_cli.commands.options.stored import (
    DatabaseOption,
    DryRunOption,
    JsonOption,
    KeyValueCommand,
    OptionOption,
    YesOption,
)
from deltamem_cli.errors import UsageError
from deltamem_cli.session.wiping import wipe
from deltamem_cli.terminal.output import count, moment, note, print_json, printable
from deltamem_cli.terminal.questions import confirm
from deltamem_cli.text import short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltamem_cli.store.records import Profile

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Profile.", autocompletion=completion.profiles)]
NewNameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name for the profile.")]


@dataclass(frozen=True)
class Settings:
    """What a profile can be given, sampling options apart; None: it is not named."""

    model: Annotated[str | None, model_option("Model to use: a name, or a GGUF file.")] = None
    adapter: Annotated[str | None, adapter_option("Adapter to use: a name, or a GGUF file.")] = None
    system: Annotated[str | None, typer.Option("-s", "--system", metavar="TEXT", help="System prompt.")] = None
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="FILE", help="Chat template (jinja) to use instead of the model's own."),
    ] = None
    write: Annotated[
        Literal["all", "user"] | None,
        typer.Option("--write", help="What to remember: everything, or only what you say."),
    ] = None


NONE = Settings()


@app.callback()
def profile() -> None:
    """Manage profiles: each has its own memory and settings.

    A profile has a model, an adapter, a chat template, a system prompt and sampling options of its own.

    \b
    Examples:
      dmem profile create work --system "You are terse."
      dmem chat --profile work
    """


@app.command("list")
def list_(as_json: JsonOption = False, database: DatabaseOption = None) -> None:
    """List the profiles.

    \b
    Examples:
      dmem profile list
      dmem profile list --json
    """
    from deltamem_cli.store import conversations, profiles

    with read_store(database) as store:
        found = [(one, conversations.all_of(store, one)) for one in profiles.all_of(store)]
    if as_json:
        print_json([{**_facts(one), "conversations": len(talks), "turns": _turns(talks)} for one, talks in found])
        return
    if not found:
        note("No profiles yet; a chat creates one: dmem chat --profile NAME")
    for one, talks in found:
        last = f", last on {moment(talks[0].updated)}" if talks else ""
        what = f"{count(len(talks), 'conversation')}, {count(_turns(talks), 'turn')}{last}"
        uses = f", {printable(one.model)}" if one.model else ""
        typer.echo(f"{one.name:<20} {what}{uses}")


@app.command()
def show(name: NameArgument, as_json: JsonOption = False, database: DatabaseOption = None) -> None:
    """Show a profile's settings.

    \b
    Examples:
      dmem profile show work
    """
    from deltamem_cli.store import conversations, profiles

    with read_store(database) as store:
        one = profiles.get(store, name)
        talks = conversations.all_of(store, one)
    if as_json:
        print_json({**_facts(one), "conversations": len(talks), "turns": _turns(talks)})
    else:
        _print(one)
        typer.echo(f"{'kept':<14}{count(len(talks), 'conversation')}, {count(_turns(talks), 'turn')}")


@app.command(cls=KeyValueCommand)
@grouped
def create(
    name: NewNameArgument,
    settings: Settings = NONE,
    option: OptionOption = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Create a profile.

    \b
    Examples:
      dmem profile create work --system "You are terse." -o temperature 0.3
    """
    from deltamem_cli.store import profiles

    options, given = parse_options(option or []), _texts(settings)
    with open_store(database, create=True) as store:
        made = profiles.create(store, name, **given, options=options)
    _report(made, as_json)


@app.command("set", cls=KeyValueCommand)
@grouped
def set_(
    name: NameArgument,
    settings: Settings = NONE,
    option: OptionOption = None,
    unset: Annotated[
        list[str] | None,
        typer.Option("--unset", metavar="KEY", help="model, adapter, system, template, write or a sampling option."),
    ] = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Change some of a profile's settings.

    \b
    Examples:
      dmem profile set work -o temperature 0.7 --unset system
    """
    from deltamem_cli.store import profiles

    given = _texts(settings)
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not changes and not option and not unset:
        raise UsageError(f"There is nothing to set for profile {name}; see: dmem profile set --help")
    asked = parse_options(option or [])
    with open_store(database) as store, store.transaction():
        options = {**profiles.get(store, name).options, **asked}
        for key in unset or []:
            if key in given:
                changes[key] = None
            elif key in options:
                del options[key]
            else:
                raise UsageError(f"{short(key)} is not set in profile {name}; see: dmem profile show {name}")
        changed = profiles.change(store, name, options=options, **changes)
    _report(changed, as_json)


@app.command()
def rename(
    name: NameArgument,
    to: Annotated[str, typer.Argument(metavar="NEW_NAME", help="New name.")],
    database: DatabaseOption = None,
) -> None:
    """Rename a profile. Its memory stays.

    \b
    Examples:
      dmem profile rename work office
    """
    from deltamem_cli.store import profiles

    with open_store(database) as store:
        profiles.rename(store, name, to)
    note(f"profile {name} is now {to}")


@app.command()
def delete(
    name: NameArgument,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
) -> None:
    """Delete a profile and all its conversations for good.

    No byte of them is left in the database files.

    \b
    Examples:
      dmem profile delete work --dry-run
      dmem profile delete work
    """
    from deltamem_cli.store import conversations, profiles

    with (read_store if dry_run else open_store)(database) as store:
        talks = conversations.all_of(store, profiles.get(store, name))
        what = f"profile {name} with {count(len(talks), 'conversation')} and {count(_turns(talks), 'turn')}"
        if dry_run:
            note(f"would delete {what}")
            return
        confirm(f"Delete {what}? This can't be undone.", yes)
        profiles.delete(store, name)
        wipe(store, note)
    note(f"deleted {what}")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options of replies, KEY=VALUE each, as numbers that the configuration would take."""
    from deltamem_cli.config.keys import KEYS

    known = {name.removeprefix("options."): key.kind for name, key in KEYS.items() if name.startswith("options.")}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        name = key.replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
            raise UsageError(f"There is no sampling option {short(key)}; {hint}")
        try:
            options[name] = known[name].from_text(text)
        except ValueError:
            raise UsageError(
                f"The option {short(key)} can't be {short(text)!r}; it must be {known[name].expects}"
            ) from None
    return options


def _texts(settings: Settings) -> dict[str, str | None]:
    """The settings as a profile keeps them, see store.profiles.SETTINGS. Raises EngineError for what is no template."""
    check_no_folder(settings.model, "model")
    check_no_folder(settings.adapter, "adapter")
    template = settings.template
    if template is not None:
        from deltamem_cli.engine import ChatTemplate

        template = paths.expanded(template).absolute()
        ChatTemplate.from_file(template)
    return {
        "model": _from_anywhere(settings.model),
        "adapter": _from_anywhere(settings.adapter),
        "system": settings.system,
        "template": str(template) if template else None,
        "write": settings.write,
    }


def _from_anywhere(said: str | None) -> str | None:
    """A name as it is; a file by its whole path, as it would be another one seen from another folder."""
    path = paths.expanded(said) if said else None
    return str(path.absolute()) if path and path.is_file() else said


def _turns(talks: Sequence[Any]) -> int:
    return sum(talk.n_turns for talk in talks)


def _facts(one: Profile) -> dict[str, Any]:
    return {
        "name": one.name,
        "model": one.model,
        "adapter": one.adapter,
        "system": one.system,
        "template": one.template,
        "write": one.write,
        "options": dict(one.options),
        "created": one.created,
    }


def _report(one: Profile, as_json: bool) -> None:
    if as_json:
        print_json(_facts(one))
    else:
        _print(one)


def _print(one: Profile) -> None:
    lines: Mapping[str, Any] = {
        "profile": one.name,
        "model": one.model,
        "adapter": one.adapter,
        "system": one.system,
        "template": one.template,
        "write": one.write,
        **{f"-o {key}": json.dumps(value) for key, value in one.options.items()},
        "created": moment(one.created),
    }
    for label, value in lines.items():
        if value is not None:
            typer.echo(f"{label:<13} {printable(value)}")
