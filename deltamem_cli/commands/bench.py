"""`dmem bench`: what δ-mem costs in speed and memory on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.options.model import DEFAULT_HARDWARE, Hardware, ModelOption, grouped
from deltamem_cli.errors import UsageError
from deltamem_cli.terminal.output import print_json
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.speed import Comparison

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_PHASES = ("prefill", "decode")


@app.command()
@grouped
def bench(
    model: ModelOption = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="ADAPTER", help="Adapter.  [default: random, shaped like the published one]"),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help="Use a model with random weights: qwen3-4b (2.4 GB, cached after the first time).",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Number of rounds; the results are medians.")
    ] = 7,
    hardware: Hardware = DEFAULT_HARDWARE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare the speed with and without δ-mem.

    Both take turns on one model in one process. A round is a prefill of 512 tokens, then 64 single tokens. Each ratio is
    the median of the rounds' ratios. The splits of a graph are the parts that run on one device each: more of them with
    δ-mem than without are detours over the CPU.

    \b
    Examples:
      dmem bench
      dmem bench --synthetic qwen3-4b --rounds 3
    """
    from deltamem_cli.speed import measure
    from deltamem_cli.synthetic import SHAPES, cached_model, random_adapter

    if model and synthetic:
        raise UsageError("--model and --synthetic can't be used together; drop one of them")
    if synthetic and synthetic not in SHAPES:
        raise UsageError(f"--synthetic is {short(synthetic)}; it must be one of {', '.join(SHAPES)}")
    from deltamem_cli import models, paths
    from deltamem_cli.session.request import Request, engine_options, settle

    request = settle(Request(model=model, **asdict(hardware)), None)
    run: dict[str, Any] = {
        "options": engine_options(request),
        "gpu_layers": request.gpu_layers or 0,
        "rpc": request.rpc or "",
        "tensor_split": request.tensor_split or "",
        "rounds": rounds,
    }
    if synthetic:
        file = cached_model(synthetic, paths.cache_dir())
    else:
        file = models.resolve(request.model or models.STARTER).path
    with tempfile.TemporaryDirectory() as folder:
        if adapter is None:
            adapter_file = Path(folder) / "random.gguf"
            random_adapter(file, adapter_file)
        else:
            adapter_file = models.adapter_file(adapter)
        if as_json:
            report = measure(file, adapter_file, **run)
        else:
            from rich.console import Console

            with Console(stderr=True).status("warming up") as status:
                report = measure(
                    file,
                    adapter_file,
                    **run,
                    progress=lambda done: status.update(f"round {done} of {rounds}"),
                )
    if as_json:
        print_json(_facts(report))
    else:
        _print_table(file, report)


def _facts(report: Comparison) -> dict[str, Any]:
    facts: dict[str, Any] = {
        which: {phase: report.median(which, phase) for phase in _PHASES} for which in ("stock", "deltamem")
    }
    facts["ratio"] = {phase: report.ratio(phase) for phase in _PHASES}
    facts |= {"unit": "tokens/s", "added_bytes": report.added_bytes}
    return facts | {"compute": report.compute, "graph_splits": report.splits, **report.chosen}


def _print_table(model: Path, report: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{model.stem}, {report.chosen['threads']} threads, medians of {len(report.stock.decode)} rounds"
    )
    for column in ("tokens/s", "without δ-mem", "with δ-mem", "ratio"):
        table.add_column(column, justify="left" if column == "tokens/s" else "right")
    for phase, label in zip(_PHASES, ("prefill 512", "decode 64"), strict=True):
        stock, deltamem = report.median("stock", phase), report.median("deltamem", phase)
        table.add_row(label, f"{stock:.1f}", f"{deltamem:.1f}", f"{report.ratio(phase):.3f}")
    console = Console()
    console.print(table)
    console.print(f"memory added: {report.added_bytes / 1e6:.1f} MB")
    splits = report.splits
    console.print(
        f"computed {report.compute}; graph splits: {splits['stock']} without δ-mem, {splits['deltamem']} with δ-mem"
    )
