"""How the next token is drawn: llama.cpp's samplers behind one set of options."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.options import LARGEST

if TYPE_CHECKING:
    from deltamem_cli.engine.model import Model

RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: a new one each time
# llama.cpp's numbers are float32, where others become infinite or 0
_SMALLEST_FLOAT, _LARGEST_FLOAT = 1.2e-38, 3.4e38
# llama.cpp reserves room for all tokens that repeat_last_n may look back at; no reply has as many as this.
_LOOKED_BACK = 1 << 20


@dataclass(frozen=True)
class Sampling:
    """Options as in llama-cli; the defaults are its defaults. temperature 0 takes the likeliest token."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = RANDOM_SEED

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0 <= self.temperature <= _LARGEST_FLOAT, f"0 to {_LARGEST_FLOAT}"),
            ("top_k", 0 <= self.top_k <= LARGEST, f"0 (all tokens) to {LARGEST}"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            (
                "repeat_penalty",
                _SMALLEST_FLOAT <= self.repeat_penalty <= _LARGEST_FLOAT,
                f"{_SMALLEST_FLOAT} to {_LARGEST_FLOAT}",
            ),
            ("repeat_last_n", 0 <= self.repeat_last_n <= LARGEST, f"0 to {LARGEST}"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2"),
            ("seed", 0 <= self.seed <= RANDOM_SEED, f"0 to {RANDOM_SEED}"),
        )
        for name, fine, allowed in checks:
            if not fine:
                raise EngineError(f"The option {name} is {getattr(self, name)}: it must be {allowed}.")


# what a model's file calls the options that it recommends
_IN_FILES = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "repeat_last_n": "penalty_last_n",
}


def recommended(metadata: Callable[[str], Any]) -> dict[str, float | int]:
    """The options that a model's file recommends, by our names. metadata: its value of a key, as number or text, or None.

    What makes no sense is left out.
    """
    found: dict[str, float | int] = {}
    for name, key in _IN_FILES.items():
        said = metadata(f"general.sampling.{key}")
        kind: Any = type(getattr(Sampling, name))
        try:
            value = kind(said)
            Sampling(**{name: value})
        except (TypeError, ValueError, EngineError):
            continue
        found[name] = value
    return found


@dataclass(frozen=True)
class LazyGrammar:
    """A grammar that holds from the first time on that the token `trigger` is drawn, with which its texts begin."""

    gbnf: str
    trigger: int


class Sampler:
    """One chain of llama.cpp's samplers; it remembers the tokens that it accepted.

    logits: those to draw from, [n_vocab] float32, or None when there are none. grammar: GBNF that the tokens keep to.
    """

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        logits: Callable[[], NDArray[np.float32] | None],
        grammar: str | LazyGrammar | None = None,
    ) -> None:
        """Raises EngineError for a grammar that llama.cpp can't read; a lazy one is left out then."""
        self.llama, n_vocab = model.native.llama, model.n_vocab
        self._logits = logits
        first = [] if grammar is None else _keeping_to(model, grammar)
        # struct llama_token_data as rows of id, logit and p. Plain numbers: numpy copies records many times slower.
        self._every = np.zeros((n_vocab, 3), np.int32)
        self._every[:, 0] = np.arange(n_vocab)
        self._candidates = self._every.copy()
        llama = self.llama
        self.chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in [*first, *_samplers(llama, sampling, n_vocab)]:
            llama.llama_sampler_chain_add(self.chain, sampler)

    def sample(self) -> int:
        """Draws a token from the logits, and remembers it. Raises EngineError when there are none."""
        logits = self._logits()
        if logits is None:
            raise EngineError("There is nothing to sample from: feed the model at least one token first.")
        self._candidates[:] = self._every  # samplers sort them
        self._candidates[:, 1] = logits.view(np.int32)
        data = self._candidates.ctypes.data_as(ctypes.POINTER(self.llama.llama_token_data))
        array = self.llama.llama_token_data_array(data, len(self._candidates), -1, False)
        self.llama.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        self.llama.llama_sampler_accept(self.chain, token)
        return token

    def close(self) -> None:
        """Frees the chain of samplers; may be called again."""
        if self.chain:
            self.llama.llama_sampler_free(self.chain)
            self.chain = None


def _keeping_to(model: Model, grammar: str | LazyGrammar) -> list[Any]:
    llama, sampler = model.native.llama, None
    lazy = grammar if isinstance(grammar, LazyGrammar) else None
    data = (lazy.gbnf if lazy else str(grammar)).encode()
    if b"\0" in data:
        pass
    elif lazy:
        tokens = (llama.llama_token * 1)(lazy.trigger)
        sampler = llama.llama_sampler_init_grammar_lazy_patterns(model.vocab, data, b"root", None, 0, tokens, 1)
    else:
        sampler = llama.llama_sampler_init_grammar(model.vocab, data, b"root")
    if sampler:
        return [sampler]
    if lazy:  # a reply that may not even need it must not fail for it
        return []
    raise EngineError("The grammar can't be read: give GBNF with a rule called root.")


def _samplers(llama: Any, sampling: Sampling, n_vocab: int) -> list[Any]:
    chain = []
    penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    if penalties != (1.0, 0.0, 0.0) and sampling.repeat_last_n > 0:
        looked_back = min(sampling.repeat_last_n, _LOOKED_BACK)
        chain.append(llama.llama_sampler_init_penalties(n_vocab, looked_back, *penalties))
    if sampling.temperature == 0:
        return [*chain, llama.llama_sampler_init_greedy()]
    return [
        *chain,
        llama.llama_sampler_init_top_k(sampling.top_k),
        llama.llama_sampler_init_top_p(sampling.top_p, 1),
        llama.llama_sampler_init_min_p(sampling.min_p, 1),
        llama.llama_sampler_init_temp(sampling.temperature),
        llama.llama_sampler_init_dist(sampling.seed),
    ]
