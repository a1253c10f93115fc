"""Which tokens are written together when an adapter writes means of messages or sentences; plain data in, ids out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deltamem_cli.engine import Model
from deltamem_cli.session.prompt import Piece

NOT_WRITTEN = -1

# A sentence ends at a blank line, or at white space after its last mark and closing quotes.
_SENTENCE_END = re.compile(r"\n{2,}|(?<=[.!?;:])[\"')\]\u201d\u2019]*\s+")


def sentences(text: str) -> int:
    """Number of the sentence that a token after `text` belongs to, counted from 0."""
    return sum(1 for _ in _SENTENCE_END.finditer(text))


def sentence_ends(text: str) -> list[int]:
    """Where in `text` each sentence is over; the white space behind its end is still its own."""
    return [match.end() for match in _SENTENCE_END.finditer(text)]


def of_message(model: Model, piece: Piece, granularity: str) -> list[int] | None:
    """Span ids of a user's message, from 0; None when every token writes by itself.

    As published: a message's mean takes its marks in, a sentence's takes words alone, and the start of the reply that
    follows belongs to nobody.
    """
    if granularity == "token":
        return None
    start, end = piece.content
    if granularity == "message_mean":
        return [0] * end + [NOT_WRITTEN] * (len(piece.tokens) - end)
    ids = [NOT_WRITTEN] * len(piece.tokens)
    pieces = [model.piece(token).decode("utf-8", "replace") for token in piece.tokens[start:end]]
    ends = sentence_ends("".join(pieces))
    position = sentence = 0
    for i, text in enumerate(pieces, start):
        while sentence < len(ends) and ends[sentence] <= position:
            sentence += 1
        ids[i] = sentence
        position += len(text)
    return ids


def next_id(spans: Sequence[int] | None) -> int:
    """First id that is free after `spans`."""
    return max(spans, default=NOT_WRITTEN) + 1 if spans is not None else 0
