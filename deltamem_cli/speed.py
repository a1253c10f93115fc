"""Measures what δ-mem costs: one model, two contexts, with and without an adapter, taking turns. Prints nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from deltamem_cli.engine import Engine, EngineOptions, Model, Seat, try_out
from deltamem_cli.engine.threads import default_threads

PREFILL_TOKENS = 512
DECODE_TOKENS = 64


@dataclass
class Speeds:
    """Tokens per second, one number per round."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


@dataclass
class Comparison:
    """Medians of both, and the medians of the rounds' ratios: neighbours in time share the machine's mood."""

    stock: Speeds
    deltamem: Speeds
    chosen: dict[str, int | str]  # how both were run
    compute: str  # of the corrections: fused, graph or ops
    splits: dict[str, int] = field(default_factory=dict)  # of the graphs of single tokens: stock and deltamem
    added_bytes: int = 0  # weights, states and scratch memory of δ-mem

    def ratio(self, phase: str) -> float:
        """The median over the rounds of speed with δ-mem by speed without. phase: prefill or decode."""
        pairs = zip(getattr(self.deltamem, phase), getattr(self.stock, phase), strict=True)
        return statistics.median(ours / stock for ours, stock in pairs)

    def median(self, which: str, phase: str) -> float:
        """Tokens per second. which: stock or deltamem; phase: prefill or decode."""
        return statistics.median(getattr(getattr(self, which), phase))


def measure(
    model_path: Path,
    adapter: Path,
    *,
    options: EngineOptions,
    rounds: int = 7,
    gpu_layers: int = 0,
    rpc: str = "",
    tensor_split: str = "",
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Runs `rounds` rounds of prefill and decode on both contexts. progress is called with the rounds done.

    Raises DeltamemError when the model or the adapter can't be used.
    """
    options = replace(
        options, ctx_size=PREFILL_TOKENS + DECODE_TOKENS, threads=options.threads or default_threads()
    )  # the same for both, whatever else runs now
    try_out(model_path)
    with (
        Model(model_path, gpu_layers=gpu_layers, rpc=rpc, tensor_split=tensor_split) as model,
        Engine(model, None, options) as stock,
        Engine(model, adapter, options) as deltamem,
    ):
        seats = Seat(stock), Seat(deltamem)
        report = Comparison(Speeds(), Speeds(), deltamem.chosen(), deltamem.compute)
        # any tokens do: the arithmetic is the same for all
        prompt = [1 + i * 7919 % (model.n_vocab - 1) for i in range(PREFILL_TOKENS)]
        for index in range(-1, rounds):
            # the first round warms up and is not counted; who goes first alternates
            order = [(seats[0], report.stock), (seats[1], report.deltamem)]
            for seat, speeds in order if index % 2 == 0 else reversed(order):
                prefill, decode = _round(seat, prompt)
                if index >= 0:
                    speeds.prefill.append(prefill)
                    speeds.decode.append(decode)
            if progress:
                progress(index + 1)
        report.splits = {"stock": stock.graph_splits, "deltamem": deltamem.graph_splits}
        report.added_bytes = deltamem.added_bytes
        return report


def _round(seat: Seat, prompt: list[int]) -> tuple[float, float]:
    seat.clear_context()
    start = time.perf_counter()
    seat.feed(prompt)
    middle = time.perf_counter()
    for token in prompt[:DECODE_TOKENS]:
        seat.feed([token])
    end = time.perf_counter()
    return len(prompt) / (middle - start), DECODE_TOKENS / (end - middle)
