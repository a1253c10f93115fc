"""Turns and their messages: committing, reading, undoing, replaying; a turn and its state are one transaction."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltamem_cli.store import checked, conversations, runs, states, wiping
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import NotFound, StoreError
from deltamem_cli.store.ids import now
from deltamem_cli.store.locks import holding
from deltamem_cli.store.records import Conversation, Identity, Message, NewTurn, Snapshot, Turn, TurnContext

_SELECT = f"""
    SELECT turns.*, {runs.COLUMNS}, EXISTS (SELECT 1 FROM states WHERE states.turn_id = turns.id) AS has_state
    FROM turns {runs.JOIN} WHERE turns.conversation_id = ?
"""


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a replay made of a turn: its new state (None: it left none) and, if that changed, its context."""

    snapshot: Snapshot | None
    context: TurnContext | None = None


def commit(
    store: Store, conversation: Conversation, turn: NewTurn, *, instead_of: int | None = None, undo: int | None = None
) -> Turn:
    """Append a turn with its state; both are stored or neither. Stores the conversation too if it is new.

    instead_of: number of the last turn, deleted in the same transaction (a regenerated or edited turn).
    undo: number of the first turn of those that are taken back in the same transaction.
    """
    with holding(store, conversation.id):
        with store.transaction():
            conversations.insert(store, conversation)
            conversations.touch(store, conversation.id)
            if undo is not None:
                _take_back(
                    store, conversation.id, [old for old in all_of(store, conversation.id) if old.number >= undo]
                )
            number = last_number(store, conversation.id) + 1
            if instead_of is not None:
                if instead_of != number - 1:
                    raise StoreError(
                        f"Turn {instead_of} is not the last of conversation {conversation.id}, so it was not replaced; "
                        "see: dmem memory history"
                    )
                number = instead_of
                wiping.mark_replaced(store, conversation.id, number, turn.context.get("system"))
                store.execute("DELETE FROM turns WHERE conversation_id = ? AND number = ?", [conversation.id, number])
            insert(store, conversation.id, number, now(), turn)
        return get(store, conversation.id, number)


def insert(store: Store, conversation: str, number: int, created: str, turn: NewTurn) -> None:
    """Store a turn inside the open transaction."""
    turn_id = store.insert(
        "turns",
        conversation_id=conversation,
        number=number,
        kind=turn.kind,
        created=created,
        model_name=turn.model.name,
        model_fingerprint=turn.model.fingerprint,
        adapter_name=turn.adapter.name if turn.adapter else None,
        adapter_fingerprint=turn.adapter.fingerprint if turn.adapter else None,
        settings=json.dumps(dict(turn.settings)),
        context=json.dumps(runs.rest(turn.context)),
        run_id=runs.insert(store, conversation, turn.context),
        interrupted=int(turn.interrupted),
        prompt_tokens=turn.prompt_tokens,
        reply_tokens=turn.reply_tokens,
        written_tokens=turn.written_tokens,
        timings=json.dumps(dict(turn.timings)),
    )
    for position, message in enumerate(turn.messages):
        store.insert(
            "messages",
            turn_id=turn_id,
            position=position,
            role=message.role,
            text=message.text,
            tokens=pack(message.tokens),
            spans=None if message.spans is None else pack(message.spans),
        )
    if turn.snapshot:
        states.insert(store, conversation, turn_id, turn.snapshot)


def last_number(store: Store, conversation: str, *, below: int = 2**62) -> int:
    """The number of the last turn, or of the last one before `below`; 0: none."""
    sql = "SELECT max(number) AS number FROM turns WHERE conversation_id = ? AND number < ?"
    row = store.row(sql, [conversation, below])
    with checked.rows_of(store.name, "turns"):
        return checked.count_or_none(row, "number") or 0


def version(store: Store, conversation: str) -> tuple[object, ...]:
    """What differs once turns were added, taken back or forgotten, or the memory was reset, by whomever."""
    sql = "SELECT count(*) AS n, max(number) AS number, max(created) AS created FROM turns WHERE conversation_id = ?"
    latest = states.latest(store, conversation)
    return *(store.row(sql, [conversation]) or {}).values(), latest.state.tobytes() if latest else b""


def get(store: Store, conversation: str, number: int) -> Turn:
    """One turn of a conversation. Raises NotFound."""
    rows = store.rows(_SELECT + " AND number = ?", [conversation, number])
    if not rows:
        last = last_number(store, conversation)
        has = f"its last turn is {last}" if last else "it has none"
        raise NotFound(f"Conversation {conversation} has no turn {number} ({has}); see: dmem memory history")
    return _turns(store, rows)[0]


def all_of(store: Store, conversation: str, *, messages: bool = True) -> list[Turn]:
    """Every turn in order; without `messages` their texts are not read."""
    return _turns(store, store.rows(_SELECT + " ORDER BY number", [conversation]), messages=messages)


def undo(store: Store, conversation: str, count: int = 1) -> list[Turn]:
    """Delete the last `count` turns and return them; the state is then, byte for byte, the one from before.

    Raises StoreError when there are fewer. Their bytes are marked, see wiping.py.
    """
    with holding(store, conversation), store.transaction():
        every = all_of(store, conversation)
        if not 0 < count <= len(every):
            raise StoreError(
                f"Can't undo {count} of {len(every)} turns in conversation {conversation}; see: dmem memory history"
            )
        _take_back(store, conversation, every[-count:])
        conversations.touch(store, conversation)
    return every[-count:]


def _take_back(store: Store, conversation: str, gone: Sequence[Turn]) -> None:
    wiping.mark(store, conversation, [turn.number for turn in gone])
    for turn in gone:
        store.execute("DELETE FROM turns WHERE id = ?", [turn.id])


def replace_after_forgetting(
    store: Store, conversation: str, forgotten: Collection[int], replayed: Mapping[int, Replayed]
) -> None:
    """Delete the `forgotten` turns and give the later ones the states of their replay, all at once or not at all.

    Every remaining turn after the earliest forgotten one that has a state must be in `replayed`, for its old state
    still contains what is to be forgotten. Numbers stay as they are. Their bytes are marked, see wiping.py.
    """
    with holding(store, conversation), store.transaction():
        present = {turn.number: turn for turn in all_of(store, conversation, messages=False)}
        for number in forgotten:
            if number not in present:
                get(store, conversation, number)  # raises, and says which turns there are
        first = min(forgotten)
        later = {n: turn for n, turn in present.items() if n > first and n not in forgotten}
        missing = sorted(n for n, turn in later.items() if turn.has_state and n not in replayed)
        if missing or set(replayed) - set(later):
            raise StoreError(
                f"Conversation {conversation} changed while its turns were replayed, so nothing was forgotten; "
                "run the same command again"
            )
        wiping.mark(store, conversation, forgotten)
        for number in forgotten:
            store.execute("DELETE FROM turns WHERE id = ?", [present[number].id])
        for number, result in replayed.items():
            turn_id = present[number].id
            store.execute("DELETE FROM states WHERE turn_id = ?", [turn_id])
            if result.snapshot:
                states.insert(store, conversation, turn_id, result.snapshot)
            if result.context is not None:
                changed = json.dumps(runs.rest(result.context)), runs.insert(store, conversation, result.context)
                store.execute("UPDATE turns SET context = ?, run_id = ? WHERE id = ?", [*changed, turn_id])
        conversations.touch(store, conversation)


def pack(numbers: Sequence[int]) -> bytes:
    """Token ids as little-endian int32."""
    packed = array("i", numbers)
    if _BIG_ENDIAN:
        packed.byteswap()
    return packed.tobytes()


def unpack(blob: bytes) -> list[int]:
    """The token ids of a blob: int32, little-endian."""
    packed = array("i")
    packed.frombytes(blob)
    if _BIG_ENDIAN:
        packed.byteswap()
    return packed.tolist()


def as_new(turn: Turn, snapshot: Snapshot | None) -> NewTurn:
    """A committed turn as one to commit again elsewhere."""
    return NewTurn(
        model=turn.model,
        messages=turn.messages,
        snapshot=snapshot,
        adapter=turn.adapter,
        kind=turn.kind,
        settings=turn.settings,
        context=turn.context,
        interrupted=turn.interrupted,
        prompt_tokens=turn.prompt_tokens,
        reply_tokens=turn.reply_tokens,
        written_tokens=turn.written_tokens,
        timings=turn.timings,
    )


def without_messages(turn: Turn) -> Turn:
    """The turn as it is when its texts are left behind; the context holds texts (the system prompt) too."""
    return replace(turn, messages=(), context=TurnContext())


_BIG_ENDIAN = array("i", [1]).tobytes()[0] == 0


def _turns(store: Store, rows: Sequence[Mapping[str, Any]], *, messages: bool = True) -> list[Turn]:
    by_turn = _messages(store, [row["id"] for row in rows]) if messages else {}
    shown = runs.shown(store, rows)
    with checked.rows_of(store.name, "turns"):
        return [_turn(row, of_run, by_turn.get(row["id"], ())) for row, of_run in zip(rows, shown, strict=True)]


def _messages(store: Store, turn_ids: Sequence[int]) -> dict[int, list[Message]]:
    found: dict[int, list[Message]] = {}
    for start in range(0, len(turn_ids), 500):  # SQLite takes a limited number of parameters
        some = turn_ids[start : start + 500]
        marks = ", ".join("?" * len(some))
        sql = f"SELECT * FROM messages WHERE turn_id IN ({marks}) ORDER BY turn_id, position"
        with checked.rows_of(store.name, "messages"):
            for row in store.rows(sql, some):
                found.setdefault(row["turn_id"], []).append(_message(row))
    return found


def _message(row: Mapping[str, Any]) -> Message:
    tokens = _numbers(row, "tokens", 0)
    spans = None if row["spans"] is None else _numbers(row, "spans", -1)
    if spans is not None and len(spans) != len(tokens):
        raise checked.Malformed("spans has another length than tokens")
    return Message(checked.text(row, "role"), checked.text(row, "text"), tokens, spans)


def _numbers(row: Mapping[str, Any], key: str, least: int) -> list[int]:
    blob = checked.blob(row, key)
    numbers = unpack(blob) if len(blob) % 4 == 0 else None
    if numbers is None or min(numbers, default=least) < least:
        raise checked.Malformed(f"{key} is not a list of numbers that may stand there")
    return numbers


def _turn(row: Mapping[str, Any], shown: Mapping[str, Any], messages: Sequence[Message]) -> Turn:
    adapter = checked.text_or_none(row, "adapter_fingerprint")
    return Turn(
        id=row["id"],
        conversation=checked.text(row, "conversation_id"),
        number=checked.count(row, "number", least=1),
        kind=checked.text(row, "kind"),
        created=checked.text(row, "created"),
        model=Identity(checked.text(row, "model_name"), checked.text(row, "model_fingerprint")),
        adapter=Identity(checked.text(row, "adapter_name"), adapter) if adapter else None,
        settings=checked.settings(checked.json_(row, "settings")),
        context=checked.context({**checked.object_(checked.json_(row, "context"), "context"), **shown}),
        interrupted=bool(checked.count(row, "interrupted", most=1)),
        prompt_tokens=checked.count(row, "prompt_tokens"),
        reply_tokens=checked.count(row, "reply_tokens"),
        written_tokens=checked.count(row, "written_tokens"),
        timings=checked.timings(checked.json_(row, "timings")),
        has_state=bool(row["has_state"]),
        messages=messages,
    )
