"""`dmem model show`: what a model's file says of itself, and what goes with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.stored import JsonOption
from deltamem_cli.errors import DeltamemError
from deltamem_cli.terminal.output import print_json, printable, printable_lines, size

if TYPE_CHECKING:
    from deltamem_cli.models.listing import Listed


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name in dmem model list, or a GGUF file.", autocompletion=completion.models
        ),
    ],
    template: Annotated[bool, typer.Option("--template", help="Print only its chat template.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a model's size, context, license and matching adapters.

    \b
    Examples:
      dmem model show starter
      dmem model show qwen3-4b.gguf --template
    """
    from deltamem_cli.models import ram
    from deltamem_cli.models.facts import chat_template
    from deltamem_cli.models.listing import describe

    listed = describe(_entry(name), ram.of_machine())
    file = listed.entry.model
    own = chat_template(file) if file else None
    if template:
        if own is None:
            raise DeltamemError(f"{name} has no chat template to print: see dmem model show {name}")
        typer.echo(printable_lines(own))
        return
    facts = _facts(listed, own)
    if as_json:
        print_json(facts)
        return
    for label, text in _lines(listed, facts).items():
        if text:
            typer.echo(f"{label:<14} {printable(text)}")


def _entry(name: str) -> Any:
    """The entry of a name, or one made up for a file."""
    from deltamem_cli import models
    from deltamem_cli.models.listing import entry_of

    entries = models.catalogue()
    if name in entries and entries[name].model is None:
        return entries[name]  # not here: what is known of it
    found = models.resolve(name)
    return entries.get(found.name) or entry_of(found.path, entries) or models.Entry(name, "file", path=found.path)


def _facts(listed: Listed, template: str | None) -> dict[str, Any]:
    from deltamem_cli.engine.fingerprint import fingerprint
    from deltamem_cli.models.adapters import fitting, known_adapters

    entry, file = listed.entry, listed.entry.model
    known = [one.path for one in known_adapters()] if file else []
    return {
        **(asdict(listed.facts) if listed.facts else {}),
        "name": entry.name,
        "file": str(file) if file else None,
        "repo": entry.repo,
        "size": listed.size,
        "full_name": listed.facts.name if listed.facts else None,
        "license": entry.license or (listed.facts.license if listed.facts else None),
        "chat_template": template,
        "memory_needed": listed.needed,
        "fits": listed.fits,
        "fingerprint": fingerprint(file) if file else None,
        "adapter": listed.adapter,
        "adapters_that_fit": [str(path) for path in fitting(file, known)] if file else [],
    }


def _lines(listed: Listed, facts: dict[str, Any]) -> dict[str, str | None]:
    known, template = listed.facts, facts["chat_template"]
    others = [Path(path).name for path in facts["adapters_that_fit"] if path != facts["adapter"]]
    absent = listed.entry.model is None
    words = {"yes": "it fits", "tight": "it fits if other programs make room", "no": "more than this machine has"}
    return {
        "model": facts["name"],
        "file": facts["file"]
        or (f"not here; get it with: dmem model pull {facts['name']}" if facts["repo"] else "missing"),
        "repository": facts["repo"],
        "size": size(listed.size) if listed.size else None,
        "full name": facts["full_name"],
        "architecture": known.architecture if known else None,
        "parameters": f"{known.parameters:,}" if known else None,
        "quantization": known.quantization if known else None,
        "context": f"{known.context_length:,} tokens" if known else None,
        "embedding": f"{known.embedding_length:,}" if known else None,
        "layers": str(known.layers) if known else None,
        "chat template": None if absent else f"its own, {len(template):,} characters" if template else "none",
        "license": facts["license"] or "not stated",
        "memory": f"about {size(listed.needed)}: {words[listed.fits]}" if listed.needed and listed.fits else None,
        "fingerprint": facts["fingerprint"],
        "adapter": facts["adapter"] or "none, so it has no memory",
        "also fits": ", ".join(others),
    }
