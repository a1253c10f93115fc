"""A reply as it grows, token by token; draws none of them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from deltamem_cli.engine import Seat
from deltamem_cli.session import spans as span_ids
from deltamem_cli.session.stop_words import StopWords
from deltamem_cli.session.thinking import THINK, Mark, Splitter, Thought, control


class Reply:
    """Its tokens, their span ids, and its text: what is thought apart from what is answered."""

    def __init__(
        self,
        seat: Seat,
        *,
        begun: str,
        first_span: int,
        write_answer: bool,
        write_thinking: bool,
        marks: Sequence[Mark] = (THINK,),
        stop: Sequence[str] = (),
        spelled: Sequence[str] = (),
    ) -> None:
        """begun: what the template has begun the reply with. first_span: id of what is written first. marks: what a
        thought may stand between. stop: words before which the answer ends. spelled: names of control tokens that are text.
        """
        self._model = seat.model
        self._by_sentence = seat.has_memory and seat.granularity == "sentence_mean"
        self._first_span = first_span
        self._write_answer, self._write_thinking = write_answer, write_thinking
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._marks = "".join(mark.open + mark.close + mark.label for mark in marks)
        self._splitter = Splitter(begun, marks)
        self._stop = StopWords(stop)
        self._spelled = spelled
        self._pieces: list[str] = []
        self.tokens: list[int] = []
        self.spans: list[int] = []
        self.n_thinking = 0  # tokens at the beginning that belong to the thinking part

    @property
    def thought(self) -> str:
        """What the model has thought so far."""
        return self._splitter.thought

    @property
    def text(self) -> str:
        """The answer."""
        return self._stop.cut(self._splitter.answer)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop word has come."""
        return self._stop.found is not None

    def take(self, token: int) -> int:
        """Adds a token that is about to be fed. Returns its span id."""
        span = self._next_id()
        self._pieces += self._shown(self._splitter.add(self._text(token)))
        self.tokens.append(token)
        if self._splitter.thinking:
            self.n_thinking = len(self.tokens)
            written = self._write_thinking
        else:
            written = self._write_answer
            if not self._splitter.began:  # what looked like a tag was none
                self.n_thinking = 0
        self.spans.append(span if written else span_ids.NOT_WRITTEN)
        return self.spans[-1]

    def _text(self, token: int) -> str:
        piece = self._model.piece(token)
        if piece:
            return self._decoder.decode(piece)
        text = self._model.text([token], special=True)
        if text in self._spelled:
            return text
        name = control(text)
        return name if name in self._marks else ""

    def next_span(self) -> int:
        """Span id of what follows the answer."""
        return self._next_id() if self._write_answer else span_ids.NOT_WRITTEN

    def _next_id(self) -> int:
        if not self._by_sentence:
            return self._first_span
        # the answer begins a sentence of its own, however the thought before it ended
        between = "\n\n" if self.thought and self._splitter.is_over else ""
        return self._first_span + span_ids.sentences(self.thought + between + self.text)

    def news(self) -> list[str]:
        """What can be shown since the last call: Thoughts and plain text."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[str]:
        """The rest, when no token follows."""
        pieces = self._splitter.add(self._decoder.decode(b"", final=True)) + self._splitter.finish()
        if not self._splitter.began:
            self.n_thinking = 0
        return [*self._shown(pieces), *filter(None, [self._stop.finish()])]

    def _shown(self, pieces: Sequence[str]) -> list[str]:
        kept = (piece if isinstance(piece, Thought) else self._stop.add(piece) for piece in pieces)
        return [piece for piece in kept if piece]
