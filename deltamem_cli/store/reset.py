"""Clearing memory for good: what would go, and its going; wiping the bytes is a step of its own, see wiping.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_cli.store import conversations, wiping
from deltamem_cli.store.database import Store
from deltamem_cli.store.locks import holding
from deltamem_cli.store.records import Conversation


@dataclass(frozen=True)
class Extent:
    """What a reset takes away: counts over all its conversations. `branches` are copies elsewhere that stay."""

    conversations: int
    states: int
    state_bytes: int
    turns: int
    messages: int
    branches: Sequence[str] = ()


def extent(store: Store, chosen: Sequence[Conversation], *, transcript: bool) -> Extent:
    """What reset() with the same arguments would take away."""
    ids = [conversation.id for conversation in chosen]
    marks = ", ".join("?" * len(ids))
    states = store.row(
        f"SELECT count(*) AS n, coalesce(sum(length(state)), 0) AS size FROM states WHERE conversation_id IN ({marks})",
        ids,
    )
    texts = store.row(
        "SELECT count(DISTINCT turns.id) AS turns, count(messages.id) AS messages FROM turns "
        f"LEFT JOIN messages ON messages.turn_id = turns.id WHERE conversation_id IN ({marks})",
        ids,
    )
    assert states and texts
    copies = [branch.id for one in ids for branch in conversations.branches(store, one) if branch.id not in ids]
    return Extent(
        conversations=len(ids),
        states=states["n"],
        state_bytes=states["size"],
        turns=texts["turns"] if transcript else 0,
        messages=texts["messages"] if transcript else 0,
        branches=copies,
    )


def reset(store: Store, chosen: Sequence[Conversation], *, transcript: bool) -> Extent:
    """Delete the states of the conversations, with `transcript` their turns and titles too. The bytes are marked.

    The conversations themselves stay, empty, so that the next chat goes on in them and not in an older one.
    """
    with holding(store, *(conversation.id for conversation in chosen)), store.transaction():
        gone = extent(store, chosen, transcript=transcript)
        if not transcript:
            wiping.mark_bytes(store)
        for conversation in chosen:
            store.execute("DELETE FROM states WHERE conversation_id = ?", [conversation.id])
            if transcript:
                wiping.mark(store, conversation.id)
                store.execute("DELETE FROM turns WHERE conversation_id = ?", [conversation.id])
                store.execute("UPDATE conversations SET title = NULL WHERE id = ?", [conversation.id])
    return gone
