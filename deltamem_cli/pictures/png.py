"""Writes a Picture as PNG with nothing but numpy and zlib; knows nothing of what it shows.

Words are drawn with a 3×5 font of capitals: enough for numbers and names, and no font library is needed.
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from typing import TYPE_CHECKING

from deltamem_cli.pictures.shapes import Label, Line, Picture, Rect

if TYPE_CHECKING:
    import numpy as np

# Five rows from the top, three pixels each: one octal digit per row.
_FONT = (
    "75557 26227 71747 71717 55711 74717 74757 71244 75757 75717 "
    "25755 65656 34443 65556 74647 74644 34553 55755 72227 11152 55655 44447 57755 65555 25552 65644 25563 65655 "
    "34216 72222 55557 55522 55775 55255 55222 71247 "
    "00002 00024 02020 02024 00700 02720 07070 51245 11244 12221 42224 00007 57575 00000"
)
_GLYPHS = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;-+=%/()_# ", _FONT.split(), strict=True))
_UNKNOWN = "77777"
_DOT = 2  # pixels per dot of the font
_ADVANCE = 4 * _DOT


def png(picture: Picture) -> bytes:
    """The picture as an 8-bit RGB PNG file."""
    import numpy as np

    canvas = np.full((picture.height, picture.width, 3), 255, dtype=np.uint8)
    for shape in picture.shapes:
        if isinstance(shape, Rect):
            canvas[shape.y : shape.y + shape.height, shape.x : shape.x + shape.width] = shape.colour
        elif isinstance(shape, Line):
            _draw_line(canvas, shape)
        else:
            _draw_label(canvas, shape)
    rows = np.zeros((picture.height, 1 + picture.width * 3), dtype=np.uint8)  # each row begins with filter 0
    rows[:, 1:] = canvas.reshape(picture.height, -1)
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _draw_line(canvas: np.ndarray, line: Line) -> None:
    import numpy as np

    for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
        n = int(max(abs(x1 - x0), abs(y1 - y0))) + 2
        xs = np.linspace(x0, x1, n).round().astype(int).clip(0, canvas.shape[1] - 1)
        ys = np.linspace(y0, y1, n).round().astype(int).clip(0, canvas.shape[0] - 1)
        canvas[ys, xs] = line.colour


def _draw_label(canvas: np.ndarray, label: Label) -> None:
    text = unicodedata.normalize("NFKD", label.text).encode("ascii", "replace").decode().upper()
    x = label.x - len(text) * _ADVANCE if label.right else label.x
    top = label.y - 5 * _DOT
    for character in text:
        for row, digit in enumerate(_GLYPHS.get(character, _UNKNOWN)):
            for column in range(3):
                if int(digit, 8) & (4 >> column) and x >= 0:
                    y0, x0 = top + row * _DOT, x + column * _DOT
                    canvas[max(0, y0) : y0 + _DOT, x0 : x0 + _DOT] = label.colour
        x += _ADVANCE
