"""A reply as it grows, token by token; draws none of them."""

from __future__ import annotations

import codecs

from deltamem_cli.engine import Engine
from deltamem_cli.session import spans as span_ids


class Reply:
    """Its tokens, their span ids, and the text that is complete so far."""

    def __init__(self, engine: Engine) -> None:
        self._model = engine.model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.tokens: list[int] = []
        self.spans: list[int] = []
        self.text = ""

    def span(self, granularity: str, first: int) -> int:
        """Span id of the next token."""
        id = first + (span_ids.sentences(self.text) if granularity == "sentence_mean" else 0)
        if len(self.spans) == len(self.tokens):
            self.spans.append(id)
        return id

    def add(self, token: int) -> str:
        self.tokens.append(token)
        return self._grow(self._decoder.decode(self._model.piece(token)))

    def finish(self) -> str:
        return self._grow(self._decoder.decode(b"", final=True))

    def _grow(self, piece: str) -> str:
        self.text += piece
        return piece
