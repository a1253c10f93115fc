"""`dmem model`: which models there are, how they come here and go again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.finding import read_store
from deltamem_cli.commands.model.show import show
from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.stored import DatabaseOption, DryRunOption, JsonOption, YesOption
from deltamem_cli.errors import DeltamemError
from deltamem_cli.terminal.output import count, note, print_json, printable, size
from deltamem_cli.terminal.questions import confirm
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.models.entries import Entry
    from deltamem_cli.models.listing import Listed
    from deltamem_cli.models.registry import ModelRecord

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

NameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Model name.  [default: its file name]")]


@app.callback()
def model() -> None:
    """Download, register and inspect models.

    You can also name models in the configuration, as [models.NAME] with repo and file (on the hub) or path, and with
    adapter: a file, a name in dmem adapter list, or the repository of a published one.

    \b
    Examples:
      dmem model list
      dmem model pull qwen3-4b
      dmem chat -m qwen3-4b
    """


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the models and whether they fit and remember.

    FITS says whether the model fits in this machine's RAM: yes, tight (other programs must make room) or no. MEMORY says
    whether it has a δ-mem adapter. The default model is marked with an asterisk.

    \b
    Examples:
      dmem model list
      dmem model list --json
    """
    from deltamem_cli.models.listing import listing

    found = listing()
    if as_json:
        print_json([_listed(one) for one in found])
        return
    rows = [("  NAME", "SIZE", "FITS", "MEMORY", "WHERE")] + [
        (
            ("* " if one.is_default else "  ") + one.entry.name,
            size(one.size) if one.size else "?",
            one.fits or "?",
            "yes" if one.adapter else "no",
            _where(one.entry) + (" (recommended)" if one.is_recommended else ""),
        )
        for one in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = (f"{printable(cell):<{width}}" for cell, width in zip(row, widths, strict=False))
        typer.echo("  ".join((*cells, printable(row[-1]))))


@app.command()
def pull(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|OWNER/REPO[:FILE]", help="What to download.", autocompletion=completion.models_to_pull
        ),
    ],
    name: NameOption = None,
    as_default: Annotated[bool, typer.Option("--default", help="Use it when no model is named.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Download a model and its δ-mem adapter, if one is known.

    NAME is a name in dmem model list, OWNER/REPO a repository of GGUF files on the Hugging Face hub, and FILE a file in
    it or a quantization (default: Q4_K_M). If the download is interrupted, run the same command to resume. HF_TOKEN,
    HF_ENDPOINT and HF_HOME work as in huggingface_hub.

    \b
    Examples:
      dmem model pull qwen3-4b --default
      dmem model pull bartowski/Qwen_Qwen3-4B-Instruct-2507-GGUF:Q8_0
    """
    from deltamem_cli.models.pulling import pull as pull_model

    record = pull_model(what, name=name, tell=lambda line: note(printable(line)))
    _report(record, "pulled", as_json)
    if as_default:
        _make_default(record.name)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="GGUF file; any part of a split model.")],
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a model file under a name. The file stays where it is.

    \b
    Examples:
      dmem model import ~/Downloads/mistral-7b-instruct.Q4_K_M.gguf --name mistral
    """
    from deltamem_cli.models.pulling import register

    _report(register(file, name), "registered", as_json)


app.command()(show)


@app.command()
def default(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A name, or a GGUF file.", autocompletion=completion.models)
    ] = None,
) -> None:
    """Show or choose the default model.

    \b
    Examples:
      dmem model default qwen3-4b
      dmem model default
    """
    from deltamem_cli import config, models

    if name is None:
        said = config.value("model")
        typer.echo(f"{printable(said or models.STARTER)} ({config.source('model')})")
        return
    models.resolve(name)
    _make_default(name)


@app.command()
def rm(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Model: a name in dmem model list.", autocompletion=completion.models),
    ],
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
) -> None:
    """Delete a downloaded model, or forget one of your files.

    Your own files are never deleted. Conversations stay, and can continue once the same model is back.

    \b
    Examples:
      dmem model rm qwen3-4b --dry-run
      dmem model rm mistral
    """
    from deltamem_cli import config, models
    from deltamem_cli.models.pulling import check_removable, remove

    entry = models.catalogue().get(name)
    if entry is None:
        raise DeltamemError(f"There is no model {short(name)}; see: dmem model list")
    check_removable(entry)
    deletes = entry.record is not None and entry.record.repo is not None and entry.path is None
    what = f"{name} ({size(entry.size)})" if deletes and entry.size else name
    waiting = _written_with(entry, database)
    if waiting:
        note(f"without {name}, {count(waiting, 'conversation')} with a memory that it wrote can't continue")
    if dry_run:
        note(f"would {'delete' if deletes else 'forget'} {what}")
        return
    if deletes:
        confirm(f"Delete {what}?", yes)
    remove(entry)
    note(
        f"deleted {what}" if deletes else f"forgot {what}" + (f", its file stays: {entry.model}" if entry.model else "")
    )
    if config.value("model") == name:
        note("it is still the default model; choose another with: dmem model default starter")


def _make_default(name: str) -> None:
    from deltamem_cli import config

    config.set_value("model", name)
    note(f"the default model is {printable(name)} now")
    if config.source("model").startswith("environment"):
        note(f"DMEM_MODEL is set and goes before it: {printable(config.value('model'))}")


def _written_with(entry: Entry, database: Path | None) -> int:
    """How many conversations have a memory that this model wrote, and no other one here can read."""
    if entry.model is None:
        return 0
    from deltamem_cli.engine.fingerprint import fingerprint
    from deltamem_cli.models import catalogue
    from deltamem_cli.store import conversations

    digest, n_bytes = fingerprint(entry.model), entry.model.stat().st_size
    others = [one.model for one in catalogue().values() if one.model and one.model != entry.model]
    if any(other.stat().st_size == n_bytes and fingerprint(other) == digest for other in others):
        return 0
    with read_store(database) as store:
        return len(conversations.written_with(store, model=digest))


def _where(entry: Entry) -> str:
    if entry.origin == "packaged":
        return "packaged"
    if entry.model is None:
        return f"get it with: dmem model pull {entry.name}" if entry.repo else f"missing: {entry.path or entry.name}"
    return entry.repo if entry.repo and entry.path is None else str(entry.model)


def _listed(one: Listed) -> dict[str, Any]:
    entry = one.entry
    return {
        "name": entry.name,
        "origin": entry.origin,
        "path": str(entry.model) if entry.model else None,
        "repo": entry.repo,
        "file": entry.file,
        "size": one.size,
        "license": entry.license,
        "sha256": entry.sha256,
        "memory_needed": one.needed,
        "fits": one.fits,
        "adapter": one.adapter,
        "default": one.is_default,
        "recommended": one.is_recommended,
        "facts": asdict(one.facts) if one.facts else None,
    }


def _report(record: ModelRecord, done: str, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "name": record.name,
                "files": [str(file) for file in record.files],
                "size": record.size,
                "repo": record.repo,
                "license": record.license,
                "adapter": str(record.adapter) if record.adapter else None,
                "facts": asdict(record.facts),
            }
        )
        return
    from deltamem_cli import models

    facts = record.facts
    what = (
        f"{facts.parameters / 1e9:.1f}B parameters" if facts.parameters >= 1e9 else f"{facts.parameters:,} parameters"
    )
    typer.echo(
        f"{done} {printable(record.name)}: {printable(facts.architecture)}, {what}, {facts.quantization}, "
        f"{size(record.size)}"
    )
    if models.resolve(record.name).adapter is None:
        note(f"it chats without memory, because it has no adapter: {_way_to_adapter(record)}")
    note(f"talk to it with: dmem chat -m {printable(record.name)}")


def _way_to_adapter(record: ModelRecord) -> str:
    from deltamem_cli.models.entries import known_adapter, remembering

    if known_adapter(record.facts):
        return f"get one with: dmem model pull {printable(record.name)}"
    return f"{remembering()} have one, or name one with: dmem adapter default {printable(record.name)} FILE"
