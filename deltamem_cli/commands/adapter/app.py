"""`dmem adapter`: makes adapter files and says what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.adapter.list import default, list_, rm
from deltamem_cli.commands.adapter.train import train
from deltamem_cli.commands.adapter.verify import verify
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.terminal.output import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltamem_cli.adapter.format import Adapter

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def adapter() -> None:
    """Create, inspect and verify adapters.

    \b
    Examples:
      dmem adapter convert published/ -o qwen3-4b.deltamem.gguf --base qwen3-4b.gguf
      dmem adapter show qwen3-4b.deltamem.gguf
    """


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a published adapter.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Adapter file to write (.gguf).")],
    base: Annotated[str, typer.Option("--base", metavar="MODEL", help="Base model: a name or a GGUF file.")],
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace FILE if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Convert a published adapter to one GGUF file for a base model.

    Name the file MODEL.deltamem.gguf, put it beside MODEL.gguf, and it is found automatically.

    \b
    Examples:
      dmem adapter convert published/ -o qwen3-4b.deltamem.gguf --base qwen3-4b.gguf
    """
    from deltamem_cli.adapter.convert import convert as convert_adapter
    from deltamem_cli.models import resolve

    model = resolve(base).path
    _check_output(output, [model], "the base model", force)
    adapter = convert_adapter(folder, model, output)
    _report(output, adapter, as_json)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Adapters for one base model, two or more.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Adapter file to write (.gguf).")],
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace the file if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Average adapters where one was trained from the other.

    The mean may recall more than either of them.

    \b
    Examples:
      dmem adapter merge first.gguf second.gguf -o both.gguf
    """
    from deltamem_cli.adapter.merge import merge as merge_adapters

    if len(files) < 2:
        raise UsageError("Merging takes at least two adapters; name another one")
    _check_output(output, files, "one of the adapters", force)
    adapter = merge_adapters(files, output)
    _report(output, adapter, as_json)


@app.command()
def show(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A name in dmem adapter list, or a GGUF file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show an adapter's base model, variant, layers, size and origin.

    \b
    Examples:
      dmem adapter show qwen3-4b.deltamem.gguf
      dmem adapter show qwen3-4b.deltamem.gguf --json | jq .variant
    """
    from deltamem_cli.adapter.format import read_adapter
    from deltamem_cli.models import adapter_file

    file = adapter_file(adapter)
    if as_json:
        print_json(_facts(file, read_adapter(file)))
    else:
        _print_facts(file, read_adapter(file))


app.command("list")(list_)
app.command()(rm)
app.command()(default)
app.command()(verify)
app.command()(train)


def _check_output(output: Path, sources: Sequence[Path], what: str, force: bool) -> None:
    if output.is_dir():
        raise UsageError(f"{output} is a folder; give -o a file name, such as {output / 'adapter.gguf'}")
    if output.exists() and any(source.exists() and output.samefile(source) for source in sources):
        raise UsageError(f"{output} is {what} itself; give -o another name")
    if output.exists() and not force:
        raise DeltamemError(f"{output} already exists; replace it with --force or give -o another name")


def _report(output: Path, adapter: Adapter, as_json: bool) -> None:
    if as_json:
        print_json(_facts(output, adapter))
    else:
        typer.echo(f"wrote {output}")
        _print_facts(output, adapter)


def _facts(file: Path, adapter: Adapter) -> dict[str, Any]:
    from dataclasses import asdict

    from deltamem_cli.adapter.format import training_summary

    provenance = asdict(adapter.provenance)
    provenance["training"] = training_summary(adapter.provenance)
    return {
        "file": str(file),
        "size": adapter.size,
        **asdict(adapter.config),
        "variant": adapter.config.variant,
        "parameters": adapter.parameters,
        "types": adapter.types,
        "provenance": provenance,
    }


def _print_facts(file: Path, adapter: Adapter) -> None:
    from deltamem_cli.adapter.published import ranges
    from deltamem_cli.formats.errors import shown

    config, provenance = adapter.config, adapter.provenance
    writes = {"token": "per token", "message_mean": "per message", "sentence_mean": "per sentence"}
    own_lambda = "coupled to beta" if config.couple_lambda else "its own"
    if config.state_update == "no_lambda":
        own_lambda = "none"
    lines = {
        "file": f"{file} ({_size(adapter.size)})",
        "base": f"{config.architecture}, {config.block_count} layers, {config.embedding_length} wide",
        "variant": f"{config.variant} (writes {writes[config.write_granularity]}, "
        f"{_count(config.state_heads, 'state head')}, rank {config.rank})",
        "corrects": ", ".join(config.delta_heads)
        + (f" (o normed, eps {config.delta_o_norm_eps:.3g})" if config.delta_o_norm_eps is not None else ""),
        "gates": f"{'per row' if config.rankwise_gates else 'per head'}, lambda {own_lambda}",
        "update": f"{config.state_update}, q and k {'normalised' if config.normalize_qk else 'raw'}",
        "layers": f"{ranges(config.layers)} ({len(config.layers)} of {config.block_count})",
        "parameters": f"{adapter.parameters:,}",
        "types": ", ".join(f"{name} ({_count(count, 'tensor')})" for name, count in adapter.types.items()),
        "name": provenance.name,
        "source": provenance.source,
        "base model": provenance.base_model,
        "license": provenance.license,
        "description": provenance.description,
        "training": provenance.training,
    }
    for label, text in lines.items():
        if text is not None:
            # provenance may hold anything; a control character must not reach the terminal
            typer.echo(f"{label + ':':<13}{text if label == 'file' else shown(text)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1_000_000 else f"{size / 1e3:.1f} kB"
