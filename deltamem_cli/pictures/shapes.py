"""A picture of rectangles, lines and words, for svg.py and png.py to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Colour = tuple[int, int, int]

INK: Colour = (40, 44, 52)
PALE: Colour = (150, 155, 165)


@dataclass(frozen=True)
class Rect:
    """A filled rectangle in pixels; (x, y) is its upper left corner."""

    x: int
    y: int
    width: int
    height: int
    colour: Colour


@dataclass(frozen=True)
class Line:
    """Straight lines from point to point, in pixels."""

    points: Sequence[tuple[float, float]]
    colour: Colour


@dataclass(frozen=True)
class Label:
    """Words; (x, y) is the left end of their baseline, or the right end with `right`."""

    x: int
    y: int
    text: str
    colour: Colour = INK
    right: bool = False


@dataclass
class Picture:
    """Shapes in the order in which they are drawn; sizes in pixels."""

    width: int
    height: int
    shapes: list[Rect | Line | Label] = field(default_factory=list)
