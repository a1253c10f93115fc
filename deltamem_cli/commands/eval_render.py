"""Shows what `dmem eval recall` measured, as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.statistics import Share

if TYPE_CHECKING:
    from deltamem_cli.evaluation.report import Record, Report

NAMES = {
    r.NONE: "no memory",
    r.ZERO: "empty memory (zero state)",
    r.DONOR: "another conversation's memory (donor)",
    r.MEMORY: "memory",
    r.REPLAY: "memory + last turns again",
    r.CONTEXT: "all of it in the context, no memory",
    r.SEEN: "memory, values of the training",
}


def show(report: Report, title: str) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(f"{title}: recall by number of facts", report.facts, "{} facts"))
    console.print(_table("Recall over unrelated talk", report.distances, "{} tokens"))


def _table(title: str, rows: dict[int, dict[str, list[Record]]], column: str) -> Any:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("95 % interval, cases; tokens per answer")
    for key in rows:
        table.add_column(column.format(key), justify="right")
    for mode in r.MODES:
        cells = [row.get(mode, []) for row in rows.values()]
        if any(cells):
            table.add_row(
                NAMES[mode], *(f"{_percent(r.share(c))}\n{r.mean_tokens(c):.0f} tokens" if c else "" for c in cells)
            )
    return table


def _percent(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.0%} ({low:.0%}–{high:.0%}), {share.n}"
