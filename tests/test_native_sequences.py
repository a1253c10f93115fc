"""Several sequences in one context: each has the logits and the state that it would have alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from raw_context import RawContext, Row, rows

from deltamem_cli.bindings import COMPUTE, NativeError

LOGITS, STATE = 5e-5, 1e-5

rng = np.random.default_rng(7)
TOKENS = {sequence: [int(token) for token in rng.integers(0, 288, n)] for sequence, n in ((0, 13), (1, 21), (2, 9))}
# The same ids in every sequence: they must not meet.
SPANS = {sequence: [(3, 1, -1, 8)[i // 6] for i in range(len(tokens))] for sequence, tokens in TOKENS.items()}


def interleaved() -> list[tuple[Row, int]]:
    """Rows of all sequences with their span ids, shuffled, each sequence in its own order."""
    queues = {s: list(zip(rows(TOKENS[s], s), SPANS[s], strict=True)) for s in TOKENS}
    order = [s for s in TOKENS for _ in TOKENS[s]]
    np.random.default_rng(8).shuffle(order)
    return [queues[s].pop(0) for s in order]


@pytest.fixture(params=["token", "message_mean", "sentence_mean"])
def granularity(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def adapted(granularity: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel) -> tuple[Any, Path]:
    model = tiny_model("qwen3")
    adapter = tiny_adapter(model, write_granularity=granularity, delta_heads=("q", "k", "v", "o"), state_heads=2)
    return loaded(model), adapter


@pytest.fixture(params=COMPUTE[1:])
def compute(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(shape: tuple[int, ...], sequence: int) -> np.ndarray:
    return np.random.default_rng(sequence).normal(0, 0.2, shape).astype(np.float32)


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("n_ubatch", [1, 4, 512])
def test_tokens_of_three_sequences_mixed_in_one_batch_are_as_each_sequence_alone(
    adapted: tuple[Any, Path], granularity: str, n_ubatch: int, kv_unified: bool, compute: str
) -> None:
    model, adapter = adapted
    mixed = interleaved()
    spans = None if granularity == "token" else [span for _, span in mixed]
    with RawContext(model, adapter, compute=compute, n_ubatch=n_ubatch, n_seq_max=3, kv_unified=kv_unified) as context:
        shape = context.state().shape
        for sequence in TOKENS:
            context.set_state(start(shape, sequence), sequence)
        logits = context.decode([row for row, _ in mixed], spans)
        states = {sequence: context.state(sequence) for sequence in TOKENS}
    for sequence, tokens in TOKENS.items():
        with RawContext(model, adapter) as alone:
            alone.set_state(start(shape, sequence))
            expected = alone.decode(rows(tokens), None if spans is None else SPANS[sequence])
            own = [i for i, (row, _) in enumerate(mixed) if row.sequences == (sequence,)]
            np.testing.assert_allclose(logits[own], expected, rtol=0, atol=LOGITS)
            np.testing.assert_allclose(states[sequence], alone.state(), rtol=0, atol=STATE)
            assert np.abs(states[sequence] - start(shape, sequence)).max() > 0.01


def test_writing_one_sequence_leaves_every_bit_of_the_others(adapted: tuple[Any, Path], compute: str) -> None:
    model, adapter = adapted
    with RawContext(model, adapter, compute=compute, n_seq_max=3) as context:
        shape = context.state().shape
        context.set_state(start(shape, 2), 2)
        context.decode(rows(TOKENS[1], 1))
        assert context.state(2).tobytes() == start(shape, 2).tobytes()
        assert not context.state(0).any()


def test_a_copied_state_goes_its_own_way(adapted: tuple[Any, Path], compute: str) -> None:
    model, adapter = adapted
    with RawContext(model, adapter, compute=compute, n_seq_max=3) as context:
        context.decode(rows(TOKENS[0], 0))
        written = context.state(0)
        context.call("state_copy", 0, 2)
        assert context.state(2).tobytes() == written.tobytes()
        context.decode(rows(TOKENS[2], 2))
        assert context.state(0).tobytes() == written.tobytes()
        assert np.abs(context.state(2) - written).max() > 0.01
        context.call("state_copy", 1, 2)  # a sequence that was never written is zero
        assert not context.state(2).any()
        context.call("state_copy", 0, 0)
        assert context.state(0).tobytes() == written.tobytes()


def test_a_copied_sequence_continues_as_the_original_would(adapted: tuple[Any, Path], compute: str) -> None:
    model, adapter = adapted
    with RawContext(model, adapter, compute=compute, n_seq_max=2, kv_unified=True) as context:
        context.decode(rows(TOKENS[0]))
        context.llama.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
        context.call("state_copy", 0, 1)
        next_tokens = rows(TOKENS[2], start=len(TOKENS[0]))
        original = context.decode(next_tokens)
        copy = context.decode([Row(row.token, row.position, (1,)) for row in next_tokens])
        np.testing.assert_allclose(copy, original, rtol=0, atol=LOGITS)
        np.testing.assert_allclose(context.state(1), context.state(0), rtol=0, atol=STATE)


def test_clearing_empties_one_state_or_all(adapted: tuple[Any, Path], compute: str) -> None:
    model, adapter = adapted
    with RawContext(model, adapter, compute=compute, n_seq_max=3) as context:
        for sequence, tokens in TOKENS.items():
            context.decode(rows(tokens, sequence))
        context.call("state_clear", 1)
        assert [bool(context.state(sequence).any()) for sequence in TOKENS] == [True, False, True]
        context.call("state_clear", -1)
        assert not any(context.state(sequence).any() for sequence in TOKENS)


def test_the_state_outlives_the_visible_context(adapted: tuple[Any, Path], compute: str) -> None:
    model, adapter = adapted
    with RawContext(model, adapter, compute=compute) as context:
        context.decode(rows(TOKENS[0]))
        written = context.state()
        context.llama.llama_memory_clear(context.memory, True)
        assert context.state().tobytes() == written.tobytes()
        with_memory = context.decode(rows(TOKENS[1]))
        context.llama.llama_memory_clear(context.memory, True)
        context.call("state_clear", 0)
        assert np.abs(context.decode(rows(TOKENS[1])) - with_memory).max() > 0.01


def test_a_pass_holds_the_spans_of_several_sequences_until_its_end(
    adapted: tuple[Any, Path], granularity: str, compute: str
) -> None:
    if granularity == "token":
        pytest.skip("token writes have no pass")
    model, adapter = adapted
    mixed = interleaved()
    with RawContext(model, adapter, compute=compute, n_seq_max=3) as context:
        context.decode([row for row, _ in mixed], [span for _, span in mixed])
        expected = {sequence: context.state(sequence) for sequence in TOKENS}
    with RawContext(model, adapter, compute=compute, n_seq_max=3) as context:
        for sequence in TOKENS:
            context.call("pass_begin", sequence)
        for i in range(0, len(mixed), 6):
            part = mixed[i : i + 6]
            context.decode([row for row, _ in part], [span for _, span in part])
            assert not any(context.state(sequence).any() for sequence in TOKENS)
        for function, args in (("state_clear", (0,)), ("state_copy", (0, 1))):
            with pytest.raises(NativeError, match="while a pass is open"):
                context.call(function, *args)
        with pytest.raises(NativeError, match="while a pass is open"):
            context.set_state(np.zeros_like(expected[0]))
        for sequence in TOKENS:
            context.call("pass_end", sequence)
            np.testing.assert_allclose(context.state(sequence), expected[sequence], rtol=0, atol=STATE)


def test_a_failed_decode_drops_what_its_pass_would_write_and_the_next_pass_is_whole(
    adapted: tuple[Any, Path], granularity: str, compute: str
) -> None:
    if granularity == "token":
        pytest.skip("token writes have no pass")
    model, adapter = adapted
    good, spans = rows(TOKENS[0]), SPANS[0]
    failures = {
        "llama.cpp finds no room": (rows([1] * 250, start=13), None),
        "the span ids do not fit": (rows(TOKENS[2], start=13), [1]),
        "a token lies in two sequences": ([Row(5, 13, (0, 1))], None),
    }
    for failure, (bad, bad_spans) in failures.items():
        with RawContext(model, adapter, compute=compute, n_ctx=256, n_seq_max=2, kv_unified=True) as context:
            context.call("pass_begin", 0)
            context.decode(good, spans)
            assert context.try_decode(bad, bad_spans) != 0, failure
            with pytest.raises(NativeError, match="dropped"):
                context.call("pass_end", 0)
            assert not context.state().any(), failure
            context.llama.llama_memory_clear(context.memory, True)
            context.call("pass_begin", 0)
            context.decode(good, spans)
            context.call("pass_end", 0)
            assert np.abs(context.state()).max() > 0.01, failure


def test_a_failed_decode_leaves_the_passes_of_sequences_that_were_not_in_it(
    adapted: tuple[Any, Path], granularity: str, compute: str
) -> None:
    if granularity == "token":
        pytest.skip("token writes have no pass")
    model, adapter = adapted
    with RawContext(model, adapter, compute=compute, n_seq_max=3) as context:
        context.decode(rows(TOKENS[0]), SPANS[0])
        expected = context.state()
    with RawContext(model, adapter, compute=compute, n_seq_max=3) as context:
        for sequence in TOKENS:
            context.call("pass_begin", sequence)
        context.decode(rows(TOKENS[0]), SPANS[0])
        context.decode(rows(TOKENS[1], 1), SPANS[1])
        assert context.try_decode(rows([1], 1, start=len(TOKENS[1])), [1, 2]) != 0
        context.call("pass_drop", 2)
        for sequence in (1, 2):
            with pytest.raises(NativeError, match="dropped"):
                context.call("pass_end", sequence)
            assert not context.state(sequence).any()
        context.call("pass_end", 0)
        np.testing.assert_allclose(context.state(), expected, rtol=0, atol=STATE)
        context.call("pass_drop", 0)  # none is open: nothing happens
        assert context.state().any()
