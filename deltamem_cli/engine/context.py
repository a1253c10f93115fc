"""Makes and frees the llama.cpp context that an engine works in; feeds nothing."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from typing import Any

from deltamem_cli.bindings import NativeError
from deltamem_cli.cache_types import CACHE_TYPES
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.model import Model, cannot_chat
from deltamem_cli.engine.options import CACHE_BLOCK, FLASH_ATTENTION, EngineOptions, is_quantized
from deltamem_cli.engine.room import available, bounded

_BYTES_PER_TOKEN = 48  # that llama.cpp keeps of a place in any context, keys and values apart


class Context:
    """A context of `model` with threads of its own; free it with close()."""

    def __init__(self, model: Model, options: EngineOptions, threads: int, cancel: ctypes.c_bool) -> None:
        """cancel: set, it stops the running llama_decode. Raises EngineError or NativeError."""
        self._model = model
        model.acquire()
        try:
            if not options.ctx_size and not model.n_ctx_train:
                raise EngineError(f"{model.path.name} does not state its context size: set one with --ctx-size.")
            _check_cache(model, options)
            _check_room((options.ctx_size or model.n_ctx_train) * options.seats)
            self.handle, self._threadpool, complaints = _make(model, options, threads, cancel)
        except BaseException:
            model.release()
            raise
        # llama.cpp has no question for what became of "auto", or of "on" where a model can't; it warns of an off
        refused = "Flash Attention not supported" in complaints or "flash_attn is not compatible" in complaints
        self.flash_attention = options.flash_attention != "off" and not refused

    def close(self) -> None:
        """Frees the context and its threads; may be called again."""
        if self.handle:
            self._model.native.llama.llama_free(self.handle)
            self.handle = None
            self._model.native.call("threadpool_free", self._threadpool)
            self._model.release()


def _check_cache(model: Model, options: EngineOptions) -> None:
    """Raises EngineError for a KV cache that llama.cpp would refuse, or end the process for."""
    for kind, cache_type in (("k", options.cache_type_k), ("v", options.cache_type_v)):
        width = model.head_width(kind)
        if is_quantized(cache_type) and width % CACHE_BLOCK:
            raise EngineError(
                f"The KV cache of {model.path.name} can't be {cache_type}, which needs heads of a multiple of "
                f"{CACHE_BLOCK} numbers and not {width}: use --cache-type-{kind} f16."
            )


def _check_room(tokens: int) -> None:
    """Raises EngineError for a context that llama.cpp would take minutes to find too large."""
    room = available()
    if room is not None and tokens * _BYTES_PER_TOKEN > room:
        raise EngineError(
            f"A context of {tokens} tokens can't be created (there are {room / 1e9:.1f} GB of memory to be had): "
            "try a smaller --ctx-size."
        )


def _make(model: Model, options: EngineOptions, threads: int, cancel: ctypes.c_bool) -> tuple[Any, Any, str]:
    """The context, its threads, and what llama.cpp warned of."""
    native, llama = model.native, model.native.llama
    params = llama.llama_context_default_params()
    # Every seat has its own part of the KV cache: what the others hold takes no room and no time from it.
    params.kv_unified = False
    params.n_seq_max = options.seats
    params.n_ctx = options.ctx_size if options.seats == 1 else (options.ctx_size or model.n_ctx_train) * options.seats
    params.n_batch = options.batch
    params.n_ubatch = min(options.micro_batch, options.batch)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = CACHE_TYPES[options.cache_type_k]
    params.type_v = CACHE_TYPES[options.cache_type_v]
    params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    # A function of the library, not of Python: it is called once per node of the graph.
    abort = ctypes.cast(native.lib.llama_deltamem_abort_if_set, ctypes.c_void_p).value
    params.abort_callback = type(params.abort_callback)(abort)
    params.abort_callback_data = ctypes.addressof(cancel)
    native.recent_errors()
    # a driver takes address space for a GPU that it never fills
    with nullcontext() if native.has_gpu else bounded():
        context = llama.llama_init_from_model(model.handle, params)
    complaints = native.recent_errors()
    if not context:
        raise EngineError(
            f"A context of {options.ctx_size or model.n_ctx_train} tokens can't be created ({complaints or 'probably too little memory'}): "
            "try a smaller --ctx-size."
        )
    try:
        if not llama.llama_get_memory(context):
            raise cannot_chat(model.path, f"{model.architecture} models keep no memory of what they read")
        threadpool = native.call("threadpool_init", threads)
    except (EngineError, NativeError):
        llama.llama_free(context)
        raise
    native.lib.llama_attach_threadpool(context, threadpool, threadpool)
    return context, threadpool, complaints
