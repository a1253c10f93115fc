"""What a stored memory is and how it came to be, read and reckoned from the store. Changes nothing, loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.memory_view import metrics, picture
from deltamem_cli.memory_view.metrics import LayerMetrics, MemoryAfter
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Conversation, Snapshot, Turn
from deltamem_cli.text import count

if TYPE_CHECKING:
    import numpy as np

    from deltamem_cli.pictures.shapes import Picture


@dataclass(frozen=True, eq=False)
class Look:
    """A memory as it stands. snapshot None: it is empty. layers: beside snapshot.state."""

    conversation: Conversation
    turns: Sequence[Turn]  # without texts
    snapshot: Snapshot | None
    layers: Sequence[LayerMetrics]
    steps: Sequence[MemoryAfter]

    @property
    def written(self) -> int:
        """Tokens that the present memory was written from; turns from before a reset have no state left."""
        return sum(turn.written_tokens for turn in self.turns if turn.has_state)

    @property
    def extent(self) -> str:
        """Turns and tokens, for people."""
        return f"{count(len(self.turns), 'turn')}, {count(self.written, 'token')} written"

    def picture(self, columns: int = picture.COLUMNS) -> Picture:
        """All layers, `columns` beside each other, and the norms over the turns. Raises DeltamemError for an empty memory."""
        if self.snapshot is None:
            raise DeltamemError(
                f"The memory of conversation {self.conversation.id} is empty, so there is nothing to draw; "
                "write something with: dmem chat"
            )
        title = f"{self.conversation.profile}, {self.snapshot.model.name}: {self.extent}"
        return picture.draw(title, self.snapshot.state, self.layers, self.steps, columns)


@dataclass(frozen=True, eq=False)
class Difference:
    """Turn `after` minus turn `before`; 0 is the beginning. change: [layers, heads, rank, rank] float32.

    layers: of the difference itself.
    """

    conversation: Conversation
    before: int
    after: int
    change: np.ndarray
    layers: Sequence[LayerMetrics]

    @property
    def total(self) -> float:
        """How far the memory moved: the Frobenius norm."""
        return metrics.total_norm(self.change)

    def picture(self, columns: int = picture.COLUMNS) -> Picture:
        """All layers, `columns` beside each other."""
        title = f"{self.conversation.profile}: turn {self.after} minus turn {self.before}"
        return picture.draw(title, self.change, self.layers, [], columns)


def inspect(store: Store, conversation: Conversation, *, course: bool = False) -> Look:
    """The memory after the last turn; with `course` its steps from turn to turn as well."""
    with store.reading():
        every = turns.all_of(store, conversation.id, messages=False)
        snapshot = states.latest(store, conversation.id)
        before = states.before(store, conversation.id, snapshot.turn) if snapshot and snapshot.turn else None
        steps = metrics.course(states.every(store, conversation.id)) if course else []
    layers = metrics.per_layer(snapshot.state, snapshot.layers, before.state if before else None) if snapshot else []
    return Look(conversation, every, snapshot, layers, steps)


def history(store: Store, conversation: Conversation) -> tuple[list[Turn], dict[int | None, MemoryAfter]]:
    """Every turn, and by its number what it did to the memory, if it wrote."""
    with store.reading():
        every = turns.all_of(store, conversation.id)
        return every, {step.turn: step for step in metrics.course(states.every(store, conversation.id))}


def difference(store: Store, conversation: Conversation, before: int, after: int) -> Difference:
    """How the memory changed between two turns. Raises DeltamemError."""
    with store.reading():
        for number in {before, after} - {0}:
            turns.get(store, conversation.id, number)
        old, new = (states.after(store, conversation.id, number) for number in (before, after))
    present = new or old
    if present is None:
        raise DeltamemError(f"Conversation {conversation.id} has no memory at turns {before} and {after}; "
                         "see: dmem memory history")  # fmt: skip
    if old and new and old.state.shape != new.state.shape:
        raise DeltamemError(f"Turns {before} and {after} were written by different adapters, so their memories can't be "
                         "compared; see: dmem memory history")  # fmt: skip
    nothing = 0 * present.state
    change = (new.state if new else nothing) - (old.state if old else nothing)
    return Difference(conversation, before, after, change, metrics.per_layer(change, present.layers, None))


def only_layer(layers: Sequence[LayerMetrics], layer: int | None) -> list[int]:
    """Indices of the layers to show: all, or the one whose number was given. Raises UsageError."""
    if layer is None:
        return list(range(len(layers)))
    found = [i for i, one in enumerate(layers) if one.layer == layer]
    if not found:
        there = f"{layers[0].layer} to {layers[-1].layer}" if layers else "none, the memory is empty"
        raise UsageError(f"There is no layer {layer} in this memory; its layers are {there}")
    return found
