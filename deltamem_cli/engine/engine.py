"""A model, an adapter and a context that work together: what all seats share. Feeds nothing itself."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_cli.bindings import COMPUTE, GRANULARITIES, AdapterInfo, NativeError
from deltamem_cli.engine.context import Context
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.heads import KeptHead
from deltamem_cli.engine.model import Model
from deltamem_cli.engine.options import EngineOptions
from deltamem_cli.engine.threads import default_threads

if TYPE_CHECKING:
    from typing_extensions import Self


class Engine:
    """One context over `model`, with `adapter` attached or, when None, as plain llama.cpp. Take a Seat to work with it.

    Each seat is for one thread at a time; several threads need `decode_beside_others`. cancel() of a seat may be called
    from any thread or signal handler.
    """

    def __init__(self, model: Model, adapter: Path | None = None, options: EngineOptions | None = None) -> None:
        """Raises EngineError or NativeError; the model stays usable then."""
        self.model = model
        self.native = model.native
        self.options = options = options or EngineOptions()
        self.n_threads = options.threads or default_threads()
        self._adapter: Any = None
        self._abort = ctypes.c_bool(False)
        self._made = Context(model, options, self.n_threads, self._abort)
        llama = self.native.llama
        self.n_ctx_seq = int(llama.llama_n_ctx_seq(self.context))  # tokens that a seat holds
        # Less than asked for where the context is smaller; llama.cpp ends the process for a larger one.
        self.n_batch = int(llama.llama_n_batch(self.context))
        self.kv = llama.llama_get_memory(self.context)
        self.n_swa = int(llama.llama_model_n_swa(model.handle))
        # A recurrent layer keeps one state for all that was read; no part of it can be taken out again.
        self.keeps_positions = not any(
            is_so(model.handle) for is_so in (llama.llama_model_is_recurrent, llama.llama_model_is_hybrid)
        )
        self._free_seats = list(range(options.seats))
        # Tokens of each sequence that the model sees. llama.cpp's own count is of no use when tokens were taken out: a
        # sliding window may hold none of those that are left.
        self.n_past = [0] * options.seats
        self.seats: list[Any] = []  # those that were taken, in order
        self.kept_head = KeptHead(llama) if options.seats > 1 else None  # one seat alone hardly begins twice
        self.alone = threading.RLock()  # around all that touches the context: llama.cpp has no locks of its own
        # takes the next tokens of a Feed through the model together with those of other threads; None: there are none
        self.decode_beside_others: Callable[[Any], None] | None = None
        self._running: frozenset[int] = frozenset()  # sequences in the llama_decode that runs
        self.cancelled: set[int] = set()  # sequences
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

    def check_open(self) -> None:
        """Raises EngineError after close()."""
        if not self.context:
            raise EngineError("The engine is closed: create a new one.")

    @property
    def context(self) -> Any:
        """llama.cpp's; None when closed."""
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
            self.native.call("attach", self.context, handle)
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
            self.native.call("detach", self.context)
            self.native.call("adapter_free", self._adapter)
            self._adapter = None
            self.info, self.layers = AdapterInfo(), []

    @property
    def has_memory(self) -> bool:
        """Whether an adapter is attached."""
        return self._adapter is not None

    @property
    def granularity(self) -> str:
        """token, message_mean or sentence_mean: what the spans of what is fed should be."""
        return GRANULARITIES[self.info.granularity]

    @property
    def compute(self) -> str:
        """How the corrections are computed: fused, graph or ops; auto without an adapter."""
        return COMPUTE[self.info.compute]

    @property
    def graph_splits(self) -> int:
        """Parts of which the last computed graph consists: 1 when all of it ran on one device."""
        return int(self.native.call("n_splits", self.context))

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(layers, heads, rank, rank)"""
        return (self.info.n_layers, self.info.n_heads, self.info.rank, self.info.rank)

    @property
    def added_bytes(self) -> int:
        """Memory that δ-mem takes beside the plain model: weights, states and scratch memory."""
        return int(self.info.n_bytes) + int(self.native.call("state_n_bytes", self.context)) if self.has_memory else 0

    # sequences

    def take_sequence(self) -> int:
        """One that nobody has yet. Raises EngineError when all are taken."""
        if not self._free_seats:
            raise EngineError(f"All seats of this engine are taken: make it with more than {self.options.seats}.")
        return self._free_seats.pop(0)

    def drop_pass(self, sequence: int) -> None:
        """The span writes of the sequence's open pass, if there is one, are dropped."""
        if self.has_memory:
            with self.alone:
                self.native.call("pass_drop", self.context, sequence)

    def cancel(self, sequence: int) -> None:
        """Its feeding ends, and the llama_decode that runs when no other sequence needs it; see batch.decode()."""
        self.cancelled.add(sequence)
        self._abort_if_all_cancelled()

    def abort(self) -> None:
        """Stops the llama_decode that runs at the next node of its graph, whoever needs it."""
        self._abort.value = True

    @contextmanager
    def running(self, sequences: Iterable[int]) -> Iterator[None]:
        """Around a llama_decode of these sequences."""
        self._abort.value = False
        self._running = frozenset(sequences)
        self._abort_if_all_cancelled()  # by now; cancel() looks from here on
        try:
            yield
        finally:
            self._running = frozenset()

    def _abort_if_all_cancelled(self) -> None:
        if self._running and self._running <= self.cancelled:
            self.abort()
