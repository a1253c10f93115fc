"""Turns out of transcript and memory, as if they had never been said: planned, then done at once or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from deltamem_cli.engine import Cancelled, Seat
from deltamem_cli.errors import DeltamemError
from deltamem_cli.memory_view.metrics import total_norm
from deltamem_cli.session.replay import Progress, replay
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Identity, Snapshot, Turn
from deltamem_cli.store.turns import Replayed


@dataclass(frozen=True)
class Plan:
    """turns: what goes. later: turns after the first of them that stay, with states to be made anew."""

    turns: Sequence[Turn]
    later: Sequence[int]

    @property
    def numbers(self) -> list[int]:
        """Numbers of the turns to forget."""
        return [turn.number for turn in self.turns]


@dataclass(frozen=True)
class Forgotten:
    """norm_before, norm_after: Frobenius norms of the whole memory."""

    turns: Sequence[int]
    later: Sequence[int]
    norm_before: float
    norm_after: float


def plan(store: Store, conversation: str, numbers: Collection[int]) -> Plan:
    """What forgetting `numbers` takes. Raises NotFound for a turn that is not there."""
    chosen = [turns.get(store, conversation, number) for number in sorted(set(numbers))]
    first = chosen[0].number
    later = [
        turn.number
        for turn in turns.all_of(store, conversation, messages=False)
        if turn.has_state and turn.number > first and turn.number not in numbers
    ]
    return Plan(chosen, later)


def forget(
    store: Store,
    conversation: str,
    seat: Seat | None,
    numbers: Collection[int],
    *,
    model: Identity | None = None,
    adapter: Identity | None = None,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
    dry_run: bool = False,
) -> Forgotten:
    """Replays what came after `numbers` without them, then deletes them; their bytes are marked.

    Without later states nothing is replayed, and seat, model and adapter may be None. With dry_run nothing changes.
    Raises engine.Cancelled, with nothing changed; StoreError for turns that can't be replayed.
    """
    planned = plan(store, conversation, numbers)
    gone = planned.numbers
    replayed: dict[int, Replayed] = {}
    if planned.later:
        if seat is None or model is None or adapter is None:
            raise DeltamemError(
                f"Memory is off, and without it the {len(planned.later)} later turns can't be replayed: "
                "load their model and adapter with --model and --adapter."
            )
        replayed = replay(
            store, conversation, seat, model=model, adapter=adapter, without=gone, progress=progress, stopped=stopped
        )
        if stopped():
            raise Cancelled(0)
    before = _norm(states.latest(store, conversation))
    if planned.later:
        after = _norm(replayed[planned.later[-1]].snapshot)
    else:
        after = _norm(states.before(store, conversation, gone[0]))
    if not dry_run:
        turns.replace_after_forgetting(store, conversation, gone, replayed)
    return Forgotten(gone, planned.later, before, after)


def _norm(snapshot: Snapshot | None) -> float:
    return total_norm(snapshot.state) if snapshot else 0.0
