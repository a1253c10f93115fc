"""A memory in the terminal: heat maps that fit 100 columns, with colour and without; reads no database."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltamem_cli.memory_view import cells

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    from deltamem_cli.memory_view.metrics import LayerMetrics

MAX_WIDTH = 100
TILE, GAP = 10, 1
NUMBER = 10  # wide

# One character per level from weak to strong: blocks for positive, strokes for negative, so that the sign is
# readable without colour. The ASCII row is for terminals that cannot show blocks.
_POSITIVE, _NEGATIVE = "░▒▓█", ".-=#"
_POSITIVE_ASCII = "'+*@"
_COLOURS = {1: ("color(224)", "color(153)"), 2: ("color(217)", "color(117)"), 3: ("color(209)", "color(75)"),
            4: ("color(196)", "color(33)")}  # fmt: skip


def console() -> Console:
    """Where memories are drawn: stdout, at most 100 columns wide."""
    from rich.console import Console

    made = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    made.width = min(made.width, MAX_WIDTH) if made.is_terminal else MAX_WIDTH
    return made


def overview(out: Console, state: np.ndarray, metrics: Sequence[LayerMetrics]) -> None:
    """Every layer as a tile: its number, norm, effective rank and change above its heat map."""
    from rich.text import Text

    scale = cells.scale_of(state)
    per_row = max(1, (out.width + GAP) // (TILE + GAP))
    for start in range(0, len(metrics), per_row):
        some = range(start, min(start + per_row, len(metrics)))
        heads = Text((" " * GAP).join(f"L{metrics[i].layer:<3}{short(metrics[i].norm):>6}" for i in some), style="bold")
        below = Text((" " * GAP).join(_second_line(metrics[i]) for i in some), style="dim")
        out.print(heads)
        out.print(below)
        grids = [cells.levels(cells.grid(state[i]), scale) for i in some]
        for row in range(max(len(grid) for grid in grids)):
            line = Text()
            for grid in grids:
                for level in grid[row].tolist():
                    _cell(line, level)
                line.append(" " * (TILE + GAP - grid.shape[1]))
            line.rstrip()
            out.print(line)
        out.print()
    legend(out, scale)
    many = "" if state.shape[1] == 1 else f"; the strongest of {state.shape[1]} heads"
    out.print(Text(f"Above each map: layer, norm; effective rank, last change (Δ){many}.", style="dim"))


def layer_detail(out: Console, state: np.ndarray, metrics: LayerMetrics) -> None:
    """One layer with its numbers, head by head. state: [heads, rank, rank]."""
    from rich.text import Text

    scale = cells.scale_of(state)
    out.print(Text(f"layer {metrics.layer}", style="bold"), end="")
    out.print(f"  norm {metrics.norm:.4g}, effective rank {metrics.effective_rank:.2f}, changed {metrics.change:.4g}")
    for number, head in enumerate(state):
        if len(state) > 1:
            out.print(Text(f"\nhead {number}", style="bold"))
        _map_and_numbers(out, head, scale)
    out.print()
    legend(out, scale)


def _map_and_numbers(out: Console, head: np.ndarray, scale: float) -> None:
    """The map, and beside it as many columns of numbers as fit; the others below."""
    from rich.text import Text

    rank = len(head)
    cell = 2 if 2 * rank + NUMBER < out.width else 1
    columns = max(1, (out.width - cell * rank - 1) // NUMBER)
    for start in range(0, rank, columns):
        if columns < rank:
            numbers = "".join(f"{column:>{NUMBER}}" for column in range(start, min(start + columns, rank)))
            out.print(Text(" " * (cell * rank + 1) + numbers, style="bold"), no_wrap=True)
        for row, levels in zip(head.tolist(), cells.levels(head, scale).tolist(), strict=True):
            line = Text()
            for level in levels:
                _cell(line, level if start == 0 else 0, width=cell)
            line.append(" " + "".join(f"{value:>{NUMBER}.3g}" for value in row[start : start + columns]), style="dim")
            out.print(line, no_wrap=True)


def legend(out: Console, scale: float) -> None:
    """Prints the shades from lowest to highest, and where the strongest starts."""
    from rich.text import Text

    line = Text("− ")
    for level in range(-cells.TOP, cells.TOP + 1):
        _cell(line, level)
    line.append(f" +   the strongest shade starts at {scale / 2:.3g}, each weaker one at half the next")
    out.print(line)


def bar(value: float, highest: float, width: int = 20) -> str:
    """A bar for a table."""
    full = round(width * value / highest) if highest > 0 else 0
    return ("█" if _can_show(_POSITIVE) else "#") * full


def short(value: float) -> str:
    """A number in at most five characters."""
    if value == 0:
        return "0"
    if value >= 9999.5:
        return f"{value:.0e}".replace("+0", "")
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}"


def _second_line(metrics: LayerMetrics) -> str:
    rank = f"{metrics.effective_rank:.1f}" if metrics.effective_rank < 9.95 else f"{metrics.effective_rank:.0f}"
    sign = "Δ" if _can_show("Δ") else "d"
    return f"{rank:<4}{sign + short(metrics.change):>6}"


def _cell(line: Text, level: int, width: int = 1) -> None:
    if level == 0:
        line.append(" " * width)
        return
    shapes = (_POSITIVE if _can_show(_POSITIVE) else _POSITIVE_ASCII) if level > 0 else _NEGATIVE
    line.append(shapes[abs(level) - 1] * width, style=_COLOURS[abs(level)][level < 0])


def _can_show(characters: str) -> bool:
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
