"""One turn on its way through the model: a message is read, a reply drawn. Knows no store; keeps the turn's messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from deltamem_cli.engine import Cancelled, Seat
from deltamem_cli.engine.loops import is_looping
from deltamem_cli.session import spans as span_ids
from deltamem_cli.session.prompt import Piece, Prompt
from deltamem_cli.session.reply import Reply
from deltamem_cli.session.settings import Settings, TurnStats
from deltamem_cli.session.window import Window
from deltamem_cli.store.records import THINKING, Message

Progress = Callable[[int, int], None]  # tokens done, tokens to do


class Stop:
    """The wish that what runs comes to an end; it may be uttered in a signal handler."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self.wanted = False
        self.reading = False  # a message, as opposed to replying

    def now(self) -> None:
        """Ends the reply after the present token, or the reading of the prompt at once. Safe in a signal handler."""
        self.wanted = True
        if self.reading:  # a reply ends with a whole token, so that memory and window hold what was shown
            self._seat.cancel()


@dataclass
class RunningTurn:
    """Turn `number`. `messages` is what a replay of the turn feeds; complete when ask() or tell() has ended.

    progress: called with tokens done and to do while a long message is read.
    """

    window: Window
    prompt: Prompt
    settings: Settings
    number: int
    stop: Stop
    progress: Progress | None = None
    given: Sequence[int] | None = None  # the reply, when none is to be drawn
    messages: list[Message] = field(default_factory=list)
    stats: TurnStats = field(default_factory=TurnStats)

    def __post_init__(self) -> None:
        self._seat = self.window.seat
        self._writes = self._seat.has_memory and self.settings.write != "none"
        self._granularity = self._seat.granularity
        self._most = self.settings.max_tokens or self._seat.n_ctx_seq  # tokens: a small model may find no end

    def ask(self, text: str) -> Generator[str, None, None]:
        """Streams the reply, Thoughts first, until it ends, is stopped, or the generator is closed.

        Raises engine.Cancelled when stopped before the reply began.
        """
        with self._pass():
            free = self._read(text, self.prompt.user(text))
            begun = self.prompt.begin()
            reply = Reply(
                self._seat,
                begun=self.prompt.marks.begun,
                first_span=free,
                write_answer=self.settings.write == "all",
                write_thinking=self.settings.remember_thinking,
                marks=self.prompt.thinking,
                stop=self.settings.stop,
                spelled=self.prompt.spelled,
            )
            begun_spans = [free if self.settings.remember_thinking else span_ids.NOT_WRITTEN] * len(begun)
            start = time.perf_counter()
            self._feed(begun, begun_spans)
            try:
                yield from self._draw(reply)
            except GeneratorExit:
                self.stats.interrupted = True
            closing = self.prompt.close()
            closing_spans = [reply.next_span()] * len(closing)
            self._feed(closing, closing_spans)
        self.stats.reply_tokens, self.stats.reply_seconds = len(reply.tokens), time.perf_counter() - start
        self.stats.thinking_tokens = cut = reply.n_thinking
        thought = [*begun, *reply.tokens[:cut]]
        if thought:
            self._keep(THINKING, reply.thought.strip(), thought, [*begun_spans, *reply.spans[:cut]])
        answer = [*reply.tokens[cut:], *closing]
        self._keep("assistant", reply.text, answer, [*reply.spans[cut:], *closing_spans])
        # As templates do with all replies but the last: what was thought is no part of what the model sees later.
        self.window.take_out(self.number, len(thought), behind=len(answer))

    def tell(self, text: str) -> None:
        """Reads a message that nobody answers. Raises engine.Cancelled."""
        with self._pass():
            self._read(text, self.prompt.said(text))

    def _read(self, text: str, piece: Piece) -> int:
        """Returns the first span id that is free behind it."""
        spans = span_ids.of_message(self._seat.model, piece, self._granularity)
        free = span_ids.next_id(spans)
        if hidden := self.window.hidden(self.number, piece.tokens):  # the head has them already
            spans = [span_ids.NOT_WRITTEN] * hidden + (spans or [0] * len(piece.tokens))[hidden:]
        start = time.perf_counter()
        self._feed(piece.tokens, spans, stoppable=True)
        self.stats.prompt_tokens, self.stats.prompt_seconds = len(piece.tokens), time.perf_counter() - start
        self.messages.append(Message("user", text, piece.tokens, spans))
        return free

    def _draw(self, reply: Reply) -> Generator[str, None, None]:
        for _ in self._tokens(reply):
            yield from reply.news()
            if reply.is_stopped:
                break
            if self.stop.wanted:
                self.stats.interrupted = True
                break
            if self.given is None and is_looping(reply.tokens, self.settings.loop_guard):
                self.stats.looped = True
                break
        else:
            self.stats.cut = len(reply.tokens) >= self._most
        yield from reply.finish()

    def _tokens(self, reply: Reply) -> Iterator[int]:
        """Those of the reply, in the window when they are yielded."""
        if self.given is not None:
            spans = [reply.take(token) for token in self.given]
            self.window.feed(self.number, self.given, write=self._writes, spans=spans)
            yield from self.given
            return
        yield from self.window.reply(
            self.number,
            self.settings.sampling,
            write=self._writes,
            take=reply.take,
            max_tokens=self._most,
            grammar=self.settings.grammar,
        )

    def _feed(self, tokens: Sequence[int], spans: Sequence[int] | None, *, stoppable: bool = False) -> None:
        def report(done: int) -> None:
            if self.progress and stoppable:
                self.progress(done, len(tokens))
            if stoppable and self.stop.wanted and done < len(tokens):
                raise Cancelled(done)

        self.stop.reading = stoppable
        try:
            self.window.feed(self.number, tokens, write=self._writes, spans=spans, progress=report)
        finally:
            self.stop.reading = False

    def _keep(self, role: str, text: str, tokens: Sequence[int], spans: Sequence[int]) -> None:
        """With token writes span ids say only what was not written."""
        told = self._granularity != "token" or min(spans, default=0) < 0
        self.messages.append(Message(role, text, tokens, spans if told else None))

    def _pass(self) -> AbstractContextManager[None]:
        """With message and sentence writes the whole turn reads one state and is written at its end."""
        return self._seat.one_pass() if self._granularity != "token" else nullcontext()
