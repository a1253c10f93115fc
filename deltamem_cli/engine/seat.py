"""One sequence of an engine: what is held in it goes on as if it were alone. Knows nothing of turns and texts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.bindings import NativeError
from deltamem_cli.engine.batch import Feed, decode
from deltamem_cli.engine.engine import Engine
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.model import Model
from deltamem_cli.engine.sampling import LazyGrammar, Sampler, Sampling


class Seat:
    """The visible context, the memory and the last logits of one sequence of `engine`."""

    def __init__(self, engine: Engine) -> None:
        """Takes a free one, for as long as the engine lives. Raises EngineError when there is none."""
        self.engine = engine
        self.sequence = engine.take_sequence()
        engine.seats.append(self)
        self._native, self._llama = engine.native, engine.native.llama
        self._feed: Feed | None = None  # the last one
        self._in_pass = False

    @classmethod
    def first(cls, engine: Engine) -> Seat:
        """The one of `engine` that was taken first, or takes one."""
        return engine.seats[0] if engine.seats else cls(engine)

    @property
    def model(self) -> Model:
        """The engine's."""
        return self.engine.model

    @property
    def has_memory(self) -> bool:
        """Whether the engine has an adapter attached."""
        return self.engine.has_memory

    @property
    def granularity(self) -> str:
        """token, message_mean or sentence_mean: what feed()'s spans should be."""
        return self.engine.granularity

    @property
    def n_ctx_seq(self) -> int:
        """Tokens that the visible context can hold."""
        return self.engine.n_ctx_seq

    # memory

    def state(self) -> NDArray[np.float32]:
        """Copy of the state, [layers, heads, rank, rank] float32."""
        state = np.zeros(self.engine.state_shape, np.float32)
        with self.engine.alone:
            self._native.call("state_get", self.engine.context, self.sequence, _floats(state), state.size)
        return state

    def set_state(self, state: NDArray[np.float32]) -> None:
        """Replaces the state. Raises NativeError for a wrong size, NaN or infinity; the old state stays then."""
        data, shape = np.ascontiguousarray(state, np.float32), self.engine.state_shape
        if data.shape != shape and self.has_memory:
            raise EngineError(f"A state of shape {data.shape} does not fit; this adapter needs {shape}.")
        with self.engine.alone:
            self._native.call("state_set", self.engine.context, self.sequence, _floats(data), data.size)

    def clear_state(self) -> None:
        """Sets the state to zero."""
        with self.engine.alone:
            self._native.call("state_clear", self.engine.context, self.sequence)

    # visible context

    @property
    def n_past(self) -> int:
        """Tokens that the model sees."""
        return self.engine.n_past[self.sequence]

    def clear_context(self) -> None:
        """Empties the visible context; the memory stays."""
        with self.engine.alone:
            self._llama.llama_memory_seq_rm(self.engine.kv, self.sequence, -1, -1)
            self.engine.n_past[self.sequence] = 0

    def start(self, head: Sequence[int]) -> None:
        """Empties the visible context and feeds `head`, which is read and not written.

        It is copied instead where the head that was computed last was the same, read in the same state. Raises as feed().
        """
        self.clear_context()
        kept = self.engine.kept_head
        if not head or kept is None:
            if head:
                self.feed(head, write=False)
            return
        state = self.state().tobytes() if self.has_memory else b""
        with self.engine.alone:
            if kept.put(self.engine.context, self.sequence, head, state):
                self.engine.n_past[self.sequence], self._feed = len(head), None
                return
        self.feed(head, write=False)
        with self.engine.alone:
            kept.keep(self.engine.context, self.sequence, head, state)

    @property
    def can_shift(self) -> bool:
        """Whether drop() can take tokens out before the end."""
        return bool(self._llama.llama_memory_can_shift(self.engine.kv))

    def keeps_without(self, start: int, end: int) -> bool:
        """Whether drop() of these tokens leaves all of the others that the model looks at.

        A layer with a sliding window looks at the last `n_swa` tokens, and llama.cpp keeps no others for it.
        """
        if start == end or not self.engine.keeps_positions:
            return start == end
        behind, n_swa = self.n_past - end, self.engine.n_swa
        return behind == 0 or (self.can_shift and (not n_swa or behind >= n_swa))

    def is_torn(self) -> bool:
        """Whether a sliding window misses tokens, since drop() took away those for which they had made room."""
        held, n_swa = self.n_past, self.engine.n_swa
        if not n_swa or not held:
            return False
        with self.engine.alone:
            first = int(self._llama.llama_memory_seq_pos_min(self.engine.kv, self.sequence))
        return first < 0 or first > max(0, held + 1 - n_swa)

    def drop(self, start: int, end: int) -> None:
        """Takes tokens [start, end) out of the visible context and moves the later ones up; the memory stays.

        Raises EngineError when this model's cache can't do that.
        """
        held = self.n_past
        end = min(end, held)
        if not 0 <= start <= end:
            raise EngineError(f"The tokens {start} to {end} can't be dropped; the context holds {held}.")
        if end < held and not self.can_shift:
            raise EngineError("The context of this model can't be shifted: clear it or use a larger --ctx-size.")
        with self.engine.alone:
            if not self._llama.llama_memory_seq_rm(self.engine.kv, self.sequence, start, end):
                raise EngineError("This model can't forget part of its context: clear it or use a larger --ctx-size.")
            if end < held:
                self._llama.llama_memory_seq_add(self.engine.kv, self.sequence, end, -1, start - end)
            self.engine.n_past[self.sequence] = held - (end - start)

    # feeding and drawing

    def feed(
        self,
        tokens: Sequence[int],
        *,
        write: bool = True,
        spans: Sequence[int] | None = None,
        all_logits: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Runs `tokens` through the model behind what the context holds, as one pass of the memory.

        write: whether they are written into the memory. spans: message or sentence id of each token, -1: not written.
        progress: called with the number of tokens done after each batch.
        Returns logits float32, [n_vocab] of the last token or with all_logits [n_tokens, n_vocab].
        Raises Cancelled, and EngineError when they don't fit; what was fed until then stays.
        """
        feed = self.begin(tokens, write=write, spans=spans, all_logits=all_logits)
        # only a pass around several batches lets all tokens read the same state
        with self._pass_of(feed):
            while not feed.is_over:
                (self.engine.decode_beside_others or _decode_alone)(feed)
                if progress and not feed.error:
                    progress(feed.done)
            return feed.result()

    def begin(
        self,
        tokens: Sequence[int],
        *,
        write: bool = True,
        spans: Sequence[int] | None = None,
        all_logits: bool = False,
    ) -> Feed:
        """What feed() would feed, for batch.decode() to feed it together with what other seats begin.

        A seat can have one at a time. One with span ids that takes more than one batch belongs into one_pass().
        """
        self._feed = None
        self._feed = Feed(self.engine, self.sequence, tokens, write=write, spans=spans, all_logits=all_logits)
        return self._feed

    def _pass_of(self, feed: Feed) -> AbstractContextManager[None]:
        return nullcontext() if feed.spans is None or len(feed.tokens) == 1 else self.one_pass()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Everything fed inside reads one state when it has span ids; their writes happen at the end.

        Inside another one it is a part of that. When feed() fails inside, the span writes are dropped.
        """
        if not self.has_memory or self.granularity == "token" or self._in_pass:
            yield
            return
        with self.engine.alone:
            self._native.call("pass_begin", self.engine.context, self.sequence)
        self._in_pass = True
        try:
            yield
        except BaseException:
            self.engine.drop_pass(self.sequence)
            with suppress(NativeError):  # the failure inside is the news, not that it dropped the writes
                self._end_pass()
            raise
        self._end_pass()

    def _end_pass(self) -> None:
        self._in_pass = False
        with self.engine.alone:
            self._native.call("pass_end", self.engine.context, self.sequence)

    def cancel(self) -> None:
        """Stops the running feed(), which raises Cancelled: at once when no other seat is in the same batch."""
        self.engine.cancel(self.sequence)

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """[n_vocab] of the last token fed; None before anything was, and after a feed() that failed."""
        return self._feed.last_logits if self._feed and self.engine.context else None

    def sampler(self, sampling: Sampling, grammar: str | LazyGrammar | None = None) -> Sampler:
        """Draws tokens from the logits of the last feed(); close it after use. grammar: GBNF that they keep to.

        Raises EngineError for a grammar that llama.cpp can't read.
        """
        return Sampler(self.model, sampling, lambda: self.logits, grammar)


def _decode_alone(feed: Feed) -> None:
    decode([feed])


def _floats(array: NDArray[np.float32]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
