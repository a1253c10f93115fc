"""`dmem eval locomo` and the other public benchmarks: one command on one shape for each. Shows; the measuring is
evaluation/benchmarks/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deltamem_cli.commands.eval.measured import AnswersOption, measured, title_of
from deltamem_cli.commands.eval.progress import run_all
from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    AdapterOption,
    Hardware,
    ModelOption,
    WriteOption,
    grouped,
)
from deltamem_cli.commands.options.stored import JsonOption
from deltamem_cli.commands.output_file import check_picture, write_picture

if TYPE_CHECKING:
    from deltamem_cli.evaluation.benchmarks.shape import Benchmark

# what `dmem eval --help` says of each; the rest is read from its module when it runs
_TOLD = {
    "locomo": (
        "LoCoMo: two people's conversations over months.",
        (
            "Ten conversations, each told once and asked about 81 to 199 times: 1,540 questions in four categories, scored by "
            "token F1 on stems. The data is CC BY-NC 4.0 (2.8 MB)."
        ),
    ),
    "memoryagentbench": (
        "MemoryAgentBench: documents, books and lists.",
        (
            "Texts of up to a million characters, each told once in parts and asked about up to a hundred times. An answer is "
            "right if it contains one of the expected ones. The data is MIT (90 MB, parquet)."
        ),
    ),
    "longmemeval": (
        "LongMemEval: chats of a user with an assistant.",
        (
            "500 questions, each behind some forty chats of its own, which are told for it alone: this takes long. An answer is "
            "right if it contains the expected one; no model judges. The data is MIT (280 MB)."
        ),
    ),
    "hotpotqa": (
        "HotpotQA: questions that take two of ten passages.",
        (
            "7,405 questions, each with ten passages of its own, scored by token F1 and exact match of the first line. The data "
            "is CC BY-SA 4.0 (27 MB, parquet)."
        ),
    ),
}


def add_to(app: typer.Typer) -> None:
    """Makes a command of each."""
    for name in _TOLD:
        app.command(name)(grouped(_command(name)))


def _command(name: str) -> Callable[..., None]:
    def run(
        model: ModelOption = None,
        adapter: AdapterOption = None,
        data: Annotated[
            Path | None,
            typer.Option(
                "--data", metavar="PATH", help="The benchmark's data, a file or a folder.  [default: download]"
            ),
        ] = None,
        protocol: Annotated[
            Literal["own", "published"],
            typer.Option("--protocol", help="Prompts, sampling and order: ours, or those of published runs."),
        ] = "own",
        conversations: Annotated[
            int | None,
            typer.Option("--conversations", metavar="N", min=1, help="Only the first N conversations or texts."),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option("--limit", metavar="N", min=1, help="Only N questions of these, drawn at random."),
        ] = None,
        seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed.")] = 0,
        write: WriteOption = None,
        answers: AnswersOption = None,
        image: Annotated[
            Path | None, typer.Option("--image", metavar="FILE", help="Draw the scores as bars (.svg or .png).")
        ] = None,
        ctx_size: Annotated[
            int,
            typer.Option(
                "--ctx-size", metavar="N", min=512, help="Context size in tokens; the whole history is cut to it."
            ),
        ] = 8192,
        hardware: Hardware = DEFAULT_HARDWARE,
        as_json: JsonOption = False,
    ) -> None:
        from deltamem_cli.session.request import Request

        benchmark = _benchmark(name)
        request = Request(model=model, adapter=adapter, ctx_size=ctx_size, **asdict(hardware))
        settings = {"benchmark": name, "protocol": protocol, "seed": seed, "ctx_size": ctx_size}
        chosen = {"conversations": conversations, "limit": limit}
        _run(benchmark, request, write, settings, chosen, data, answers, image, as_json)

    summary, about = _TOLD[name]
    run.__doc__ = (
        f"{summary}\n\n{about}\n\nThe whole history is told once, and the memory alone answers, and the memory with the last "
        "turns; the controls are no memory, an empty one, another conversation's, and the whole history in the context, "
        "without and with the memory. Without --data, the data is downloaded. Your own memories are not touched. Ctrl-C "
        f"shows the results so far.\n\n\b\nExamples:\n  dmem eval {name} --limit 100\n"
        f"  dmem eval {name} --data PATH --answers answers.jsonl\n  dmem eval {name} --protocol published --conversations 1"
    )
    return run


def _benchmark(name: str) -> Benchmark:
    module = import_module(f"deltamem_cli.evaluation.benchmarks.{name}")
    found: Benchmark = getattr(module, name.upper())
    return found


def _run(
    benchmark: Benchmark,
    request: Any,
    write: str | None,
    settings: dict[str, Any],
    part: dict[str, int | None],
    data: Path | None,
    answers: Path | None,
    image: Path | None,
    as_json: bool,
) -> None:
    from deltamem_cli.evaluation.benchmarks import data as files
    from deltamem_cli.evaluation.benchmarks import measure as measuring

    if image:
        check_picture(image)
    paths = files.find(benchmark, data, lambda said: typer.echo(said, err=True))
    protocol, seed = settings["protocol"], settings["seed"]
    chosen, spare = measuring.sample(benchmark.read(paths, protocol), part["conversations"], part["limit"], seed)
    with measured(request, write) as (subject, who):
        about = {**who, "write": subject.write, **settings}
        found = measuring.Answers(about, answers)
        steps = measuring.measure(subject, benchmark, protocol, chosen, spare, found, seed)
        complete = run_all(steps, measuring.questions(chosen))
    title = f"{benchmark.title}, {protocol} protocol: {title_of(who)}"
    if as_json:
        from deltamem_cli.terminal.output import print_json

        print_json({**found.document(benchmark), "complete": complete})
    else:
        from deltamem_cli.commands.eval.benchmark_tables import show

        show(found, benchmark, title)
    if image:
        from deltamem_cli.evaluation.bars_picture import draw

        columns = {measuring.EVERY: "all", **{c: c for c in benchmark.categories}}
        main = benchmark.metrics[0]
        bars = draw(columns, measuring.MODES, lambda mode, c: found.share(mode, c, main), f"{title} ({main})")
        write_picture(image, bars)
    if not complete:
        raise typer.Exit(130)
