"""Shows what a public benchmark measured, as a table for people; measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltamem_cli.evaluation import report as r

if TYPE_CHECKING:
    from deltamem_cli.evaluation.benchmarks.measure import Answers
    from deltamem_cli.evaluation.benchmarks.shape import Benchmark
    from deltamem_cli.evaluation.shares import Share

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

    from deltamem_cli.evaluation.benchmarks.measure import EVERY, MODES

    typer.echo(title)
    for metric in benchmark.metrics:
        names = {EVERY: "all", **benchmark.categories}
        columns = [c for c in names if any(answers.share(mode, c, metric).n for mode in MODES)]

        def line(name: str, cells: list[str], *costs: str) -> None:
            widths = [17 if c == EVERY else 8 for c in columns]  # noqa: B023 (called in this round alone)
            text = f"{name:<13}" + "".join(f"{t:>{w}}" for t, w in zip(cells, widths, strict=True))
            typer.echo(text + f"{costs[0]:>9}{costs[1]:>9}")

        typer.echo(f"\n{metric}, in percent")
        line("", [names[c] for c in columns], "tokens", "seconds")
        for mode in MODES:
            shares = {c: answers.share(mode, c, metric) for c in columns}
            if any(share.n for share in shares.values()):
                cells = [_interval(s) if c == EVERY else _percent(s) for c, s in shares.items()]
                line(_ROWS[mode], cells, f"{answers.tokens(mode):.0f}", f"{answers.seconds(mode):.2f}")
        line("questions", [str(max(answers.share(mode, c, metric).n for mode in MODES)) for c in columns], "", "")
    typer.echo(
        "\nall: with the 95% interval. + last turns: the memory, and the last turns shown again. all in view: the plain\n"
        "model with all of the history that fits. + memory: the same with the memory. tokens, seconds: per answer, from\n"
        "an empty context."
    )


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f}" if share.n else ""


def _interval(share: Share) -> str:
    """With its 95 % interval."""
    low, high = share.interval
    return f"{_percent(share)} ({100 * low:.1f}-{100 * high:.1f})" if share.n else ""
