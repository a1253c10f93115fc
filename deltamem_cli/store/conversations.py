"""Conversations: finding, listing and describing them; knows nothing of what is in a turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltamem_cli.store import checked, profiles, wiping
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import NotFound, StoreError
from deltamem_cli.store.ids import new_id, now
from deltamem_cli.store.locks import holding
from deltamem_cli.store.records import Conversation, Profile
from deltamem_cli.text import short

HEADING_LENGTH = 60
_ID = re.compile("[0-9a-z]{1,64}")

# What the first user message lends as a heading is never stored: deleting the text deletes it.
_SELECT = """
    SELECT conversations.id, conversations.profile_id, profiles.name AS profile, conversations.created, conversations.updated,
           conversations.origin, conversations.origin_turn, conversations.title,
           (SELECT count(*) FROM turns WHERE conversation_id = conversations.id) AS n_turns,
           coalesce(conversations.title, (
               SELECT substr(messages.text, 1, 200) FROM messages JOIN turns ON turns.id = messages.turn_id
               WHERE turns.conversation_id = conversations.id AND messages.role = 'user'
               ORDER BY turns.number, messages.position LIMIT 1), '') AS heading
    FROM conversations JOIN profiles ON profiles.id = conversations.profile_id
"""
_LAST_FIRST = " ORDER BY conversations.sequence DESC"


def new(profile: Profile) -> Conversation:
    """A conversation that exists only in memory until its first turn is committed."""
    moment = now()
    return Conversation(new_id(), profile.name, created=moment, updated=moment, profile_id=profile.id)


def insert(store: Store, conversation: Conversation) -> None:
    """Store a new conversation inside the open transaction; one that is stored already stays as it is."""
    if store.row("SELECT 1 FROM conversations WHERE id = ?", [conversation.id]):
        return
    store.insert(
        "conversations",
        id=conversation.id,
        profile_id=_owner(store, conversation).id,
        title=conversation.title,
        created=conversation.created,
        updated=conversation.updated,
        origin=conversation.origin,
        origin_turn=conversation.origin_turn,
    )
    _put_last(store, conversation.id)


def _owner(store: Store, conversation: Conversation) -> Profile:
    """The profile that is meant, which may have been renamed since. Raises StoreError when it was deleted."""
    found = profiles.by_id(store, conversation.profile_id)
    # ids are given again: one that was made since the conversation began is another profile
    if found and (found.name == conversation.profile or found.created <= conversation.created):
        return found
    if conversation.profile_id and not profiles.find(store, conversation.profile):
        raise StoreError(
            f"Profile {conversation.profile} was deleted while this conversation was open, so this was not saved; "
            f"make it again with: dmem profile create {conversation.profile}"
        )
    return profiles.ensure(store, conversation.profile)


def touch(store: Store, conversation: str) -> None:
    """Make it its profile's last conversation, inside the open transaction."""
    store.execute("UPDATE conversations SET updated = ? WHERE id = ?", [now(), conversation])
    _put_last(store, conversation)


def _put_last(store: Store, conversation: str) -> None:
    # times are for people: a clock that is wrong must not decide where a chat goes on
    store.execute(
        "UPDATE conversations SET sequence = (SELECT coalesce(max(sequence), 0) + 1 FROM conversations) WHERE id = ?",
        [conversation],
    )


def latest(store: Store, profile: Profile) -> Conversation | None:
    """The one that `dmem chat` continues: the last that something was committed to."""
    row = store.row(_SELECT + " WHERE profile_id = ?" + _LAST_FIRST + " LIMIT 1", [profile.id])
    return _conversations(store, [row])[0] if row else None


def all_of(store: Store, profile: Profile | None = None) -> list[Conversation]:
    """The last one first, of one profile or of all."""
    where, parameters = (" WHERE profile_id = ?", [profile.id]) if profile else ("", [])
    return _conversations(store, store.rows(_SELECT + where + _LAST_FIRST, parameters))


def find(store: Store, id_: str) -> Conversation | None:
    """The conversation of that very id, if there is one."""
    return next(iter(_conversations(store, store.rows(_SELECT + " WHERE conversations.id = ?", [id_]))), None)


def get(store: Store, reference: str) -> Conversation:
    """The conversation whose id is `reference`, or begins or ends with it if only one does."""
    text = reference.lower()
    exact = store.rows(_SELECT + " WHERE conversations.id = ?", [text])
    rows = exact or (
        store.rows(
            _SELECT + " WHERE substr(conversations.id, 1, ?) = ? OR substr(conversations.id, -?) = ?",
            [len(text), text, len(text), text],
        )
        if text
        else []
    )
    if len(rows) > 1:
        raise StoreError(f"{len(rows)} conversations begin or end with {short(reference)}; give more of the id, see: "
                         "dmem log list --all")  # fmt: skip
    if not rows:
        raise NotFound(f"There is no conversation {short(reference)}; see: dmem log list --all")
    return _conversations(store, rows)[0]


def branches(store: Store, conversation: str) -> list[Conversation]:
    """The conversations that were copied from this one, the last one first; they keep their own states and texts."""
    rows = store.rows(_SELECT + " WHERE conversations.origin = ?" + _LAST_FIRST, [conversation])
    return _conversations(store, rows)


def written_with(store: Store, *, model: str | None = None, adapter: str | None = None) -> list[Conversation]:
    """Those whose memory was written by the model or adapter of this fingerprint: without it they can't go on."""
    sql = _SELECT + (
        " WHERE conversations.id IN "
        "(SELECT conversation_id FROM states WHERE model_fingerprint = ? OR adapter_fingerprint = ?)"
    )
    return _conversations(store, store.rows(sql + _LAST_FIRST, [model, adapter]))


def rename(store: Store, conversation: str, title: str | None) -> None:
    """Sets the title; None: the first message is its heading again."""
    with store.transaction():
        store.execute("UPDATE conversations SET title = ? WHERE id = ?", [title, conversation])


def delete(store: Store, conversation: str) -> None:
    """Delete it with its turns, states and texts; their bytes are marked, see wiping.py."""
    with holding(store, conversation), store.transaction():
        wiping.mark(store, conversation)
        store.execute("DELETE FROM conversations WHERE id = ?", [conversation])


def _conversations(store: Store, rows: Sequence[Mapping[str, Any]]) -> list[Conversation]:
    with checked.rows_of(store.name, "conversations"):
        return [_conversation(row) for row in rows]


def _conversation(row: Mapping[str, Any]) -> Conversation:
    heading = " ".join(checked.text(row, "heading").split())
    if len(heading) > HEADING_LENGTH:
        heading = heading[: HEADING_LENGTH - 1] + "…"
    id_ = checked.text(row, "id")
    if not _ID.fullmatch(id_):  # it becomes the name of a lock file
        raise checked.Malformed("id is not the id of a conversation")
    return Conversation(
        id=id_,
        profile=profiles.name_in(row, "profile"),
        title=checked.text_or_none(row, "title"),
        created=checked.text(row, "created"),
        updated=checked.text(row, "updated"),
        n_turns=row["n_turns"],
        origin=checked.text_or_none(row, "origin"),
        origin_turn=checked.count_or_none(row, "origin_turn"),
        heading=heading,
    )
