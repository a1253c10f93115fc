"""`dmem adapter train`: trains an adapter for a frozen base model and shows how it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.options import completion
from deltamem_cli.errors import DeltamemError, UsageError

if TYPE_CHECKING:
    from deltamem_cli.training.run import RunOptions

HIDDEN = ("event", "step", "seconds", "score")
RULES = "standard, lambda_outside or no_lambda"
CHOICE = "token, message_mean or sentence_mean"


def train(
    base: Annotated[
        str,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="A name of dmem model list, a GGUF file, or a Hugging Face directory.",
            autocompletion=completion.models,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Adapter file to write (.gguf).")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Conversations (.jsonl) instead of generated ones.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", min=1, help="Optimizer steps.  [default: 1000, or as many as --minutes allows]"
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="N", min=0.01, help="Stop after this many minutes of writing and training."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed for data and parameters.")] = 0,
    rank: Annotated[int, typer.Option("--rank", metavar="N", min=1, max=64, help="Width of each state.")] = 8,
    state_heads: Annotated[
        int, typer.Option("--state-heads", metavar="N", min=1, max=64, help="States per layer; 4 is MSW.")
    ] = 1,
    heads: Annotated[str, typer.Option("--heads", metavar="qkvo", help="Projections to correct.")] = "qo",
    layers: Annotated[
        str,
        typer.Option(
            "--layers", metavar="A-B,…", help="Layers to give a memory.  [default: all; with --from, unchanged]"
        ),
    ] = "",
    granularity: Annotated[str, typer.Option("--granularity", metavar="KIND", help=f"Write per {CHOICE}.")] = "token",
    update: Annotated[
        str | None, typer.Option("--update", metavar="RULE", help=f"What a write keeps: {RULES}.  [default: standard]")
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            "--beta",
            metavar="N",
            min=0.001,
            max=0.999,
            help="Initial mean write gate at told values.  [default: 0.5; with --from, unchanged]",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=2, help="Questions per step and device.")] = 48,
    lr: Annotated[float, typer.Option("--lr", metavar="N", min=0.0, help="Peak learning rate.")] = 1.5e-3,
    finish: Annotated[
        float,
        typer.Option("--finish", metavar="N", min=0.0, max=1.0, help="Share of the run spent training end to end."),
    ] = 0.1,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the checkpoint beside FILE.")] = False,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="ADAPTER",
            help="Start from this adapter, with its settings except --layers, --update and --beta.",
        ),
    ] = None,
    license: Annotated[str | None, typer.Option("--license", metavar="ID", help="License to record in FILE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per event.")] = False,
) -> None:
    """Train an adapter. Needs the extra "train".

    A checkpoint is saved beside FILE after every round of 128 steps: in x.run for x.gguf.

    Several GPUs, or several processes on a CPU, can train one adapter together; --batch applies to each.

    \b
    accelerate launch -m deltamem_cli adapter train ...
    ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m deltamem_cli adapter train ...

    \b
    Examples:
      dmem adapter train --base qwen2.5-coder-0.5b -o coder.deltamem.gguf --layers 12-23 --minutes 360
      dmem adapter train --base MODEL.gguf -o MODEL.deltamem.gguf --minutes 60
      dmem adapter train --base MODEL.gguf -o MODEL.deltamem.gguf --minutes 60 --resume
      dmem adapter train --base MODEL.gguf -o better.gguf --from MODEL.deltamem.gguf --data talks.jsonl
    """
    if output.suffix != ".gguf":
        raise UsageError(f"{output} does not have an adapter file's name; give -o a name that ends in .gguf")
    from deltamem_cli import models, paths

    try:
        from deltamem_cli.training.run import RunOptions, run_training
    except ImportError as error:
        raise DeltamemError(
            f"Training needs the package {error.name}, which is not installed; install the extra with: "
            'pip install "deltamem-cli[train]"'
        ) from None
    folder = paths.expanded(base)
    options = RunOptions(
        base=folder if folder.is_dir() else models.resolve(base).path, output=output, data=data, steps=steps, minutes=minutes, seed=seed, rank=rank,
        state_heads=state_heads, heads=heads, layers=layers, granularity=granularity, update=update, beta=beta,
        batch=batch, lr=lr, finish=finish, resume=resume, start_from=start_from, license=license,
    )  # fmt: skip
    if as_json:
        run_training(options, lambda event: typer.echo(json.dumps(event)))
    else:
        _show(options, run_training)


def _show(options: RunOptions, run_training: Any) -> None:
    """A bar on stderr, validations as lines above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=1.0, note="")

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                note = (
                    f"loss {event['loss']:.2f}  recall {event['exact']:.0%}  {event['tokens_per_second']:.0f} tokens/s"
                )
                progress.update(bar, completed=event["progress"], description=f"step {event['step']}", note=note)
            elif event["event"] in ("loading", "checking"):
                progress.update(bar, description=f"{event['event']} the model")
            elif event["event"] == "estimate":
                console.print(
                    f"about {_time(event['first_step'])} until the first step, {_time(event['whole'])} for the whole run"
                )
            elif event["event"] == "writing":
                progress.update(bar, description=f"writing, {event['part']}: {event['done']} of {event['of']}")
            elif event["event"] == "talk":
                progress.update(bar, description=f"asking the model for talk: {event['pairs']}")
            elif event["event"] == "validation":
                recall = "  ".join(f"{k} {v:.0%}" for k, v in event.items() if k not in HIDDEN)
                console.print(f"step {event['step']}: recall {recall}")
            elif event["event"] == "saved":
                console.print(f"wrote {event['path']}")

        run_training(options, report)


def _time(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
