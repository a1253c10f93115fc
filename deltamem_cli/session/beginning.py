"""Which earlier turns the model is shown again when a session begins, and what of them."""

from __future__ import annotations

from deltamem_cli.store import turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import THINKING, Identity, Turn


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
    """What stays visible of the turn, in order: all but what was thought; nothing when its text was not kept."""
    return [token for message in turn.messages if message.role != THINKING for token in message.tokens]


def thinking(turn: Turn) -> tuple[int, int]:
    """Tokens that were thought in the turn, and tokens behind them."""
    sizes = [(message.role == THINKING, len(message.tokens)) for message in turn.messages]
    thought = next((i for i, (is_thought, _) in enumerate(sizes) if is_thought), None)
    return (0, 0) if thought is None else (sizes[thought][1], sum(size for _, size in sizes[thought + 1 :]))
