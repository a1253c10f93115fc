"""Shows what `dmem eval recall` measured, as tables for people; measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltamem_cli.evaluation import report as r

if TYPE_CHECKING:
    from deltamem_cli.evaluation.report import RecallReport, RecordedAnswer, Table
    from deltamem_cli.evaluation.shares import Share


def show(report: RecallReport, title: str) -> None:
    """Prints the tables of a report; those that nothing was measured for are left out."""
    from deltamem_cli.terminal.heat_map import console

    out = console()
    out.print(title)
    if report.facts:
        out.print(_table("Recall by facts told", report.facts))
    if len(report.distances) > 1:
        out.print(_table("Recall after tokens of unrelated talk", report.distances))
        for distance in report.distances:
            if distance and (relative := report.relative(distance)) is not None:
                out.print(f"After {distance} tokens: {relative:.0%} of the memory's recall without them.")
    before, after = report.update
    if before.n:
        out.print(f"Update: before it the old value in {_of(before)}; then, of those, the new one in {_of(after)}.")
    if report.perplexity_ratio is not None:
        out.print(
            f"Plain text: perplexity {report.perplexity_ratio:.3f} × {report.stock_perplexity:.2f} (no memory), "
            f"mean of {len(report.perplexities)} filled memories."
        )
    if report.kinds:
        out.print("By kind of fact (memory, values never seen in training): " + _kinds(report.kinds))


def _table(title: str, table: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable

    shown = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    shown.add_column("95% intervals")
    for key in table:
        shown.add_column(str(key), justify="right")
    shown.add_column("tokens per answer", justify="right")
    for mode in r.MODES:
        cells = [row.get(mode, []) for row in table.values()]
        if any(cells):
            tokens = [f"{r.mean_tokens(records):.0f}" if records else "-" for records in cells]
            shown.add_row(r.NAMES[mode], *map(_cell, cells), " / ".join(tokens))
    shown.add_row("cases", *(_range([len(records) for records in row.values()]) for row in table.values()), "")
    return shown


def _cell(records: list[RecordedAnswer]) -> str:
    """The share and its 95 % interval."""
    if not records:
        return ""
    found = r.share(records)
    low, high = found.interval
    return f"{found.value:.0%} ({100 * low:.0f}-{high:.0%})"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}-{high}"


def _of(share: Share) -> str:
    if not share.n:
        return "0 of 0"
    low, high = share.interval
    return f"{share.hits} of {share.n} ({share.value:.0%}, {100 * low:.0f}-{high:.0%})"


def _kinds(table: Table) -> str:
    shares = {kind: r.share(row[r.MEMORY]) for kind, row in table.items() if r.MEMORY in row}
    return ", ".join(f"{kind} {share.hits}/{share.n}" for kind, share in shares.items())
