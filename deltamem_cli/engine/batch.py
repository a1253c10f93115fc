"""Tokens of one or of several sequences through the model in one llama_batch; knows nothing of seats."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.engine.engine import Engine
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.interruptible import run_interruptible

_ABORTED = 2  # llama_decode's answer when the abort callback stopped it
_NO_ROOM = 1
# Below this many tokens a decode is over before anybody could cancel it.
_TOKENS_WORTH_A_THREAD = 8


class Cancelled(EngineError):
    """Feeding was cancelled; `fed` tokens are in the context.

    Where writing was on they are in the memory too, but not those with span ids: a pass writes whole or not at all.
    """

    def __init__(self, fed: int) -> None:
        super().__init__("The model was stopped.")
        self.fed = fed


class Feed:
    """Tokens on their way into one sequence; each decode() takes some of them."""

    def __init__(
        self,
        engine: Engine,
        sequence: int,
        tokens: Sequence[int],
        *,
        write: bool = True,
        spans: Sequence[int] | None = None,
        all_logits: bool = False,
    ) -> None:
        """As Seat.feed takes them. Raises EngineError for tokens that can't be fed."""
        engine.check_open()
        if not tokens:
            raise EngineError("There are no tokens to feed.")
        if min(tokens) < 0 or max(tokens) >= engine.model.n_vocab:
            raise EngineError(
                f"A token is out of range: {engine.model.path.name} has the tokens 0 to {engine.model.n_vocab - 1}."
            )
        if spans is not None and len(spans) != len(tokens):
            raise EngineError(f"There are {len(tokens)} tokens but {len(spans)} span ids: give one per token.")
        held = engine.n_past[sequence]
        if held + len(tokens) > engine.n_ctx_seq:
            raise EngineError(
                f"{len(tokens)} tokens don't fit in the context, which holds {held} of {engine.n_ctx_seq}: "
                "drop part of it or use a larger --ctx-size."
            )
        self.engine, self.sequence = engine, sequence
        self.tokens, self.all_logits = tokens, all_logits
        self.writes = write and engine.has_memory
        self.spans = spans if self.writes else None
        self.start = held  # position of the first token
        self.done = 0  # tokens that are in the context
        self.error: EngineError | None = None
        self._rows: list[NDArray[np.float32]] = []
        engine.cancelled.discard(sequence)

    @property
    def is_over(self) -> bool:
        """Whether all tokens are in the context, or none will follow because of an error."""
        return self.error is not None or self.done == len(self.tokens)

    @property
    def last_logits(self) -> NDArray[np.float32] | None:
        """[n_vocab] of the last token, when all are in the context."""
        return self._rows[-1][-1] if self.is_over and not self.error else None

    def result(self) -> NDArray[np.float32]:
        """Logits, when it is over: [n_vocab] of the last token or with all_logits [n_tokens, n_vocab]. Raises its error."""
        if self.error:
            raise self.error
        return np.concatenate(self._rows) if self.all_logits else self._rows[-1][-1]

    # decode()'s side

    def n_rows(self, size: int) -> int:
        """Rows of logits that the next `size` tokens give."""
        return size if self.all_logits else int(self.done + size == len(self.tokens))

    def take(self, rows: NDArray[np.float32]) -> None:
        """Keeps the logits of the tokens that went in last."""
        if len(rows):
            self._rows.append(rows.copy())  # the context's own are overwritten by the next batch

    def update(self) -> None:
        """After a llama_decode, how ever it ended."""
        engine = self.engine
        engine.n_past[self.sequence] = int(engine.native.llama.llama_memory_seq_pos_max(engine.kv, self.sequence)) + 1
        self.done = engine.n_past[self.sequence] - self.start


def decode(feeds: Sequence[Feed]) -> None:
    """Takes the next tokens of `feeds`, which are of one engine and each of another sequence, through the model at once.

    Short feeds come first; long ones share what the batch has left. Those that are over are left alone. What goes wrong
    with a feed is its error afterwards. One that was cancelled takes no further part; a batch that runs is stopped when
    all of its feeds are cancelled, else it comes to its end first, so that one does not spoil what the others write.
    """
    waiting = sorted((feed for feed in feeds if not feed.is_over), key=lambda feed: feed.sequence)
    if not waiting:
        return
    engine = waiting[0].engine
    going = [feed for feed in waiting if feed.sequence not in engine.cancelled]
    for feed in waiting:
        if feed.sequence in engine.cancelled:
            engine.drop_pass(feed.sequence)
            feed.error = Cancelled(feed.done)
    if not going:
        return
    parts = _shares(_of_one_kind(going), engine.n_batch)
    with engine.alone:
        _take_through(engine, parts)


def _take_through(engine: Engine, parts: Sequence[Part]) -> None:
    try:
        with engine.running(feed.sequence for feed, _ in parts):
            code, error = _decode(engine, parts)
    finally:
        # also when a signal's exception comes through: micro-batches may have been done before it
        expected = [feed.done + size for feed, size in parts]
        row_counts = [feed.n_rows(size) for feed, size in parts]
        for feed, _ in parts:
            feed.update()
    if code:
        for feed, _ in parts:
            feed.error = _failure(code, error, feed)
        return
    rows, first = _logits(engine, sum(row_counts)), 0
    for (feed, _), done, count in zip(parts, expected, row_counts, strict=True):
        if feed.done != done:  # who feeds until it is in would do so for ever
            feed.error = EngineError(f"{engine.model.path.name} does not keep what it reads, so it can't chat.")
        feed.take(rows[first : first + count])
        first += count


Part = tuple[Feed, int]  # a feed, and how many of its tokens come next


def _shares(feeds: Sequence[Feed], room: int) -> list[Part]:
    sizes: dict[Feed, int] = {}
    left = sorted(feeds, key=lambda feed: len(feed.tokens) - feed.done)
    for i, feed in enumerate(left):
        sizes[feed] = min(len(feed.tokens) - feed.done, -(-(room - sum(sizes.values())) // (len(left) - i)))
    return [(feed, sizes[feed]) for feed in feeds if sizes[feed]]


def _of_one_kind(feeds: Sequence[Feed]) -> list[Feed]:
    """Those that can share a batch with the first that writes: δ-mem takes span ids for all tokens of it or for none."""
    writing = [feed for feed in feeds if feed.writes]
    if not writing or writing[0].engine.granularity == "token":
        return list(feeds)
    has_spans = writing[0].spans is not None
    if has_spans:
        return [feed for feed in feeds if feed.spans is not None or not feed.writes]
    return [feed for feed in writing if feed.spans is None]


def _decode(engine: Engine, parts: Sequence[Part]) -> tuple[int, str]:
    """llama_decode. Returns its code and δ-mem's error text for this call, if any."""
    llama = engine.native.llama
    spans = _spans(parts)
    size = sum(size for _, size in parts)
    batch = llama.llama_batch_init(size, 0, 1)
    try:
        batch.n_tokens = size
        i = 0
        for feed, count in parts:
            last = len(feed.tokens) - 1
            for index in range(feed.done, feed.done + count):
                batch.token[i] = feed.tokens[index]
                batch.pos[i] = feed.start + index
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = feed.sequence
                batch.logits[i] = feed.all_logits or index == last
                i += 1

        def run() -> tuple[int, str]:
            if engine.has_memory:
                engine.native.call("set_write", engine.context, any(feed.writes for feed, _ in parts))
            if spans is not None:
                engine.native.call("set_spans", engine.context, (ctypes.c_int32 * size)(*spans), size)
            code = int(llama.llama_decode(engine.context, batch))
            return code, engine.native.last_error() if code < 0 and engine.has_memory else ""

        return run() if size < _TOKENS_WORTH_A_THREAD else run_interruptible(run, engine.abort)
    finally:
        llama.llama_batch_free(batch)


def _spans(parts: Sequence[Part]) -> list[int] | None:
    """Span ids of all tokens; None where every token writes at once, or none does."""
    writes = {feed.writes for feed, _ in parts}
    if True not in writes or (len(writes) == 1 and all(feed.spans is None for feed, _ in parts)):
        return None
    ids: list[int] = []
    for feed, count in parts:
        if feed.spans is None:
            ids += [0 if feed.writes else -1] * count
        else:
            ids += feed.spans[feed.done : feed.done + count]
    return ids


def _failure(code: int, error: str, feed: Feed) -> EngineError:
    if code == _ABORTED:
        return Cancelled(feed.done)
    if code == _NO_ROOM:
        return EngineError("The context is full: drop part of it or use a larger --ctx-size.")
    return EngineError(error or f"llama.cpp failed to decode (code {code}): run again with --debug to see why.")


def _logits(engine: Engine, n_rows: int) -> NDArray[np.float32]:
    """The context's own, [n_rows, n_vocab], in the order of the batch."""
    if not n_rows:
        return np.empty((0, engine.model.n_vocab), np.float32)
    data: Any = engine.native.llama.llama_get_logits(engine.context)
    return np.ctypeslib.as_array(data, (n_rows, engine.model.n_vocab))
