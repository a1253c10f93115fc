"""A table of shares for people: conditions as rows, categories as columns, what an answer costs behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltamem_cli.evaluation.shares import Share


def lines(
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    share: Callable[[str, str], Share],
    costs: Mapping[str, Callable[[str], str]],
    *,
    digits: int = 0,
) -> Iterator[str]:
    """rows, columns: their headings, the first column with its 95 % interval. share: by row and column; what has no case is
    left out. costs: of a row, by heading. digits: of percents, behind the point.
    """
    kept = [c for c in columns if any(share(row, c).n for row in rows)]
    widths = [(12 + 5 * digits if c == next(iter(columns)) else 7 + digits) for c in kept]

    def line(name: str, cells: list[str], behind: list[str]) -> str:
        text = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{name:<13}{text}" + "".join(f"{cell:>{8 + digits}}" for cell in behind)

    yield line("", [columns[c] for c in kept], list(costs))
    for row, name in rows.items():
        shares = [share(row, c) for c in kept]
        if any(one.n for one in shares):
            cells = [_interval(shares[0], digits), *(_percent(one, digits) for one in shares[1:])]
            yield line(name, cells, [cost(row) for cost in costs.values()])
    yield line("questions", [str(max(share(row, c).n for row in rows)) for c in kept], [""] * len(costs))


def _percent(share: Share, digits: int) -> str:
    return f"{100 * share.value:.{digits}f}" if share.n else ""


def _interval(share: Share, digits: int) -> str:
    low, high = (f"{100 * end:.{digits}f}" for end in share.interval)
    return f"{_percent(share, digits)} ({low}-{high})" if share.n else ""
