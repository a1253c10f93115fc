"""A context driven by llama.cpp's own functions: batches of any make, which the engine does not offer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import Self

from deltamem_cli.bindings import COMPUTE, AdapterInfo, native
from deltamem_cli.engine import Model

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
FLASH_AUTO, FLASH_OFF, FLASH_ON = -1, 0, 1


class Row(NamedTuple):
    """One token of a batch; all of them give logits."""

    token: int
    position: int
    sequences: tuple[int, ...] = (0,)


def rows(tokens: Sequence[int], sequence: int = 0, start: int = 0) -> list[Row]:
    return [Row(token, start + i, (sequence,)) for i, token in enumerate(tokens)]


class RawContext:
    """Defaults: float32 caches, no flash attention, one thread. Keywords are fields of llama_context_params."""

    def __init__(
        self,
        model: Model,
        adapter: Path | None = None,
        *,
        compute: str = "auto",
        watch: Watcher | None = None,
        **fields: Any,
    ) -> None:
        self.model, self.native, self.llama = model, native(), native().llama
        params = self.llama.llama_context_default_params()
        settings = {
            "n_ctx": 512, "n_batch": 512, "n_ubatch": 512, "n_threads": 1, "n_threads_batch": 1,
            "type_k": F32, "type_v": F32, "flash_attn_type": FLASH_OFF,
        }  # fmt: skip
        for name, value in (settings | fields).items():
            setattr(params, name, value)
        if watch:
            params.cb_eval = self._watch = self.llama.ggml_backend_sched_eval_callback(
                watch
            )  # kept: C holds no reference
        self.handle = self.llama.llama_init_from_model(model.handle, params)
        assert self.handle, self.native.recent_errors()
        self.memory = self.llama.llama_get_memory(self.handle)
        self.info = AdapterInfo()
        if adapter:
            self.attach(adapter, compute)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.llama.llama_free(self.handle)

    def call(self, name: str, *args: Any) -> Any:
        return self.native.call(name, self.handle, *args)

    def attach(self, adapter: Path, compute: str = "auto") -> None:
        weights = self.native.call("adapter_init", self.model.handle, str(adapter).encode(), COMPUTE.index(compute))
        try:
            self.native.call("adapter_info", weights, self.info)
            self.call("attach", weights)
        finally:
            self.native.call("adapter_free", weights)  # the context keeps what it needs

    def detach(self) -> None:
        self.call("detach")

    def set_spans(self, spans: Sequence[int]) -> None:
        self.call("set_spans", (ctypes.c_int32 * len(spans))(*spans), len(spans))

    def try_decode(self, batch_rows: Sequence[Row], spans: Sequence[int] | None = None) -> int:
        """llama_decode's answer."""
        if spans is not None:
            self.set_spans(spans)
        batch = self.llama.llama_batch_init(len(batch_rows), 0, 4)
        try:
            batch.n_tokens = len(batch_rows)
            for i, row in enumerate(batch_rows):
                batch.token[i], batch.pos[i], batch.logits[i] = row.token, row.position, True
                batch.n_seq_id[i] = len(row.sequences)
                for j, sequence in enumerate(row.sequences):
                    batch.seq_id[i][j] = sequence
            return int(self.llama.llama_decode(self.handle, batch))
        finally:
            self.llama.llama_batch_free(batch)

    def decode(self, batch_rows: Sequence[Row], spans: Sequence[int] | None = None) -> np.ndarray:
        """Logits [rows, n_vocab]."""
        code = self.try_decode(batch_rows, spans)
        assert code == 0, (code, self.native.last_error(), self.native.recent_errors())
        logits = self.llama.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(logits, (len(batch_rows), self.model.n_vocab)).copy()

    def decode_in(self, batch: int, batch_rows: Sequence[Row]) -> np.ndarray:
        """The rows in several calls of at most `batch`."""
        return np.concatenate([self.decode(batch_rows[i : i + batch]) for i in range(0, len(batch_rows), batch)])

    def state(self, sequence: int = 0) -> np.ndarray:
        """[layers, heads, rank, rank]"""
        state = np.empty((self.info.n_layers, self.info.n_heads, self.info.rank, self.info.rank), np.float32)
        self.call("state_get", sequence, floats(state), state.size)
        return state

    def set_state(self, state: np.ndarray, sequence: int = 0) -> None:
        self.call("state_set", sequence, floats(np.ascontiguousarray(state, np.float32)), state.size)


def floats(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


Watcher = Callable[[int, bool, Any], bool]  # (tensor, ask, user data) -> whether it is wanted, or to go on
