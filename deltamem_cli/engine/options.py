"""How an engine's context is made; knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deltamem_cli.bindings import COMPUTE
from deltamem_cli.cache_types import CACHE_TYPES
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.text import short

CACHE_BLOCK = 32  # numbers that are quantized together, of every type that begins with q
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_MAX_THREADS = 512  # GGML_MAX_N_THREADS
LARGEST = 2**31 - 1  # what passes into a C int unchanged


@dataclass(frozen=True)
class EngineOptions:
    """How a context is made. Zero or None: chosen for this model and machine."""

    ctx_size: int = 4096  # tokens that each seat holds
    seats: int = 1  # conversations that can go on at the same time, each in a part of its own
    batch: int = 512
    micro_batch: int = 512
    threads: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    compute: Literal["auto", "fused", "ops", "graph"] = "auto"  # of the corrections; "graph" is what GPUs use

    def __post_init__(self) -> None:
        for name in ("cache_type_k", "cache_type_v"):
            if getattr(self, name) not in CACHE_TYPES:
                raise EngineError(
                    f"The KV cache type {short(getattr(self, name))} is not known: use one of {', '.join(CACHE_TYPES)}."
                )
        if self.flash_attention not in FLASH_ATTENTION:
            raise EngineError(f"Flash attention is {short(self.flash_attention)}: it must be auto, on or off.")
        if is_quantized(self.cache_type_v) and self.flash_attention == "off":
            raise EngineError(
                f"Values in the KV cache can be {self.cache_type_v} only with flash attention, which is off: "
                "use --flash-attn auto, or --cache-type-v f16."
            )
        if self.compute not in COMPUTE:
            raise EngineError(f"The compute option is {short(self.compute)}: it must be one of {', '.join(COMPUTE)}.")
        for name in ("batch", "micro_batch", "seats"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise EngineError(f"The option {name} is {getattr(self, name)}: it must be 1 to {LARGEST}.")
        if self.threads is not None and not 1 <= self.threads <= _MAX_THREADS:
            raise EngineError(f"The option threads is {self.threads}: it must be 1 to {_MAX_THREADS}.")
        if not 0 <= self.ctx_size <= LARGEST:
            raise EngineError(f"The context size is {self.ctx_size}: it must be 0 (the model's own) to {LARGEST}.")
        if self.ctx_size * self.seats > LARGEST:
            raise EngineError(f"{self.seats} seats of {self.ctx_size} tokens are more than {LARGEST}: ask for fewer.")


def is_quantized(cache_type: str) -> bool:
    """Whether a KV cache type stores blocks of numbers, which values need flash attention for."""
    return cache_type.startswith("q")
