"""Recall as curves with their intervals, over the number of facts and over distance; knows no file format."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.report import RecallReport, Table
from deltamem_cli.evaluation.shares import Share
from deltamem_cli.pictures.shapes import INK, PALE, Colour, Label, Line, Picture, Rect

COLOURS: dict[str, Colour] = {
    r.CONTEXT: (120, 120, 128),
    r.BOTH: (40, 40, 48),
    r.REPLAY: (230, 140, 30),
    r.MEMORY: (178, 24, 43),
    r.SEEN: (33, 102, 172),
    r.NEW_KINDS: (20, 150, 150),
    r.DONOR: (90, 160, 90),
    r.ZERO: (150, 110, 180),
    r.NONE: (190, 190, 60),
}
_MARGIN, _LEFT, _WIDTH, _HEIGHT, _GAP, _TOP = 24, 44, 300, 220, 70, 70
_LINE = 18  # of the legend


def draw(report: RecallReport, title: str) -> Picture:
    """Two charts beside each other, and what the colours mean below."""
    bottom = _TOP + _HEIGHT
    picture = Picture(2 * _MARGIN + 2 * (_LEFT + _WIDTH) + _GAP, bottom + 60 + _LINE * len(COLOURS))
    picture.shapes.append(Label(_MARGIN, _MARGIN + 8, title))
    left = _MARGIN + _LEFT
    _chart(picture, left, "recall by number of facts", report.facts)
    _chart(picture, left + _WIDTH + _GAP + _LEFT, "recall after tokens of unrelated talk", report.distances)
    present = {mode for table in (report.facts, report.distances) for row in table.values() for mode in row}
    for index, mode in enumerate(mode for mode in COLOURS if mode in present):
        y = bottom + 50 + _LINE * index
        picture.shapes.append(Rect(left, y - 8, 12, 8, COLOURS[mode]))
        picture.shapes.append(Label(left + 20, y, r.NAMES[mode]))
    return picture


def _chart(picture: Picture, left: int, title: str, table: Table) -> None:
    bottom, right = _TOP + _HEIGHT, left + _WIDTH
    picture.shapes.append(Label(left, _TOP - 12, title))
    for percent in (0, 25, 50, 75, 100):
        y = bottom - _HEIGHT * percent // 100
        picture.shapes.append(Line([(left, y), (right, y)], (225, 227, 231)))
        picture.shapes.append(Label(left - 6, y + 5, f"{percent}%", PALE, right=True))
    across = [left + _WIDTH * (2 * i + 1) / (2 * len(table)) for i in range(len(table))]
    for x, key in zip(across, table, strict=True):
        picture.shapes.append(Label(round(x) - 4 * len(str(key)), bottom + 18, str(key), INK))
    for index, mode in enumerate(COLOURS):
        # beside each other, so that intervals can be told apart
        shift = (index - len(COLOURS) / 2) * 4
        points = [(x + shift, row[mode]) for x, row in zip(across, table.values(), strict=True) if mode in row]
        _curve(picture, [(x, r.share(records)) for x, records in points], COLOURS[mode], bottom)


def _curve(picture: Picture, points: Sequence[tuple[float, Share]], colour: Colour, bottom: int) -> None:
    places = []
    for x, share in points:
        low, high = (bottom - _HEIGHT * end for end in share.interval)
        y = bottom - _HEIGHT * share.value
        places.append((x, y))
        picture.shapes.append(Line([(x, low), (x, high)], colour))
        picture.shapes.append(Rect(round(x) - 2, round(y) - 2, 5, 5, colour))
    if len(places) > 1:
        picture.shapes.append(Line(places, colour))
