"""What can be said of a state in numbers; takes and returns plain arrays and numbers.

state: [layers, heads, rank, rank] float32, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from deltamem_cli.store.records import Snapshot


@dataclass(frozen=True)
class LayerMetrics:
    """norm: Frobenius. effective_rank: exp(entropy of the singular values as shares of their sum), 0 for zeros.

    change: Frobenius norm of what the state differs by from the one before.
    """

    layer: int
    norm: float
    effective_rank: float
    change: float


@dataclass(frozen=True)
class MemoryAfter:
    """The memory after one turn: its norm over all layers, per layer, and how far it moved."""

    turn: int | None
    norm: float
    change: float
    layer_norms: Sequence[float]


def norms(state: np.ndarray) -> np.ndarray:
    """Frobenius norm per layer: [layers] float64."""
    import numpy as np

    return np.sqrt(np.square(state.astype(np.float64)).sum(axis=(1, 2, 3)))


def total_norm(state: np.ndarray) -> float:
    """Frobenius norm over all layers."""
    import numpy as np

    return float(np.sqrt(np.square(norms(state)).sum()))


def effective_ranks(state: np.ndarray) -> np.ndarray:
    """Effective rank per layer, all heads of a layer taken as one block-diagonal matrix: [layers] float64."""
    import numpy as np

    n_layers = state.shape[0]
    singular = np.linalg.svd(state.astype(np.float64), compute_uv=False).reshape(n_layers, -1)
    total = singular.sum(axis=1, keepdims=True)
    share = np.divide(singular, total, out=np.zeros_like(singular), where=total > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0.0)


def difference(after: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """`after` minus `before`; no state, or one of another shape, counts as zero."""
    if before is None or before.shape != after.shape:
        return after
    return after - before


def per_layer(state: np.ndarray, layers: Sequence[int], before: np.ndarray | None) -> list[LayerMetrics]:
    """The metrics of every layer, compared with the state `before` (None: zero)."""
    columns = zip(
        layers,
        norms(state).tolist(),
        effective_ranks(state).tolist(),
        norms(difference(state, before)).tolist(),
        strict=True,
    )
    return [LayerMetrics(*column) for column in columns]


def course(snapshots: Iterable[Snapshot]) -> list[MemoryAfter]:
    """How the memory went from state to state."""
    steps: list[MemoryAfter] = []
    before = None
    for snapshot in snapshots:
        layer_norms = norms(snapshot.state)
        steps.append(
            MemoryAfter(
                turn=snapshot.turn,
                norm=float((layer_norms**2).sum() ** 0.5),
                change=total_norm(difference(snapshot.state, before)),
                layer_norms=layer_norms.tolist(),
            )
        )
        before = snapshot.state
    return steps
