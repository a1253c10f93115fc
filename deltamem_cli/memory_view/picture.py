"""A memory as a drawing of rectangles, lines and words, for svg.py and png.py to write; knows no file format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltamem_cli.memory_view import cells
from deltamem_cli.pictures.shapes import PALE, Colour, Label, Line, Picture, Rect

if TYPE_CHECKING:
    import numpy as np

    from deltamem_cli.memory_view.metrics import LayerMetrics, MemoryAfter


POSITIVE: Colour = (178, 24, 43)
NEGATIVE: Colour = (33, 102, 172)
EMPTY: Colour = (240, 241, 243)

CELL, GAP, COLUMNS, MARGIN = 11, 22, 6, 24
TILE = CELL * cells.GRID
CHART_HEIGHT = 180
CHARACTER = 7.3  # how wide one of a label's is, at most


def draw(
    title: str, state: np.ndarray, metrics: Sequence[LayerMetrics], steps: Sequence[MemoryAfter], columns: int = COLUMNS
) -> Picture:
    """All layers as heat maps, `columns` beside each other, and, when there are `steps`, the course of their norms over
    the turns.
    """
    columns = min(columns, max(COLUMNS, len(metrics)))
    n_rows = -(-len(metrics) // columns)
    width = 2 * MARGIN + columns * (TILE + GAP) - GAP
    tiles_bottom = MARGIN + 50 + n_rows * (TILE + 40)
    picture = Picture(width, tiles_bottom + (CHART_HEIGHT + 70 if steps else 0))
    scale = cells.scale_of(state)
    picture.shapes.append(Label(MARGIN, MARGIN + 8, _fitting(title, width - 2 * MARGIN)))
    picture.shapes.append(
        Label(MARGIN, MARGIN + 26, f"red +, blue -, full at {scale:.3g}; above each: layer and norm", PALE)
    )
    for index, layer in enumerate(metrics):
        x = MARGIN + (index % columns) * (TILE + GAP)
        y = MARGIN + 50 + (index // columns) * (TILE + 40)
        picture.shapes.append(Label(x, y + 8, f"{layer.layer}"))
        picture.shapes.append(Label(x + TILE, y + 8, f"{layer.norm:.3g}", PALE, right=True))
        _tile(picture, x, y + 14, cells.grid(state[index]), scale)
    if steps:
        _chart(picture, tiles_bottom + 20, steps)
    return picture


def _fitting(text: str, width: int) -> str:
    most = int(width / CHARACTER)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _tile(picture: Picture, x: int, y: int, grid: np.ndarray, scale: float) -> None:
    size = TILE // len(grid)
    for i, row in enumerate(grid.tolist()):
        for j, value in enumerate(row):
            picture.shapes.append(Rect(x + j * size, y + i * size, size - 1, size - 1, _shade(value, scale)))


def _chart(picture: Picture, top: int, steps: Sequence[MemoryAfter]) -> None:
    left, right, bottom = MARGIN + 50, picture.width - MARGIN, top + CHART_HEIGHT
    highest = max((norm for step in steps for norm in step.layer_norms), default=0.0) or 1.0
    picture.shapes.append(Label(MARGIN, top - 4, "norm of each layer by turn (pale: first, dark: last)"))
    picture.shapes.append(Line([(left, top), (left, bottom), (right, bottom)], PALE))
    picture.shapes.append(Label(left - 6, top + 10, f"{highest:.3g}", PALE, right=True))
    picture.shapes.append(Label(left - 6, bottom, "0", PALE, right=True))
    picture.shapes.append(Label(left, bottom + 18, f"turn {steps[0].turn or 0}", PALE))
    picture.shapes.append(Label(right, bottom + 18, f"turn {steps[-1].turn or 0}", PALE, right=True))
    n_layers = max(len(step.layer_norms) for step in steps)
    across = (right - left) / max(1, len(steps) - 1)
    for layer in range(n_layers):
        points = [
            (left + i * across, bottom - step.layer_norms[layer] / highest * CHART_HEIGHT)
            for i, step in enumerate(steps)
            if layer < len(step.layer_norms)
        ]
        if len(points) == 1:  # one turn: a short dash, so that there is something to see
            points.append((points[0][0] + 8, points[0][1]))
        picture.shapes.append(Line(points, _mix((190, 205, 225), (20, 40, 90), layer / max(1, n_layers - 1))))


def _shade(value: float, scale: float) -> Colour:
    if scale <= 0:
        return EMPTY
    return _mix(EMPTY, POSITIVE if value > 0 else NEGATIVE, min(1.0, (abs(value) / scale) ** 0.5))


def _mix(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue
