"""Shares by category as bars with their intervals; knows no file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.recall_picture import COLOURS
from deltamem_cli.evaluation.shares import Share
from deltamem_cli.pictures.shapes import INK, PALE, Label, Line, Picture, Rect

_MARGIN, _LEFT, _TOP, _WIDTH = 24, 170, 64, 420
_BAR, _GAP = 8, 10


def draw(names: Mapping[str, str], modes: Sequence[str], share: Callable[[str, str], Share], title: str) -> Picture:
    """One group of bars per column, one below the other, and what the colours mean below.

    names: of the columns; share: by mode and column, those without a case are left out.
    """
    columns = [(c, name) for c, name in names.items() if any(share(mode, c).n for mode in modes)]
    modes = [m for m in modes if any(share(m, c).n for c, _ in columns)]
    group = _BAR * len(modes) + _GAP
    bottom = _TOP + group * len(columns)
    picture = Picture(_MARGIN + _LEFT + _WIDTH + 60, bottom + 40 + 18 * len(modes))
    picture.shapes.append(Label(_MARGIN, _MARGIN + 8, title))
    left = _MARGIN + _LEFT
    for percent in (0, 25, 50, 75, 100):
        x = left + _WIDTH * percent // 100
        picture.shapes.append(Line([(x, _TOP - 6), (x, bottom)], (225, 227, 231)))
        picture.shapes.append(Label(x - 10, _TOP - 12, f"{percent}%", PALE))
    for row, (column, name) in enumerate(columns):
        y = _TOP + row * group
        picture.shapes.append(Label(left - 8, y + group // 2, name, INK, right=True))
        for index, mode in enumerate(modes):
            found = share(mode, column)
            top = y + index * _BAR
            low, high = (left + _WIDTH * end for end in found.interval)
            picture.shapes.append(Rect(left, top, max(1, round(_WIDTH * found.value)), _BAR - 2, COLOURS[mode]))
            if found.n:
                picture.shapes.append(Line([(low, top + 3), (high, top + 3)], INK))
    for index, mode in enumerate(modes):
        y = bottom + 30 + 18 * index
        picture.shapes.append(Rect(left, y - 8, 12, 8, COLOURS[mode]))
        picture.shapes.append(Label(left + 20, y, r.NAMES[mode]))
    return picture
