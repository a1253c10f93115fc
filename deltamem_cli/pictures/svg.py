"""Writes a Picture as SVG; knows nothing of what it shows."""

from __future__ import annotations

from xml.sax.saxutils import escape

from deltamem_cli.pictures.shapes import Colour, Label, Line, Picture, Rect
from deltamem_cli.text import harmless


def svg(picture: Picture) -> bytes:
    """The picture as an SVG document."""
    size = f'width="{picture.width}" height="{picture.height}" viewBox="0 0 {picture.width} {picture.height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12">',
        *(_element(shape) for shape in picture.shapes),
        "</g></svg>\n",
    ]
    return "\n".join(parts).encode()


def _element(shape: Rect | Line | Label) -> str:
    fill = _hex(shape.colour)
    if isinstance(shape, Rect):
        box = f'x="{shape.x}" y="{shape.y}" width="{shape.width}" height="{shape.height}"'
        return f'<rect {box} fill="{fill}"/>'
    if isinstance(shape, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        return f'<polyline points="{points}" fill="none" stroke="{fill}"/>'
    anchor = ' text-anchor="end"' if shape.right else ""
    return f'<text x="{shape.x}" y="{shape.y}" fill="{fill}"{anchor}>{escape(_printable(shape.text))}</text>'


def _printable(text: str) -> str:
    # XML 1.0 has no place for control characters, escaped or not, nor for these two
    return harmless(text, "").translate({0xFFFE: None, 0xFFFF: None})


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
