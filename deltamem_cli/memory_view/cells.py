"""A layer's state as an 8×8 grid of levels from -4 to 4; chooses no colour and no character.

Every level halves: 4 is at least half of the scale, 1 at least a sixteenth, 0 below that. So weak and strong layers
can be told apart on one scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

GRID = 8
TOP = 4


def scale_of(state: np.ndarray) -> float:
    """The largest magnitude, which level 4 is measured by."""
    import numpy as np

    return float(np.abs(state).max(initial=0.0))


def levels(matrix: np.ndarray, scale: float) -> np.ndarray:
    """Signed levels of [n, n] values: [n, n] int."""
    import numpy as np

    if scale <= 0:
        return np.zeros(matrix.shape, dtype=int)
    share = np.abs(matrix.astype(np.float64)) / scale
    strength = sum((share >= 2.0 ** -(TOP - level + 1)).astype(int) for level in range(1, TOP + 1))
    return np.sign(matrix).astype(int) * strength


def grid(heads: np.ndarray, size: int = GRID) -> np.ndarray:
    """One grid for a layer: [heads, rank, rank] → [n, n] with n = min(rank, size).

    Where several numbers share a cell (more heads than one, a rank above `size`), the largest magnitude is shown.
    """
    import numpy as np

    rank = heads.shape[-1]
    n = min(rank, size)
    strongest = np.take_along_axis(heads, np.abs(heads).argmax(axis=0)[None], axis=0)[0]
    if rank == n:
        return strongest
    edges = [round(i * rank / n) for i in range(n + 1)]
    cells = np.empty((n, n), dtype=heads.dtype)
    for i in range(n):
        for j in range(n):
            block = strongest[edges[i] : edges[i + 1], edges[j] : edges[j + 1]].ravel()
            cells[i, j] = block[np.abs(block).argmax()]
    return cells
