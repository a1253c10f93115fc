"""What deletions leave to be wiped: marked in the transaction that deletes, wiped after it, as often as it takes.

A mark says, too, which lines typed at a chat's prompt belonged to what was deleted: nothing else could tell that
afterwards. Where typed lines are kept is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass

from deltamem_cli.store import runs
from deltamem_cli.store.database import BUSY_SECONDS, Store
from deltamem_cli.store.errors import StoreError


@dataclass(frozen=True)
class Typed:
    """The typed lines that go with turns of a conversation.

    turns: their numbers. since: whatever was typed for this turn or a later one goes as well; None: nothing else.
    said: what their users said, for lines of which it is not known what they were typed for. systems: system prompts
    that no other turn has.
    """

    conversation: str
    turns: Sequence[int]
    since: int | None
    said: Sequence[str]
    systems: Sequence[str]


Erase = Callable[[Sequence[Typed]], None]  # raises OSError


def mark(store: Store, conversation: str, numbers: Collection[int] | None = None) -> None:
    """To be wiped: these turns, or all of the conversation. Inside the transaction that deletes, before it does."""
    rows = store.rows("SELECT id, number FROM turns WHERE conversation_id = ? ORDER BY number", [conversation])
    going = [row for row in rows if numbers is None or row["number"] in numbers]
    # what was typed after the last turn belongs to no other one
    since = 0 if numbers is None else None
    if numbers is not None and going and going[-1] is rows[-1]:
        since = going[-1]["number"]
    ids = [row["id"] for row in going]
    _insert(
        store,
        Typed(
            conversation,
            [row["number"] for row in going],
            since,
            _distinct(store, "SELECT text FROM messages WHERE role = 'user' AND turn_id = ?", ids),
            runs.systems(store, ids),
        ),
    )


def mark_bytes(store: Store) -> None:
    """To be wiped: what the open transaction deletes, of which nothing was typed."""
    store.insert("wipes", typed=None)


def mark_replaced(store: Store, conversation: str, number: int, system: str | None) -> None:
    """To be wiped: a turn that another one, with the system prompt `system`, takes the place of.

    What was typed for it was typed for that one, too.
    """
    row = store.row("SELECT id FROM turns WHERE conversation_id = ? AND number = ?", [conversation, number])
    systems = [old for old in runs.systems(store, [row["id"]] if row else []) if old != (system or "").strip()]
    _insert(store, Typed(conversation, [], None, [], systems))


def pending(store: Store) -> bool:
    """Whether something that was deleted is still to be wiped. In a store that has no file there never is."""
    return store.path is not None and store.row("SELECT 1 FROM wipes LIMIT 1") is not None


def wipe_typed(store: Store, erase: Erase) -> None:
    """Erases the typed lines that marks name. Raises StoreError, and the marks stay."""
    rows = store.rows("SELECT id, typed FROM wipes WHERE typed IS NOT NULL")
    if not rows:
        return
    try:
        erase([Typed(**json.loads(row["typed"])) for row in rows])
    except OSError as error:
        raise StoreError(
            f"Typed lines of what was deleted are still in {error.filename} ({error.strerror or error}); "
            "the next command erases them, or run: dmem memory scrub"
        ) from error
    with store.transaction():
        for row in rows:
            store.execute("UPDATE wipes SET typed = NULL WHERE id = ?", [row["id"]])


def wipe(store: Store, erase: Erase, *, patience: float = BUSY_SECONDS) -> None:
    """Erases typed lines, then the bytes of everything deleted. Raises StoreError; what is not wiped stays marked.

    patience: seconds to wait for others that read or write.
    """
    failed = None
    try:
        wipe_typed(store, erase)
    except StoreError as error:  # one of the two does not wait for the other
        failed = error
    last = store.row("SELECT coalesce(max(id), 0) AS id FROM wipes")
    assert last
    store.scrub(patience=patience)
    with store.transaction():
        store.execute("DELETE FROM wipes WHERE id <= ? AND typed IS NULL", [last["id"]])
    if failed:
        raise failed


def _insert(store: Store, typed: Typed) -> None:
    store.insert("wipes", typed=json.dumps(asdict(typed)))


def _distinct(store: Store, sql: str, ids: Sequence[int]) -> list[str]:
    texts = (text for one in ids for row in store.rows(sql, [one]) for text in row.values())
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))
