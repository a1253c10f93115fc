"""Right answers by category as bars with their intervals; knows no file format."""

from __future__ import annotations

from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.recall_picture import COLOURS
from deltamem_cli.evaluation.talk import ALL_TOLD, MODES, Answers
from deltamem_cli.evaluation.talk_cases import CATEGORIES
from deltamem_cli.pictures.shapes import INK, PALE, Label, Line, Picture, Rect

_MARGIN, _LEFT, _TOP, _WIDTH = 24, 170, 64, 420
_BAR, _GAP = 8, 10


def draw(answers: Answers, title: str) -> Picture:
    """One group of bars per category, one below the other, and what the colours mean below."""
    columns = [(c, n) for c, n in ((ALL_TOLD, "all but never told"), *CATEGORIES.items()) if _any(answers, c)]
    modes = [m for m in MODES if any(answers.share(m, c).n for c, _ in columns)]
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
            share = answers.share(mode, column)
            top = y + index * _BAR
            low, high = (left + _WIDTH * end for end in share.interval)
            picture.shapes.append(Rect(left, top, max(1, round(_WIDTH * share.value)), _BAR - 2, COLOURS[mode]))
            if share.n:
                picture.shapes.append(Line([(low, top + 3), (high, top + 3)], INK))
    for index, mode in enumerate(modes):
        y = bottom + 30 + 18 * index
        picture.shapes.append(Rect(left, y - 8, 12, 8, COLOURS[mode]))
        picture.shapes.append(Label(left + 20, y, r.NAMES[mode]))
    return picture


def _any(answers: Answers, column: str) -> bool:
    return any(answers.share(mode, column).n for mode in MODES)
