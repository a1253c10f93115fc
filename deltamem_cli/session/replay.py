"""The same turns again: feeds stored tokens in the context that the turns had, to learn what the memory would be
without some of them. Computes, stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby

from deltamem_cli.engine import Cancelled, Engine, Seat
from deltamem_cli.session import beginning
from deltamem_cli.session.window import Window
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError
from deltamem_cli.store.records import Identity, Snapshot, Turn
from deltamem_cli.store.turns import Replayed
from deltamem_cli.text import short

Progress = Callable[[int, int], None]  # tokens done, tokens to do


def replay(
    store: Store,
    conversation: str,
    seat: Seat | Engine,
    *,
    model: Identity,
    adapter: Identity,
    without: Collection[int] = (),
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[int, Replayed]:
    """States and contexts of all turns after the earliest of `without` (of all turns when it is empty).

    progress: called with tokens fed and to feed. stopped: asked after each turn; true raises engine.Cancelled.
    Takes the first seat of an engine, and leaves it with the last state. Raises StoreError for turns that can't be fed
    again.
    """
    if isinstance(seat, Engine):
        seat = Seat.first(seat)
    every = turns.all_of(store, conversation)
    first = min(without, default=0)
    # A run is what one window saw, from empty to closed. The one that `first` is in is fed from its beginning: what
    # the model saw there decides what the later turns write.
    runs = [list(group) for _, group in groupby(every, key=lambda turn: turn.context.get("run"))]
    runs = [run for run in runs if run[-1].number >= first]
    for turn in (turn for run in runs for turn in run):
        if turn.number not in without:
            _check(turn, model)

    by_number = {turn.number: turn for turn in every}
    total = sum(_size(turn) for run in runs for turn in run if turn.number not in without)
    fed = 0
    results: dict[int, Replayed] = {}
    window = Window(seat)
    if runs:
        put_state(seat, states.before(store, conversation, runs[0][0].number))
    for run in runs:
        window.start(run[0].context.get("head", []), run[0].context.get("opening", []))
        # none of its own numbers: a turn that was made again after a reopening was recorded as shown before itself
        shown = [n for n in run[0].context.get("replayed", []) if n < run[0].number]
        replayed = [n for n in shown if n in by_number and n not in without]
        for number in replayed:
            window.feed(number, beginning.tokens(by_number[number]), write=False)
        for turn in run:
            if turn.number == first:
                # from here on the states differ: begin with the very bytes that stood before it
                put_state(seat, states.before(store, conversation, first))
            if turn.number in without:
                continue
            window.drop_before(turn.context.get("window_first", 0))
            visible = window.turns
            _feed(seat, window, turn, write=turn.has_state)
            if turn.number > first:
                snapshot = Snapshot(seat.state(), seat.engine.layers, model, adapter) if turn.has_state else None
                context = {**turn.context, "replayed": replayed, "window_first": min(visible, default=turn.number)}
                results[turn.number] = Replayed(snapshot, context)  # type: ignore[arg-type]  # a TurnContext, spread
            fed += _size(turn)
            if progress:
                progress(fed, total)
            if stopped():
                raise Cancelled(fed)
    return results


def _check(turn: Turn, model: Identity) -> None:
    if turn.model.fingerprint != model.fingerprint:
        raise StoreError(
            f"Turn {turn.number} was written with {short(turn.model.name)}, not with {model.name}, so it can't be replayed; "
            "load that model with --model, or clear this memory with: dmem memory reset"
        )
    if turn.has_state and not _size(turn):
        raise StoreError(
            f"Turn {turn.number} was saved without its text, so later turns can't be replayed; "
            "clear this memory with: dmem memory reset"
        )


def _size(turn: Turn) -> int:
    return sum(len(message.tokens) for message in turn.messages)


def _feed(seat: Seat, window: Window, turn: Turn, *, write: bool) -> None:
    with seat.one_pass():
        for message in turn.messages:
            spans: Sequence[int] | None = message.spans if write else None
            window.feed(turn.number, message.tokens, write=write, spans=spans)
    thought, behind = beginning.thinking(turn)
    window.take_out(turn.number, thought, behind=behind)


def put_state(seat: Seat, snapshot: Snapshot | None) -> None:
    """Makes a stored state, None being the zero state, the seat's, if it has a memory."""
    if not seat.has_memory:
        return
    if snapshot is None:
        seat.clear_state()
    else:
        seat.set_state(snapshot.state)
