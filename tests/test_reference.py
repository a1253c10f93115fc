"""The oracle itself: against per-element loops of the formulas, and against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from reference import (
    LayerWeights,
    ScanParams,
    corrections,
    delta_rule_scan,
    deltamem_layer,
    project,
    span_means,
)

SPANS = [-1, 0, 0, 2, 2, 2, -1, 1, 1]
VARIANTS = list(
    itertools.product(
        [1, 3],  # heads
        [True, False],  # rankwise gates
        [True, False],  # couple lambda
        ["standard", "lambda_outside", "no_lambda"],
        [True, False],  # normalize q and k
    )
)


def make(rng, rank=4, heads=1, rankwise=True, couple=True, update="standard", normalize=True, granularity="token"):
    gates = heads * rank if rankwise else heads
    return ScanParams(
        rank=rank,
        heads=heads,
        beta_bias=rng.normal(size=gates) - 0.5,
        lambda_bias=rng.normal(size=gates) + 0.5,
        granularity=granularity,
        rankwise_gates=rankwise,
        couple_lambda=couple,
        state_update=update,
        normalize_qk=normalize,
    )


def numbers_of(row, params):
    """q, k, v, keep, erase, write of one row as nested lists [head][i], by plain loops."""
    r, heads, width, gates = params.rank, params.heads, params.read_width, params.gate_width

    def logistic(x):
        return 1 / (1 + math.exp(-x))

    def unit(values):
        values = [math.tanh(value) for value in values]
        norm = math.sqrt(sum(value * value for value in values))
        return [value / max(norm, 1e-6) for value in values]

    result = []
    for h in range(heads):
        q = [row[h * r + i] for i in range(r)]
        k = [row[width + h * r + i] for i in range(r)]
        v = [row[2 * width + h * r + i] for i in range(r)]
        if params.normalize_qk:
            q, k = unit(q), unit(k)
        keep, erase, write = [], [], []
        for i in range(r):
            g = h * r + i if params.rankwise_gates else h
            beta = logistic(row[3 * width + g] + params.beta_bias[g])
            lam = 1 - beta
            if not params.couple_lambda and params.state_update != "no_lambda":
                lam = logistic(row[3 * width + gates + g] + params.lambda_bias[g])
            write.append(beta)
            if params.state_update == "standard":
                keep.append(lam)
                erase.append(beta)
            elif params.state_update == "lambda_outside":
                keep.append(lam)
                erase.append(lam * beta)
            else:
                keep.append(1.0)
                erase.append(beta)
        result.append((q, k, v, keep, erase, write))
    return result


def slow_write(state, row, params):
    new = state.copy()
    r = params.rank
    for h, (_, k, v, keep, erase, write) in enumerate(numbers_of(row, params)):
        for i in range(r):
            predicted = sum(state[h, i, m] * k[m] for m in range(r))
            for j in range(r):
                new[h, i, j] = keep[i] * state[h, i, j] - erase[i] * predicted * k[j] + write[i] * v[i] * k[j]
    return new


def slow_read(state, row, params):
    return [
        sum(state[h, i, j] * q[j] for j in range(params.rank))
        for h, (q, *_) in enumerate(numbers_of(row, params))
        for i in range(params.rank)
    ]


def slow_scan(p, params, state, spans=None, write=True):
    reads = []
    current = state.copy()
    per_token = write and (spans is None or params.granularity == "token")
    for row in p:
        reads.append(slow_read(current if per_token else state, row, params))
        if per_token:
            current = slow_write(current, row, params)
    if write and not per_token:
        for span in range(max(spans) + 1):
            rows = [row for row, i in zip(p, spans, strict=True) if i == span]
            if rows:
                current = slow_write(current, [sum(column) / len(rows) for column in zip(*rows, strict=True)], params)
    return np.array(reads), current


@pytest.mark.parametrize(("heads", "rankwise", "couple", "update", "normalize"), VARIANTS)
@pytest.mark.parametrize("granularity", ["token", "message_mean", "sentence_mean"])
@pytest.mark.parametrize("write", [True, False])
def test_every_variant_equals_the_formulas_written_out(
    heads, rankwise, couple, update, normalize, granularity, write
) -> None:
    rng = np.random.default_rng(7)
    params = make(rng, 4, heads, rankwise, couple, update, normalize, granularity)
    p = rng.normal(size=(len(SPANS), params.n_proj))
    state = rng.normal(size=(heads, 4, 4))
    for spans in (None, SPANS):
        reads, after = delta_rule_scan(p, params, state, spans, write)
        slow_reads, slow_after = slow_scan(p, params, state, spans, write)
        np.testing.assert_allclose(reads, slow_reads, atol=1e-13)
        np.testing.assert_allclose(after, slow_after, atol=1e-13)
        assert reads.shape == (len(SPANS), heads * 4)


def test_a_zero_state_reads_zero_before_the_first_write() -> None:
    rng = np.random.default_rng(1)
    params = make(rng, heads=2)
    p = rng.normal(size=(3, params.n_proj))
    reads, _ = delta_rule_scan(p, params, np.zeros((2, 4, 4)))
    assert not reads[0].any()
    assert reads[1].any()


def test_beta_of_zero_keeps_the_state() -> None:
    rng = np.random.default_rng(2)
    params = ScanParams(rank=4, heads=1, beta_bias=np.full(4, -1e4))
    state = rng.normal(size=(1, 4, 4))
    _, after = delta_rule_scan(rng.normal(size=(5, params.n_proj)), params, state)
    np.testing.assert_array_equal(after, state)


def test_beta_of_one_makes_the_state_answer_the_key_with_the_value() -> None:
    # no_lambda with beta = 1 is the plain delta rule: right after the write, S k = v for a key of norm 1.
    rng = np.random.default_rng(3)
    params = ScanParams(rank=4, heads=1, beta_bias=np.full(4, 1e4), state_update="no_lambda")
    state = rng.normal(size=(1, 4, 4))
    p = rng.normal(size=(1, params.n_proj))
    _, after = delta_rule_scan(p, params, state)
    k = np.tanh(p[0, 4:8])
    k /= np.linalg.norm(k)
    np.testing.assert_allclose(after[0] @ k, p[0, 8:12], atol=1e-12)


def test_one_pass_equals_many_passes_for_token_writes() -> None:
    rng = np.random.default_rng(4)
    params = make(rng, heads=2)
    p = rng.normal(size=(6, params.n_proj))
    state = rng.normal(size=(2, 4, 4))
    reads, after = delta_rule_scan(p, params, state)
    pieces = []
    for part in (p[:1], p[1:4], p[4:]):
        read, state = delta_rule_scan(part, params, state)
        pieces.append(read)
    np.testing.assert_array_equal(np.concatenate(pieces), reads)
    np.testing.assert_array_equal(state, after)


def test_tokens_of_span_minus_one_never_write() -> None:
    rng = np.random.default_rng(5)
    params = make(rng, granularity="message_mean")
    p = rng.normal(size=(4, params.n_proj))
    state = rng.normal(size=(1, 4, 4))
    _, with_them = delta_rule_scan(p, params, state, [-1, 0, -1, 0])
    _, without = delta_rule_scan(p[[1, 3]], params, state, [0, 0])
    np.testing.assert_allclose(with_them, without, atol=1e-15)
    _, untouched = delta_rule_scan(p, params, state, [-1] * 4)
    np.testing.assert_array_equal(untouched, state)


def test_spans_are_written_in_the_order_of_their_ids_not_of_their_tokens() -> None:
    rng = np.random.default_rng(6)
    params = make(rng, granularity="message_mean")
    p = rng.normal(size=(2, params.n_proj))
    state = rng.normal(size=(1, 4, 4))
    _, swapped = delta_rule_scan(p, params, state, [1, 0])
    _, reversed_tokens = delta_rule_scan(p[::-1], params, state, [0, 1])
    _, as_is = delta_rule_scan(p, params, state, [0, 1])
    np.testing.assert_array_equal(swapped, reversed_tokens)
    assert not np.allclose(swapped, as_is)


def test_mean_of_projections_is_projection_of_mean() -> None:
    rng = np.random.default_rng(8)
    weights = random_weights(rng, hidden=6, rank=3, heads=2)
    x = rng.normal(size=(5, 6))
    spans = [0, 0, 1, -1, 1]
    means = np.array([x[:2].mean(axis=0), x[[2, 4]].mean(axis=0)])
    np.testing.assert_allclose(span_means(project(x, weights), spans), project(means, weights), atol=1e-14)


def test_the_type_of_the_input_is_the_type_of_the_arithmetic() -> None:
    rng = np.random.default_rng(9)
    params = make(rng, heads=2)
    p = rng.normal(size=(20, params.n_proj))
    state = rng.normal(size=(2, 4, 4))
    reads64, state64 = delta_rule_scan(p, params, state)
    reads32, state32 = delta_rule_scan(p.astype(np.float32), params, state)
    assert reads64.dtype == state64.dtype == np.float64
    assert reads32.dtype == state32.dtype == np.float32
    assert 1e-12 < np.abs(reads64 - reads32).max() < 1e-5


def random_weights(rng, hidden, rank, heads, norm=False):
    width = rank * heads
    return LayerWeights(
        q=rng.normal(size=(width, hidden)),
        k=rng.normal(size=(width, hidden)),
        v=rng.normal(size=(width, hidden)),
        beta=rng.normal(size=(width, hidden)),
        lam=rng.normal(size=(width, hidden)),
        delta={"q": rng.normal(size=(10, width)), "o": rng.normal(size=(hidden, width))},
        delta_o_norm=rng.normal(size=hidden) if norm else None,
        delta_o_norm_eps=1e-3,
    )


def test_a_layer_is_projection_scan_and_corrections() -> None:
    rng = np.random.default_rng(10)
    weights = random_weights(rng, hidden=6, rank=3, heads=2)
    params = make(rng, rank=3, heads=2, couple=False)
    x = rng.normal(size=(4, 6))
    state = rng.normal(size=(2, 3, 3))
    p = np.array(
        [[*(weights.q @ t), *(weights.k @ t), *(weights.v @ t), *(weights.beta @ t), *(weights.lam @ t)] for t in x]
    )
    reads, slow_after = slow_scan(p, params, state)
    result, after = deltamem_layer(x, weights, params, state)
    np.testing.assert_allclose(after, slow_after, atol=1e-12)
    assert set(result) == {"q", "o"}
    for head, matrix in weights.delta.items():
        np.testing.assert_allclose(result[head], [matrix @ read for read in reads], atol=1e-12)


def test_the_norm_of_delta_o_divides_by_the_root_mean_square_over_the_hidden_size() -> None:
    rng = np.random.default_rng(11)
    weights = random_weights(rng, hidden=6, rank=3, heads=2, norm=True)
    reads = rng.normal(size=(4, 6)) * 0.01  # small, so that eps counts
    o = corrections(reads, weights)["o"]
    for read, found in zip(reads, o, strict=True):
        raw = weights.delta["o"] @ read
        expected = raw / math.sqrt(sum(value * value for value in raw) / 6 + 1e-3) * weights.delta_o_norm
        np.testing.assert_allclose(found, expected, atol=1e-14)
    assert np.array_equal(corrections(reads, weights)["q"], reads @ weights.delta["q"].T)


def test_keys_shorter_than_eps_are_divided_by_eps_and_a_zero_key_writes_nothing() -> None:
    params = ScanParams(rank=2, heads=1, beta_bias=np.full(2, 1e4), state_update="no_lambda")
    p = np.zeros((2, params.n_proj))
    p[0, 2:4] = 3e-7, -4e-7  # a key of norm 5e-7, half of eps
    p[:, 4:6] = 1.0
    _, after_first = delta_rule_scan(p[:1], params, np.zeros((1, 2, 2)))
    np.testing.assert_allclose(after_first[0], [[0.3, -0.4], [0.3, -0.4]], rtol=1e-9)
    _, after = delta_rule_scan(p, params, np.zeros((1, 2, 2)))
    np.testing.assert_array_equal(after, after_first)
