"""A model, an adapter and a context that work together: feed tokens, draw tokens, read and set the memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.bindings import COMPUTE, GRANULARITIES, AdapterInfo, NativeError
from deltamem_cli.engine.context import Context
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.interruptible import run_interruptible
from deltamem_cli.engine.model import Model
from deltamem_cli.engine.options import EngineOptions
from deltamem_cli.engine.sampling import Sampler, Sampling
from deltamem_cli.engine.threads import default_threads

if TYPE_CHECKING:
    from typing_extensions import Self

_ABORTED = 2  # llama_decode's answer when the abort callback stopped it
_NO_ROOM = 1
# Below this many tokens a decode is over before anybody could cancel it.
_TOKENS_WORTH_A_THREAD = 8


class Cancelled(EngineError):
    """feed() was cancelled; `fed` tokens are in the context.

    Where writing was on they are in the memory too, but not those with span ids: a pass writes whole or not at all.
    """

    def __init__(self, fed: int) -> None:
        super().__init__("The model was stopped.")
        self.fed = fed


class Engine:
    """One context over `model`, with `adapter` attached or, when None, as plain llama.cpp.

    Not thread-safe, but cancel() may be called from any thread or signal handler.
    """

    def __init__(self, model: Model, adapter: Path | None = None, options: EngineOptions | None = None) -> None:
        """Raises EngineError or NativeError; the model stays usable then."""
        self.model = model
        self.native = model.native
        self.options = options = options or EngineOptions()
        self._adapter: Any = None
        self._cancel = ctypes.c_bool(False)
        self.n_threads = options.threads or default_threads()
        self._made = Context(model, options, self.n_threads, self._cancel)
        self.n_ctx = int(self.native.llama.llama_n_ctx(self._context))
        self.n_ctx_seq = int(self.native.llama.llama_n_ctx_seq(self._context))
        # Less than asked for where the context is smaller; llama.cpp ends the process for a larger one.
        self._n_batch = int(self.native.llama.llama_n_batch(self._context))
        self._memory = self.native.llama.llama_get_memory(self._context)
        self._n_swa = int(self.native.llama.llama_model_n_swa(model.handle))
        # A recurrent layer keeps one state for all that was read; no part of it can be taken out again.
        self._keeps_positions = not any(
            is_so(model.handle)
            for is_so in (model.native.llama.llama_model_is_recurrent, model.native.llama.llama_model_is_hybrid)
        )
        self._fed = [0] * options.sequences  # positions used, per sequence
        self._in_pass = False
        self._has_logits = False  # of the last token fed
        self.info = AdapterInfo()
        self.layers: list[int] = []
        try:
            if adapter is not None:
                self.attach(adapter)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Detaches the adapter and frees the context; the model stays loaded."""
        self.detach()
        self._made.close()
        self._has_logits = False

    @property
    def _context(self) -> Any:
        return self._made.handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chosen(self) -> dict[str, int | str]:
        """How this engine runs, with all that was left to it decided; plain data for people and for JSON."""
        return {
            "threads": self.n_threads,
            "gpu_layers": self.model.gpu_layers,
            "ctx_size": self.n_ctx_seq,
            "cache_type_k": self.options.cache_type_k,
            "cache_type_v": self.options.cache_type_v,
            "flash_attention": "on" if self._made.flash_attention else "off",
        }

    # adapter

    def attach(self, adapter: Path) -> None:
        """Puts the adapter file `adapter` to work. Raises NativeError when it does not fit, or another one is attached."""
        handle = self.native.call(
            "adapter_init", self.model.handle, os.fsencode(adapter), COMPUTE.index(self.options.compute)
        )
        try:
            self.native.call("attach", self._context, handle)
        except NativeError:
            self.native.call("adapter_free", handle)
            raise
        self._adapter = handle
        self.native.call("adapter_info", handle, ctypes.byref(self.info))
        layers = (ctypes.c_int32 * self.info.n_layers)()
        self.native.call("adapter_layers", handle, layers, self.info.n_layers)
        self.layers = list(layers)

    def detach(self) -> None:
        """Back to the plain model; the states are gone."""
        if self._adapter:
            self.native.call("detach", self._context)
            self.native.call("adapter_free", self._adapter)
            self._adapter = None
            self.info, self.layers = AdapterInfo(), []

    @property
    def has_memory(self) -> bool:
        """Whether an adapter is attached."""
        return self._adapter is not None

    @property
    def granularity(self) -> str:
        """token, message_mean or sentence_mean: what feed()'s spans should be."""
        return GRANULARITIES[self.info.granularity]

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(layers, heads, rank, rank)"""
        return (self.info.n_layers, self.info.n_heads, self.info.rank, self.info.rank)

    @property
    def added_bytes(self) -> int:
        """Memory that δ-mem takes beside the plain model: weights, states and scratch memory."""
        return int(self.info.n_bytes) + int(self.native.call("state_n_bytes", self._context)) if self.has_memory else 0

    # memory

    def state(self, sequence: int = 0) -> NDArray[np.float32]:
        """Copy of the state, [layers, heads, rank, rank] float32."""
        state = np.zeros(self.state_shape, np.float32)
        self.native.call("state_get", self._context, sequence, _floats(state), state.size)
        return state

    def set_state(self, state: NDArray[np.float32], sequence: int = 0) -> None:
        """Replaces the state. Raises NativeError for a wrong size, NaN or infinity; the old state stays then."""
        data = np.ascontiguousarray(state, np.float32)
        if data.shape != self.state_shape and self.has_memory:
            raise EngineError(f"A state of shape {data.shape} does not fit; this adapter needs {self.state_shape}.")
        self.native.call("state_set", self._context, sequence, _floats(data), data.size)

    def clear_state(self, sequence: int = 0) -> None:
        """Sets a sequence's state to zero."""
        self.native.call("state_clear", self._context, sequence)

    def copy_state(self, source: int, target: int) -> None:
        """Copies the state of sequence `source` to `target`."""
        self.native.call("state_copy", self._context, source, target)

    # context

    def n_past(self, sequence: int = 0) -> int:
        """Tokens of the sequence that the model sees."""
        self._check_sequence(sequence)
        return self._fed[sequence]

    def _check_sequence(self, sequence: int) -> None:
        if not 0 <= sequence < len(self._fed):
            raise EngineError(f"Sequence {sequence} does not exist; this context has 0 to {len(self._fed) - 1}.")

    def clear_context(self, sequence: int = 0) -> None:
        """Empties the visible context; the memory stays."""
        self._check_sequence(sequence)
        self.native.llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._fed[sequence] = 0

    @property
    def can_shift(self) -> bool:
        """Whether drop() can take tokens out before the end."""
        return bool(self.native.llama.llama_memory_can_shift(self._memory))

    def keeps_without(self, start: int, end: int, sequence: int = 0) -> bool:
        """Whether drop() of these tokens leaves all of the others that the model looks at.

        A layer with a sliding window looks at the last `n_swa` tokens, and llama.cpp keeps no others for it.
        """
        if start == end or not self._keeps_positions:
            return start == end
        behind = self._fed[sequence] - end
        return behind == 0 or (self.can_shift and (not self._n_swa or behind >= self._n_swa))

    def is_torn(self, sequence: int = 0) -> bool:
        """Whether a sliding window misses tokens, since drop() took away those for which they had made room."""
        if not self._n_swa or not self._fed[sequence]:
            return False
        first = int(self.native.llama.llama_memory_seq_pos_min(self._memory, sequence))
        return first < 0 or first > max(0, self._fed[sequence] + 1 - self._n_swa)

    def drop(self, start: int, end: int, sequence: int = 0) -> None:
        """Takes tokens [start, end) out of the visible context and moves the later ones up; the memory stays.

        Raises EngineError when this model's cache can't do that.
        """
        llama = self.native.llama
        self._check_sequence(sequence)
        end = min(end, self._fed[sequence])
        if not 0 <= start <= end:
            raise EngineError(f"The tokens {start} to {end} can't be dropped; the context holds {self._fed[sequence]}.")
        if end < self._fed[sequence] and not self.can_shift:
            raise EngineError("The context of this model can't be shifted: clear it or use a larger --ctx-size.")
        if not llama.llama_memory_seq_rm(self._memory, sequence, start, end):
            raise EngineError("This model can't forget part of its context: clear it or use a larger --ctx-size.")
        if end < self._fed[sequence]:
            llama.llama_memory_seq_add(self._memory, sequence, end, -1, start - end)
        self._fed[sequence] -= end - start

    def feed(
        self,
        tokens: Sequence[int],
        *,
        sequence: int = 0,
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
        if not self._context:
            raise EngineError("The engine is closed: create a new one.")
        self._check_sequence(sequence)
        if not tokens:
            raise EngineError("There are no tokens to feed.")
        if min(tokens) < 0 or max(tokens) >= self.model.n_vocab:
            raise EngineError(
                f"A token is out of range: {self.model.path.name} has the tokens 0 to {self.model.n_vocab - 1}."
            )
        if spans is not None and len(spans) != len(tokens):
            raise EngineError(f"There are {len(tokens)} tokens but {len(spans)} span ids: give one per token.")
        if self._fed[sequence] + len(tokens) > self.n_ctx_seq:
            raise EngineError(
                f"{len(tokens)} tokens don't fit in the context, which holds {self._fed[sequence]} of {self.n_ctx_seq}: "
                "drop part of it or use a larger --ctx-size."
            )
        self._cancel.value = False
        self._has_logits = False
        if not self.has_memory:
            return self._feed_batches(tokens, sequence, None, all_logits, progress)
        self.native.call("set_write", self._context, write)
        if spans is None or len(tokens) <= self._n_batch or self._in_pass:
            return self._feed_batches(tokens, sequence, spans, all_logits, progress)
        with self.one_pass():  # only a pass around several batches lets all tokens read the same state
            return self._feed_batches(tokens, sequence, spans, all_logits, progress)

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Everything fed inside reads one state when it has span ids; their writes happen at the end.

        Inside another one it is a part of that. When feed() fails inside, the span writes are dropped.
        """
        if not self.has_memory or self._in_pass:
            yield
            return
        self.native.call("pass_begin", self._context)
        self._in_pass = True
        try:
            yield
        except BaseException:
            self._in_pass = False
            with suppress(NativeError):  # the failure inside is the news, not that it dropped the writes
                self.native.call("pass_end", self._context)
            raise
        self._in_pass = False
        self.native.call("pass_end", self._context)

    def _feed_batches(
        self,
        tokens: Sequence[int],
        sequence: int,
        spans: Sequence[int] | None,
        all_logits: bool,
        progress: Callable[[int], None] | None,
    ) -> NDArray[np.float32]:
        rows: list[NDArray[np.float32]] = []
        fed_before = self._fed[sequence]
        for start in range(0, len(tokens), self._n_batch):
            part = tokens[start : start + self._n_batch]
            last = start + len(part) == len(tokens)
            part_spans = None if spans is None else spans[start : start + len(part)]
            try:
                code, error = self._decode(part, sequence, part_spans, all_logits, last)
            finally:
                # also when a signal's exception comes through: micro-batches may have been done before it
                self._fed[sequence] = int(self.native.llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1
            if code == _ABORTED:
                raise Cancelled(self._fed[sequence] - fed_before)
            if code == _NO_ROOM:
                raise EngineError("The context is full: drop part of it or use a larger --ctx-size.")
            if code != 0:
                raise EngineError(
                    error or f"llama.cpp failed to decode (code {code}): run again with --debug to see why."
                )
            if self._fed[sequence] != fed_before + start + len(part):  # who feeds until it is in would do so for ever
                raise EngineError(f"{self.model.path.name} does not keep what it reads, so it can't chat.")
            if all_logits:
                rows.append(self._logits(len(part)))
            elif last:
                rows.append(self._logits(1)[0])
            if progress:
                progress(start + len(part))
        self._has_logits = True
        return np.concatenate(rows) if all_logits else rows[-1]

    def _decode(
        self, tokens: Sequence[int], sequence: int, spans: Sequence[int] | None, all_logits: bool, last: bool
    ) -> tuple[int, str]:
        """llama_decode in pieces of one batch. Returns its code and δ-mem's error text for this call, if any."""
        llama = self.native.llama
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i] = token
                batch.pos[i] = self._fed[sequence] + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = all_logits or (last and i == len(tokens) - 1)

            def decode() -> tuple[int, str]:
                if spans is not None and self.has_memory:
                    self.native.call("set_spans", self._context, (ctypes.c_int32 * len(spans))(*spans), len(spans))
                code = int(llama.llama_decode(self._context, batch))
                return code, self.native.last_error() if code < 0 and self.has_memory else ""

            return decode() if len(tokens) < _TOKENS_WORTH_A_THREAD else run_interruptible(decode, self.cancel)
        finally:
            llama.llama_batch_free(batch)

    def _logits(self, rows: int) -> NDArray[np.float32]:
        data = self.native.llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(data, (rows, self.model.n_vocab)).copy()

    def cancel(self) -> None:
        """Stops the running feed() at the next node of its graph; it raises Cancelled."""
        self._cancel.value = True

    def sampler(self, sampling: Sampling) -> Sampler:
        """Draws tokens from the logits of the last feed(); close it after use."""
        return Sampler(self.native, sampling, self.model.n_vocab, self._context, lambda: self._has_logits)

    def generate(
        self, sampling: Sampling, *, max_tokens: int | None = None, sequence: int = 0, write: bool = True
    ) -> Iterator[int]:
        """Draws tokens after a feed() on this sequence; each has been fed when it is yielded.

        Ends before a token that ends the model's turn, after max_tokens, or when the context is full.
        """
        sampler = self.sampler(sampling)
        try:
            count = 0
            while (max_tokens is None or count < max_tokens) and self._fed[sequence] < self.n_ctx_seq:
                token = sampler.sample()
                if self.model.is_end(token):
                    return
                self.feed([token], sequence=sequence, write=write)
                yield token
                count += 1
        finally:
            sampler.close()


def _floats(array: NDArray[np.float32]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
