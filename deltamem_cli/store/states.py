"""The states that turns leave, as numpy arrays on one side and blobs on the other; knows one table.

A turn without a state left the memory as it was. So the state after turn n is the one of the last turn up to n that
has one, else the conversation's initial state, else None: the zero state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from deltamem_cli.adapter.limits import MAX_RANK, MAX_STATE_HEADS
from deltamem_cli.store import checked
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError
from deltamem_cli.store.records import Identity, Snapshot

_SELECT = """
    SELECT states.*, turns.number FROM states LEFT JOIN turns ON turns.id = states.turn_id
    WHERE states.conversation_id = ?
"""


def after(store: Store, conversation: str, number: int) -> Snapshot | None:
    """The state after turn `number` (0: the initial one); None is the zero state."""
    row = store.row(
        _SELECT + " AND (turns.number <= ? OR turns.number IS NULL) ORDER BY turns.number DESC LIMIT 1",
        [conversation, number],
    )  # NULL sorts last: the initial state only when no turn has one
    return _snapshot(store, row) if row else None


def before(store: Store, conversation: str, number: int) -> Snapshot | None:
    """The state that turn `number` began with; None is the zero state."""
    return after(store, conversation, number - 1)


def latest(store: Store, conversation: str) -> Snapshot | None:
    """The conversation's present state; None is the zero state."""
    return after(store, conversation, 2**62)


def every(store: Store, conversation: str) -> Iterator[Snapshot]:
    """All stored states in order, the initial one (whose number is NULL, which sorts first) before the turns'."""
    for row in store.rows(_SELECT + " ORDER BY turns.number", [conversation]):
        yield _snapshot(store, row)


def insert(store: Store, conversation: str, turn_id: int | None, snapshot: Snapshot) -> None:
    """Store a state inside the open transaction."""
    n_layers, heads, rank, blob = to_blob(snapshot)
    store.insert(
        "states",
        conversation_id=conversation,
        turn_id=turn_id,
        model_name=snapshot.model.name,
        model_fingerprint=snapshot.model.fingerprint,
        adapter_name=snapshot.adapter.name,
        adapter_fingerprint=snapshot.adapter.fingerprint,
        layers=json.dumps(list(snapshot.layers)),
        n_layers=n_layers,
        heads=heads,
        rank=rank,
        state=blob,
    )


def to_blob(snapshot: Snapshot) -> tuple[int, int, int, bytes]:
    """Layers, heads, rank and the little-endian float32 bytes of a state; refuses what is not one."""
    import numpy as np

    state = np.asarray(snapshot.state)
    if state.ndim != 4 or state.shape[2] != state.shape[3] or state.shape[0] != len(snapshot.layers):
        raise StoreError(
            f"This state has the shape {state.shape} for {len(snapshot.layers)} layers, not "
            "[layers, heads, rank, rank]; it was not saved, please report it"
        )
    if not np.isfinite(state).all():
        raise StoreError(
            "The memory contains numbers that are not finite, so this turn was not saved; check the adapter with: "
            "dmem doctor"
        )
    n_layers, heads, rank, _ = state.shape
    return n_layers, heads, rank, np.ascontiguousarray(state, dtype="<f4").tobytes()


def from_row(row: Mapping[str, Any]) -> Snapshot:
    """Raises Malformed."""
    import numpy as np

    layers = checked.layers(checked.json_(row, "layers"))
    heads = checked.count(row, "heads", least=1, most=MAX_STATE_HEADS)
    rank = checked.count(row, "rank", least=1, most=MAX_RANK)
    blob = checked.blob(row, "state")
    if len(blob) != 4 * len(layers) * heads * rank * rank:
        raise checked.Malformed("state has another size than its layers, heads and rank")
    state = np.frombuffer(blob, dtype="<f4").astype(np.float32)
    return Snapshot(
        state=state.reshape(len(layers), heads, rank, rank),
        layers=layers,
        model=Identity(checked.text(row, "model_name"), checked.text(row, "model_fingerprint")),
        adapter=Identity(checked.text(row, "adapter_name"), checked.text(row, "adapter_fingerprint")),
        turn=checked.count_or_none(row, "number", least=1),
    )


def _snapshot(store: Store, row: Mapping[str, Any]) -> Snapshot:
    import numpy as np

    with checked.rows_of(store.name, "states"):
        snapshot = from_row(row)
    if not np.isfinite(snapshot.state).all():
        where = f"after turn {snapshot.turn}" if snapshot.turn else "at its beginning"
        raise StoreError(
            f"The memory of conversation {row['conversation_id']} {where} contains numbers that are not finite; take "
            "turns back with: dmem memory undo, or clear it with: dmem memory reset"
        )
    return snapshot
