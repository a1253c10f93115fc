"""Inside a whole model: the memory is what the oracle makes of the layers' true inputs, however tokens are cut up."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from raw_context import RawContext, rows
from reference import LayerWeights, ScanParams, corrections, delta_rule_scan, project

from deltamem_cli.adapter.format import Adapter, read_adapter
from deltamem_cli.bindings import COMPUTE, native

LOGITS = 5e-5  # float32 sums in another order; a fault gives differences above 1e-2
STATE = 1e-5

# Settings of adapters: every feature at least once, each with another one that might disturb it.
VARIANTS: dict[str, dict[str, Any]] = {
    "token_qo": {},
    "token_qkvo_f32": {"delta_heads": ("q", "k", "v", "o"), "type": "F32"},
    "four_heads_f16": {"state_heads": 4, "rank": 4, "delta_heads": ("k", "v"), "type": "F16"},
    "own_lambda_scalar_gates": {"couple_lambda": False, "rankwise_gates": False, "state_heads": 2},
    "lambda_outside_raw_qk": {"state_update": "lambda_outside", "normalize_qk": False},
    "no_lambda_rank_64": {"state_update": "no_lambda", "couple_lambda": False, "rank": 64},
    "normed_o_one_layer": {"delta_o_norm_eps": 1e-6, "layers": (1,)},
    "message_mean": {"write_granularity": "message_mean", "delta_heads": ("q", "k", "v", "o")},
    "sentence_mean_heads": {"write_granularity": "sentence_mean", "state_heads": 4},
}
TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 288, 37)]
# Spans that meet, repeat behind others, and leave tokens out.
SPANS = [-1] * 3 + [5] * 9 + [2] * 8 + [-1] + [5] * 4 + [7] * 11 + [9]


def spans_for(variant: str) -> list[int] | None:
    return SPANS if "mean" in VARIANTS[variant].get("write_granularity", "") else None


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=COMPUTE[1:])
def compute(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def oracle_rule(adapter: Adapter) -> tuple[dict[int, LayerWeights], dict[int, ScanParams]]:
    """The adapter's numbers by layer, as the oracle takes them."""
    config, weights, rules = adapter.config, {}, {}
    for layer in config.layers:

        def get(name: str, layer: int = layer) -> Any:
            tensor = adapter.tensors.get(f"blk.{layer}.deltamem_{name}")
            return None if tensor is None else tensor.float32.astype(np.float64)

        deltas = {head: get(f"delta_{head}.weight") for head in config.delta_heads}
        weights[layer] = LayerWeights(
            get("q.weight"), get("k.weight"), get("v.weight"), get("beta.weight"), get("lambda.weight"), deltas,
            get("delta_o_norm.weight"), config.delta_o_norm_eps or 0,
        )  # fmt: skip
        rules[layer] = ScanParams(
            config.rank, config.state_heads, get("beta.bias"), get("lambda.bias"), config.write_granularity,
            config.rankwise_gates, config.couple_lambda, config.state_update, config.normalize_qk,
        )  # fmt: skip
    return weights, rules


class Seen:
    """Records what graph nodes held, by the names that llama.cpp gives them; only the first of each name."""

    def __init__(self, *names: str) -> None:
        self.names, self.values = names, dict[str, np.ndarray]()
        ggml = ctypes.CDLL(str(native().directory / "lib" / "libggml-base.so"))
        self._name, self._data, self._size = ggml.ggml_get_name, ggml.ggml_get_data, ggml.ggml_nbytes
        self._name.restype, self._data.restype, self._size.restype = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
        for function in (self._name, self._data, self._size):
            function.argtypes = [ctypes.c_void_p]

    def __call__(self, tensor: int, ask: bool, _: Any) -> bool:
        name = self._name(tensor).decode()
        wanted = name.rsplit("-", 1)[0] in self.names and name not in self.values
        if not ask and wanted:
            data = ctypes.string_at(self._data(tensor), self._size(tensor))
            self.values[name] = np.frombuffer(data, np.float32).reshape(len(TOKENS), -1).astype(np.float64)
        return wanted if ask else True


@pytest.mark.parametrize("arch", ["qwen3", "llama", "phi3", "gemma3", "qwen3moe"])
def test_states_are_what_the_oracle_makes_of_each_layers_input(
    arch: str, variant: str, compute: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    model = tiny_model(arch)
    adapter = tiny_adapter(model, **VARIANTS[variant])
    weights, rules = oracle_rule(read_adapter(adapter))
    seen = Seen("attn_norm")
    with RawContext(loaded(model), adapter, compute=compute, watch=seen) as context:
        before = np.random.default_rng(2).normal(0, 0.2, context.state().shape)
        context.set_state(before)
        context.decode(rows(TOKENS), spans_for(variant))
        after = context.state()
    for index, (layer, rule) in enumerate(rules.items()):
        p = project(seen.values[f"attn_norm-{layer}"], weights[layer])
        _, expected = delta_rule_scan(p, rule, before[index].astype(np.float32).astype(np.float64), spans_for(variant))
        np.testing.assert_allclose(after[index], expected, rtol=0, atol=STATE)
        assert np.abs(expected - before[index]).max() > 0.01


@pytest.mark.parametrize("arch", ["qwen3", "llama", "phi3"])
def test_projections_change_by_what_the_oracle_says(
    arch: str, compute: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    """In the first layer, whose input no correction has touched yet."""
    model = tiny_model(arch)
    adapter = tiny_adapter(model, delta_heads=("q", "k", "v"), rank=16, state_heads=2)
    weights, rules = oracle_rule(read_adapter(adapter))
    names = ["wqkv"] if arch == "phi3" else ["Qcur", "Kcur", "Vcur"]
    plain, corrected = Seen(*names), Seen("attn_norm", *names)
    with RawContext(loaded(model), watch=plain) as context:
        context.decode(rows(TOKENS))
    with RawContext(loaded(model), adapter, compute=compute, watch=corrected) as context:
        start = np.random.default_rng(2).normal(0, 0.2, context.state().shape).astype(np.float32)
        context.set_state(start)
        context.decode(rows(TOKENS))
    reads, _ = delta_rule_scan(
        project(corrected.values["attn_norm-0"], weights[0]), rules[0], start[0].astype(np.float64)
    )
    changes = corrections(reads, weights[0])
    expected = np.concatenate([changes["q"], changes["k"], changes["v"]], axis=1)
    found = np.concatenate([corrected.values[f"{name}-0"] - plain.values[f"{name}-0"] for name in names], axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("normed", [False, True])
def test_attention_output_changes_by_what_the_oracle_says(
    normed: bool, compute: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    model = tiny_model("llama")
    adapter = tiny_adapter(model, delta_heads=("o",), delta_o_norm_eps=1e-5 if normed else None)
    weights, rules = oracle_rule(read_adapter(adapter))
    plain, corrected = Seen("ffn_inp"), Seen("attn_norm", "ffn_inp")
    with RawContext(loaded(model), watch=plain) as context:
        context.decode(rows(TOKENS))
    with RawContext(loaded(model), adapter, compute=compute, watch=corrected) as context:
        context.decode(rows(TOKENS))
    p = project(corrected.values["attn_norm-0"], weights[0])
    reads, _ = delta_rule_scan(p, rules[0], np.zeros((1, 8, 8)))
    expected = corrections(reads, weights[0])["o"]
    found = corrected.values["ffn_inp-0"] - plain.values["ffn_inp-0"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected).max() > 0.1


@pytest.fixture
def whole(
    variant: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> Iterator[tuple[Any, Path, np.ndarray, np.ndarray]]:
    """Model and adapter, with logits and state of all tokens at once."""
    model = tiny_model("qwen3")
    adapter = tiny_adapter(model, **VARIANTS[variant])
    with RawContext(loaded(model), adapter) as context:
        logits = context.decode(rows(TOKENS), spans_for(variant))
        state = context.state()
    assert np.abs(state).max() > 0.01
    yield loaded(model), adapter, logits, state


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_the_micro_batch_changes_nothing(
    whole: tuple[Any, Path, np.ndarray, np.ndarray], variant: str, compute: str, micro_batch: int
) -> None:
    model, adapter, logits, state = whole
    with RawContext(model, adapter, compute=compute, n_ubatch=micro_batch) as context:
        np.testing.assert_allclose(context.decode(rows(TOKENS), spans_for(variant)), logits, rtol=0, atol=LOGITS)
        np.testing.assert_allclose(context.state(), state, rtol=0, atol=STATE)


@pytest.mark.parametrize("compute", COMPUTE[1:])
def test_the_number_of_threads_changes_nothing(
    compute: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    """Few tokens and many, heads of all kinds; few runs, because on a busy machine threads wait for each other long."""
    model = tiny_model("phi3")
    for settings in ({"delta_heads": ("q", "k", "v", "o")}, {"delta_o_norm_eps": 1e-6, "rank": 4, "state_heads": 3}):
        adapter, results = tiny_adapter(model, **settings), []
        for n_threads in (1, 3):
            with RawContext(
                loaded(model), adapter, compute=compute, n_threads=n_threads, n_threads_batch=n_threads
            ) as context:
                parts = [context.decode(rows(TOKENS[:30])), context.decode(rows(TOKENS[30:32], start=30))]
                parts.append(context.decode(rows(TOKENS[32:33], start=32)))
                results.append((np.concatenate(parts), context.state()))
        np.testing.assert_allclose(results[1][0], results[0][0], rtol=0, atol=LOGITS)
        np.testing.assert_allclose(results[1][1], results[0][1], rtol=0, atol=STATE)


@pytest.mark.parametrize(("batch", "micro_batch"), [(5, 5), (5, 2), (1, 1)])
def test_cutting_the_tokens_into_batches_changes_nothing(
    whole: tuple[Any, Path, np.ndarray, np.ndarray], variant: str, compute: str, batch: int, micro_batch: int
) -> None:
    """With span ids the batches must lie in one pass, so that all tokens read the same state."""
    model, adapter, logits, state = whole
    spans = spans_for(variant)
    with RawContext(model, adapter, compute=compute, n_batch=batch, n_ubatch=micro_batch) as context:
        context.call("pass_begin", 0)
        parts = []
        for i in range(0, len(TOKENS), batch):
            part = rows(TOKENS[i : i + batch], start=i)
            parts.append(context.decode(part, None if spans is None else spans[i : i + batch]))
        context.call("pass_end", 0)
        np.testing.assert_allclose(np.concatenate(parts), logits, rtol=0, atol=LOGITS)
        np.testing.assert_allclose(context.state(), state, rtol=0, atol=STATE)


def test_without_an_open_pass_each_call_is_one(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    """So a message in two calls is two writes, and the second call reads the first one's."""
    model = tiny_model("qwen3")
    with RawContext(loaded(model), tiny_adapter(model, write_granularity="message_mean")) as context:
        context.decode(rows(TOKENS[:20]), [4] * 20)
        first = context.state()
        context.decode(rows(TOKENS[20:], start=20), [4] * 17)
        assert np.abs(first).max() > 0.01
        assert np.abs(context.state() - first).max() > 0.01


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_tokens_without_span_ids_write_one_by_one_whatever_the_granularity(
    granularity: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    model = tiny_model("qwen3")
    states = []
    for setting in ("token", granularity):
        with RawContext(loaded(model), tiny_adapter(model, write_granularity=setting)) as context:
            context.decode(rows(TOKENS))
            states.append(context.state())
    assert states[0].tobytes() == states[1].tobytes()


def test_a_token_writer_leaves_out_the_tokens_whose_span_is_minus_one(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel, compute: str
) -> None:
    model = tiny_model("qwen3")
    adapter = tiny_adapter(model)
    with RawContext(loaded(model), adapter, compute=compute) as context:
        context.decode(rows(TOKENS), SPANS)
        state = context.state()
    with RawContext(loaded(model), adapter, compute=compute) as context:
        for row, span in zip(rows(TOKENS), SPANS, strict=True):
            context.call("set_write", span >= 0)
            context.decode([row])
        np.testing.assert_allclose(context.state(), state, rtol=0, atol=STATE)


def test_no_way_to_compute_splits_the_graph_of_a_cpu(
    compute: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    model = tiny_model("qwen3")
    with RawContext(loaded(model), tiny_adapter(model), compute=compute) as context:
        for count in (len(TOKENS), 1):
            context.decode(rows(TOKENS[:count], start=0 if count > 1 else len(TOKENS)))
            assert context.call("n_splits") == 1


def test_all_ways_to_compute_agree(
    variant: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    model = tiny_model("phi3")
    adapter = tiny_adapter(model, **VARIANTS[variant])
    results = []
    for compute in COMPUTE[1:]:
        with RawContext(loaded(model), adapter, compute=compute) as context:
            assert context.info.compute == COMPUTE.index(compute)
            results.append((context.decode(rows(TOKENS), spans_for(variant)), context.state()))
    for logits, state in results[1:]:
        np.testing.assert_allclose(logits, results[0][0], rtol=0, atol=LOGITS)
        np.testing.assert_allclose(state, results[0][1], rtol=0, atol=STATE)
