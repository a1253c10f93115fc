"""Full-text search over the transcripts; the only module that knows of the search index's query language."""

from __future__ import annotations

from dataclasses import dataclass

from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Profile

# Control characters, which no terminal text contains: the caller decides how a match is shown.
MATCH_BEGIN, MATCH_END = "\x02", "\x03"


@dataclass(frozen=True)
class Hit:
    """One message that matches; `excerpt` has each match between MATCH_BEGIN and MATCH_END."""

    conversation: str
    profile: str
    turn: int
    created: str
    role: str
    excerpt: str


def search(store: Store, words: str, profile: Profile | None = None, limit: int = 20) -> list[Hit]:
    """Messages that contain all the words, best first; "in quotes" is a phrase. `profile` None: everywhere."""
    if not any(character.isalnum() for character in words):
        return []
    sql = """
        SELECT turns.conversation_id AS conversation, profiles.name AS profile, turns.number AS turn,
               turns.created, messages.role, snippet(messages_fts, 0, ?, ?, '…', 16) AS excerpt
        FROM messages_fts
        JOIN messages ON messages.id = messages_fts.rowid
        JOIN turns ON turns.id = messages.turn_id
        JOIN conversations ON conversations.id = turns.conversation_id
        JOIN profiles ON profiles.id = conversations.profile_id
        WHERE messages_fts MATCH ? AND (? IS NULL OR profiles.id = ?)
        ORDER BY rank, turns.id DESC LIMIT ?
    """
    wanted = profile.id if profile else None
    parameters = [MATCH_BEGIN, MATCH_END, store.db.quote_fts(words), wanted, wanted, limit]
    return [Hit(**row) for row in store.rows(sql, parameters)]
