"""Search in the transcripts; the only module that knows of the two search indexes and their query language.

Words are found whole, as the index of words has them. Where no spaces part words, as in Chinese, any part of a text is
found, and so are symbols such as emoji.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltamem_cli.store import checked, profiles
from deltamem_cli.store.database import Store
from deltamem_cli.store.excerpt import MATCH_BEGIN, MATCH_END, excerpt, unmarked
from deltamem_cli.store.migrations import UNSPACED
from deltamem_cli.store.records import Profile

_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')
_UNSPACED = re.compile(f"[{UNSPACED}]")
_TRIGRAM = 3  # characters: the index of pieces knows no shorter ones


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
    """Messages that contain all the words, best first; "in quotes" is a phrase. `profile` None: everywhere.

    Behind those that the index of words ranks come the others, the last one first.
    """
    whole, pieces = _terms(words)
    if not whole and not pieces:
        return []
    with store.reading():
        conditions = [_has_word(store, word) for word in whole]
        conditions += [_has_piece(piece) if _UNSPACED.search(piece) else _has_sign(piece) for piece in pieces]
        sql = f"""
            SELECT messages.id, turns.conversation_id AS conversation, profiles.name AS profile, turns.number AS turn,
                   turns.created, messages.role, messages.text
            FROM messages
            JOIN turns ON turns.id = messages.turn_id
            JOIN conversations ON conversations.id = turns.conversation_id
            JOIN profiles ON profiles.id = conversations.profile_id
            LEFT JOIN (SELECT rowid, rank FROM messages_fts WHERE messages_fts MATCH ?) AS best
                ON best.rowid = messages.id
            WHERE (? IS NULL OR profiles.id = ?) AND {" AND ".join(sql for sql, _ in conditions)}
            ORDER BY best.rank IS NULL, best.rank, turns.id DESC LIMIT ?
        """
        wanted = profile.id if profile else None
        found = [parameter for _, some in conditions for parameter in some]
        rows = store.rows(sql, [_phrases(whole), wanted, wanted, *found, limit])
        marked = _marked(store, whole, [row["id"] for row in rows])
    patterns = _patterns(whole, pieces)
    with checked.rows_of(store.name, "messages"):
        return [_hit(row, marked.get(row["id"]), patterns) for row in rows]


def _hit(row: Mapping[str, Any], marked: str | None, patterns: Iterable[re.Pattern[str]]) -> Hit:
    text, spans = unmarked(marked or checked.text(row, "text"))
    places = [match.span() for term in patterns for match in term.finditer(text)]
    return Hit(
        conversation=checked.text(row, "conversation"),
        profile=profiles.name_in(row, "profile"),
        turn=checked.count(row, "turn"),
        created=checked.text(row, "created"),
        role=checked.text(row, "role"),
        excerpt=excerpt(text, spans + places),
    )


def _terms(words: str) -> tuple[list[str], list[str]]:
    """What is asked for: whole words or phrases of them, and pieces of texts without spaces, symbols among them."""
    terms = [phrase or term for phrase, term in _TERM.findall(words)]
    whole = [term for term in terms if not _UNSPACED.search(term) and any(map(str.isalnum, term))]
    pieces = [piece for term in terms if _UNSPACED.search(term) and (piece := _without_punctuation(term))]
    if not whole and not pieces:  # signs such as → or ==, which no index has
        pieces = [piece for term in terms if (piece := term.strip())]
    return whole, pieces


def _without_punctuation(term: str) -> str:
    """What stands around the words; and which variant of an emoji is meant: it has the other one's first character."""
    punctuation = {character for character in term if unicodedata.category(character)[0] in "PZ"}
    return term.strip("".join(punctuation) + "\ufe0e\ufe0f")


def _has_word(store: Store, word: str) -> tuple[str, list[str]]:
    """An SQL condition on messages, and its parameters, as the functions below give them."""
    # in 我用Python写 the index of words has one word
    having, parameters = _has_piece(word)
    near = store.rows(f"SELECT id, text FROM messages WHERE {having}", parameters)
    with checked.rows_of(store.name, "messages"):
        glued = ", ".join(str(row["id"]) for row in near if _glued(word).search(checked.text(row, "text")))
    sql = f"(messages.id IN (SELECT rowid FROM messages_fts WHERE messages_fts MATCH ?) OR messages.id IN ({glued}))"
    return sql, [_phrases([word])]


def _has_piece(piece: str) -> tuple[str, list[str]]:
    forms = _forms(piece)
    if min(map(len, forms)) < _TRIGRAM:
        return _has_short_piece(forms)
    return "messages.id IN (SELECT rowid FROM messages_trigram WHERE messages_trigram MATCH ?)", [
        _phrases(forms, " OR ")
    ]


def _has_short_piece(forms: list[str]) -> tuple[str, list[str]]:
    here = " OR ".join(["instr(lower(messages.text), lower(?))"] * len(forms))
    return f"messages.id IN (SELECT id FROM messages_trigram_docsize) AND ({here})", forms


def _has_sign(sign: str) -> tuple[str, list[str]]:
    return "instr(messages.text, ?)", [sign]


def _forms(piece: str) -> list[str]:
    """The same letters as one character or as several: ガ may be カ with a mark, 한 its three letters."""
    return sorted({piece, unicodedata.normalize("NFC", piece), unicodedata.normalize("NFD", piece)})


def _glued(word: str) -> re.Pattern[str]:
    """The word where letters of a script without spaces part it from others."""
    other = rf"[^\W{UNSPACED}]"
    return re.compile(f"(?<!{other}){re.escape(word)}(?!{other})", re.IGNORECASE)


def _patterns(whole: Iterable[str], pieces: Iterable[str]) -> list[re.Pattern[str]]:
    """What finds the terms in a text, but for words in other cases and with other accents, which the index finds."""
    forms = [re.compile(re.escape(form), re.IGNORECASE) for piece in pieces for form in _forms(piece)]
    return [*map(_glued, whole), *forms]


def _phrases(terms: Iterable[str], between: str = " ") -> str:
    """A query of FTS5 in which nothing is an operator; no term holds a quote."""
    return between.join(f'"{term}"' for term in terms) or '""'


def _marked(store: Store, whole: Sequence[str], messages: Sequence[int]) -> dict[int, str]:
    """The texts of those of the messages that the index of words finds, with marks."""
    sql = f"""
        SELECT rowid, highlight(messages_fts, 0, ?, ?) AS text FROM messages_fts
        WHERE messages_fts MATCH ? AND rowid IN ({", ".join(map(str, messages))})
    """
    rows = store.rows(sql, [MATCH_BEGIN, MATCH_END, _phrases(whole)])
    with checked.rows_of(store.name, "messages"):
        return {row["rowid"]: checked.text(row, "text") for row in rows}
