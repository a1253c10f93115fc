"""`dmem adapter list`, `rm` and `default`: the adapters on this machine and the models that they go with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.finding import read_store
from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.stored import DatabaseOption, DryRunOption, JsonOption, YesOption
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.terminal.output import count, note, print_json, printable, size
from deltamem_cli.terminal.questions import confirm
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.models.adapters import KnownAdapter


def list_(as_json: JsonOption = False) -> None:
    """List the adapters on this machine.

    These are packaged, configured, downloaded with a model, or found beside one.

    \b
    Examples:
      dmem adapter list
    """
    from deltamem_cli.models.adapters import known_adapters

    found = [_facts(one) for one in known_adapters()]
    if as_json:
        print_json(found)
        return
    for one in found:
        made_for = one["base_model"] or one["architecture"] or "a damaged or missing file"
        parts = [
            f"for {made_for}",
            f"rank {one['rank']}" if one["rank"] else None,
            size(one["size"]) if one["size"] else None,
            f"license {one['license'] or 'not stated'}",
            one["origin"],
            f"from {one['source']}" if one["source"] else None,
            f"used by {', '.join(one['models'])}" if one["models"] else None,
        ]
        typer.echo(f"{printable(one['name']):<20} {printable(', '.join(part for part in parts if part))}")


def rm(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Adapter: a name in dmem adapter list.", autocompletion=completion.adapters
        ),
    ],
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
) -> None:
    """Delete a downloaded adapter, or forget one of your files.

    \b
    Examples:
      dmem adapter rm qwen3-4b --dry-run
    """
    from deltamem_cli.models.adapters import check_removable, known_adapters, remove

    known = next((one for one in known_adapters() if one.name == name), None)
    if known is None:
        raise DeltamemError(f"There is no adapter {short(name)}; see: dmem adapter list")
    check_removable(known)
    deletes = known.origin == "converted"
    waiting = _written_with(known, database)
    if waiting:
        note(f"without {name}, {count(waiting, 'conversation')} with a memory that it wrote can't continue")
    if dry_run:
        note(f"would {'delete' if deletes else 'forget'} {name}")
        return
    if deletes:
        confirm(f"Delete the adapter {name}?", yes)
    remove(known)
    note(f"{'deleted' if deletes else 'forgot'} {name}")


def default(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Model: a name in dmem model list.", autocompletion=completion.models),
    ],
    adapter: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADAPTER]", help="A name in dmem adapter list, or a GGUF file.", autocompletion=completion.adapters
        ),
    ] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Go back to the model's own adapter.")] = False,
) -> None:
    """Show or choose the adapter that a model uses.

    \b
    Examples:
      dmem adapter default qwen3-4b mine.deltamem.gguf
      dmem adapter default qwen3-4b --unset
    """
    from deltamem_cli import models
    from deltamem_cli.models.adapters import set_default

    if adapter is not None and unset:
        raise UsageError("ADAPTER and --unset can't be used together; drop one of them")
    if adapter is not None or unset:
        set_default(model, adapter)
    entry = models.catalogue().get(model)
    if entry is not None and entry.model is None:
        found: object = entry.adapter  # what comes with it when it is pulled
    else:
        found = models.resolve(model).adapter
    typer.echo(printable(found or "none"))


def _written_with(known: KnownAdapter, database: Path | None) -> int:
    """How many conversations have a memory that this adapter wrote."""
    if not known.path.is_file():
        return 0
    from deltamem_cli.engine.fingerprint import fingerprint
    from deltamem_cli.store import conversations

    with read_store(database) as store:
        return len(conversations.written_with(store, adapter=fingerprint(known.path)))


def _facts(known: KnownAdapter) -> dict[str, Any]:
    from deltamem_cli.adapter.format import read_adapter

    facts: dict[str, Any] = {
        "name": known.name,
        "file": str(known.path),
        "origin": known.origin,
        "models": list(known.models),
    }
    try:
        adapter = read_adapter(known.path)
    except DeltamemError:
        return facts | dict.fromkeys(("architecture", "base_model", "rank", "size", "license", "source"))
    return facts | {
        "architecture": adapter.config.architecture,
        "base_model": adapter.provenance.base_model,
        "rank": adapter.config.rank,
        "size": adapter.size,
        "license": adapter.provenance.license,
        "source": adapter.provenance.source,
    }
