"""Which earlier turns the model is shown again when a session begins; reads the store, feeds nothing."""

from __future__ import annotations

from deltamem_cli.store import turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Identity, Turn


def turns_that_fit(store: Store, conversation: str, model: Identity, budget: int) -> list[tuple[int, list[int]]]:
    """The last turns of at most `budget` tokens together, oldest first: (number, tokens) each.

    Texts that were remembered are not shown again, nor turns of another model, whose tokens mean something else.
    """
    chosen: list[tuple[int, list[int]]] = []
    for turn in reversed(turns.all_of(store, conversation)) if budget > 0 else ():
        if turn.kind != "chat":
            continue
        budget -= len(tokens(turn))
        if turn.model.fingerprint != model.fingerprint or budget < 0:
            break
        if turn.messages:
            chosen.insert(0, (turn.number, tokens(turn)))
    return chosen


def tokens(turn: Turn) -> list[int]:
    """What was fed for the turn, in order; nothing when its text was not kept."""
    return [token for message in turn.messages for token in message.tokens]
