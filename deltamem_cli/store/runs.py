"""What turns were shown, each stored once: a prompt's head, and what a run of turns began with; knows two tables.

A turn's own row has the rest of its context.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltamem_cli.store import checked
from deltamem_cli.store.database import Store

_PROMPT = ("system", "head", "opening")
_RUN = ("run", "replayed")
_LISTS = ("head", "opening", "replayed")  # as JSON

# For a query of turns: what shown() reads of their runs.
COLUMNS = "runs.prompt_id, runs.name AS run, runs.replayed"
JOIN = "LEFT JOIN runs ON runs.id = turns.run_id"


def insert(store: Store, conversation: str, context: Mapping[str, Any]) -> int | None:
    """The id of the run in `context`, inside the open transaction; None: it tells of none. Stores only what is new."""
    prompt = _find_or_insert(store, "prompts", conversation, {name: _stored(context, name) for name in _PROMPT})
    run = {"prompt_id": prompt, "name": context.get("run"), "replayed": _stored(context, "replayed")}
    return _find_or_insert(store, "runs", conversation, run)


def rest(context: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a context that is the turn's own."""
    return {key: value for key, value in context.items() if key not in (*_PROMPT, *_RUN)}


def shown(store: Store, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The part of the context that is not the turn's own, for each row with COLUMNS. Raises StoreError."""
    prompts: dict[int | None, dict[str, Any]] = {None: {}}
    found = []
    for row in rows:
        id_ = row["prompt_id"]
        if id_ not in prompts:
            prompt = store.row(f"SELECT {', '.join(_PROMPT)} FROM prompts WHERE id = ?", [id_])
            prompts[id_] = _read(store, "prompts", prompt, _PROMPT)
        found.append({**_read(store, "runs", row, _RUN), **prompts[id_]})
    return found


def systems(store: Store, turns: Sequence[int]) -> list[str]:
    """System prompts that the turns with these ids had, and no other turn of any conversation."""
    joined = "FROM turns JOIN runs ON runs.id = turns.run_id JOIN prompts ON prompts.id = runs.prompt_id"
    had = [row["system"] for id_ in turns for row in store.rows(f"SELECT system {joined} WHERE turns.id = ?", [id_])]
    only = []
    # a damaged row can be deleted, too
    for system in dict.fromkeys(one for one in had if isinstance(one, str) and one.strip()):
        those = {row["id"] for row in store.rows(f"SELECT turns.id {joined} WHERE system = ?", [system])}
        if those <= set(turns):
            only.append(system.strip())
    return only


def _find_or_insert(store: Store, table: str, conversation: str, values: Mapping[str, Any]) -> int | None:
    if all(value is None for value in values.values()):
        return None
    where = " AND ".join(f"{name} IS ?" for name in values)
    row = store.row(f"SELECT id FROM {table} WHERE conversation_id = ? AND {where}", [conversation, *values.values()])
    return int(row["id"]) if row else store.insert(table, conversation_id=conversation, **values)


def _stored(context: Mapping[str, Any], name: str) -> str | None:
    value = context.get(name)
    return json.dumps(value) if name in _LISTS and value is not None else value


def _read(store: Store, table: str, row: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    with checked.rows_of(store.name, table):
        if row is None:
            raise checked.Malformed("one is missing")
        given = [name for name in names if row[name] is not None]
        return {name: checked.json_(row, name)[name] if name in _LISTS else row[name] for name in given}
