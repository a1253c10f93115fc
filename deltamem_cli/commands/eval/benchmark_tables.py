"""Shows what a public benchmark measured, as a table for people; measures nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from deltamem_cli.commands.eval.share_table import lines
from deltamem_cli.evaluation import report as r

if TYPE_CHECKING:
    from deltamem_cli.evaluation.benchmarks.measure import Answers
    from deltamem_cli.evaluation.benchmarks.shape import Benchmark

_ROWS = {
    r.NONE: "no memory",
    r.ZERO: "empty memory",
    r.DONOR: "another's",
    r.MEMORY: "memory alone",
    r.REPLAY: "+ last turns",
    r.CONTEXT: "all in view",
    r.BOTH: "+ memory",
}


def show(answers: Answers, benchmark: Benchmark, title: str) -> None:
    """Conditions as rows, categories as columns; a table for each metric."""
    import typer

    from deltamem_cli.evaluation.benchmarks.measure import EVERY

    costs = {
        "tokens": lambda mode: f"{answers.tokens(mode):.0f}",
        "seconds": lambda mode: f"{answers.seconds(mode):.2f}",
    }
    typer.echo(title)
    for metric in benchmark.metrics:
        typer.echo(f"\n{metric}, in percent")
        share = partial(answers.share, metric=metric)
        for line in lines(_ROWS, {EVERY: "all", **benchmark.categories}, share, costs, digits=1):
            typer.echo(line)
    typer.echo(
        "\nall: with the 95% interval. + last turns: the memory, and the last turns shown again. all in view: the plain\n"
        "model with all of the history that fits. + memory: the same with the memory. tokens, seconds: per answer, from\n"
        "an empty context."
    )
