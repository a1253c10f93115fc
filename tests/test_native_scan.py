"""The native recurrence gives what the numpy oracle gives, for every variant that an adapter may have."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from raw_context import floats
from reference import ScanParams as Rule
from reference import delta_rule_scan

from deltamem_cli.bindings import STATE_UPDATES, NativeError, ScanParams, native

TOLERANCE = 2e-5  # float32 against float64, relative to the largest number


def native_scan(
    p: np.ndarray, rule: Rule, state: np.ndarray, write: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads [n, H*r] and the state after it; p and state are left alone."""
    settings = ScanParams(
        rule.rank,
        rule.heads,
        STATE_UPDATES.index(rule.state_update),
        rule.rankwise_gates,
        rule.couple_lambda,
        rule.normalize_qk,
    )
    p, state = p.astype(np.float32), state.astype(np.float32)
    bias = [rule.beta_bias] if rule.lambda_bias is None else [rule.beta_bias, rule.lambda_bias]
    reads = np.full((len(p), rule.read_width), np.nan, np.float32)
    mask = None if write is None else write.astype(np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    native().call(
        "scan", ctypes.byref(settings), floats(p), floats(np.concatenate(bias).astype(np.float32)), mask, len(p),
        floats(state), floats(reads),
    )  # fmt: skip
    return reads, state


def random_case(
    rng: np.random.Generator, *, rank: int = 8, heads: int = 1, tokens: int = 24, **settings: bool | str
) -> tuple[np.ndarray, Rule, np.ndarray]:
    """Float64 numbers that float32 holds exactly: p, rule, state."""
    rule = Rule(rank, heads, np.zeros(0), **settings)  # type: ignore[arg-type]
    gates = rule.gate_width
    biases = rng.normal(-0.5, 0.5, gates), rng.normal(1.5, 0.5, gates) if rule.has_lambda else None
    rule = Rule(rank, heads, as_float32(biases[0]), None if biases[1] is None else as_float32(biases[1]), **settings)  # type: ignore[arg-type]
    p = rng.normal(0, 1, (tokens, rule.n_proj))
    if not rule.normalize_qk:
        p[:, : 2 * rule.read_width] *= 0.5 / np.sqrt(rank)  # raw keys longer than 1 would let the state explode
    return as_float32(p), rule, as_float32(rng.normal(0, 0.3, (heads, rank, rank)))


def as_float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(np.float64)


def assert_close(ours: np.ndarray, oracle: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, oracle, rtol=0, atol=tolerance * max(1.0, float(np.abs(oracle).max())))


VARIANTS = [
    {"rankwise_gates": gates, "couple_lambda": coupled, "state_update": update, "normalize_qk": normalized}
    for gates, coupled, update, normalized in itertools.product(
        (True, False), (True, False), STATE_UPDATES, (True, False)
    )
]


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 4, 8, 16, 64])
def test_every_variant_equals_the_oracle_from_a_state_that_is_not_zero(rank: int, heads: int) -> None:
    for number, variant in enumerate(VARIANTS):
        rng = np.random.default_rng([rank, heads, number])
        p, rule, state = random_case(rng, rank=rank, heads=heads, **variant)
        reads, after = native_scan(p, rule, state)
        oracle_reads, oracle_after = delta_rule_scan(p, rule, state)
        assert_close(reads, oracle_reads)
        assert_close(after, oracle_after)


@pytest.mark.parametrize("rank", [8, 5])
def test_tokens_that_are_not_written_read_and_leave_the_state(rank: int) -> None:
    rng = np.random.default_rng(rank)
    p, rule, state = random_case(rng, rank=rank, heads=2)
    write = rng.random(len(p)) < 0.5
    reads, after = native_scan(p, rule, state, write)
    expected, oracle_state = [], state
    for t in range(len(p)):
        read, oracle_state = delta_rule_scan(p[t : t + 1], rule, oracle_state, write=bool(write[t]))
        expected.append(read[0])
    assert_close(reads, np.array(expected))
    assert_close(after, oracle_state)


def test_nothing_written_leaves_every_bit_of_the_state() -> None:
    p, rule, state = random_case(np.random.default_rng(3))
    _, after = native_scan(p, rule, state, np.zeros(len(p)))
    assert after.tobytes() == state.astype(np.float32).tobytes()


def test_many_tokens_in_one_call_equal_one_call_per_token() -> None:
    p, rule, state = random_case(np.random.default_rng(4), tokens=200)
    reads, after = native_scan(p, rule, state)
    for t in range(len(p)):
        read, state = native_scan(p[t : t + 1], rule, state)
        assert read.tobytes() == reads[t : t + 1].tobytes()
    assert state.tobytes() == after.tobytes()


@pytest.mark.parametrize("size", [1e-12, 1e-7, 1e-3, 0.6, 0.63, 20.0, 1e4, 3e38])
def test_projections_of_any_size_are_activated_as_the_oracle_does(size: float) -> None:
    rng = np.random.default_rng(5)
    p, rule, state = random_case(rng, tokens=16)
    p = as_float32(p / np.abs(p).max() * size)
    p[:, 2 * rule.read_width : 3 * rule.read_width] = rng.normal(0, 1, (16, rule.read_width)).astype(np.float32)
    reads, after = native_scan(p, rule, state)
    oracle_reads, oracle_after = delta_rule_scan(p, rule, state)
    assert_close(reads, oracle_reads)
    assert_close(after, oracle_after)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rank": 0}, "rank"), ({"rank": 65}, "rank"), ({"n_heads": 0}, "heads"), ({"n_heads": 1000}, "heads"), ({"state_update": 3}, "update")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, int], words: str) -> None:
    settings = ScanParams(8, 1, 0, True, True, True)
    for name, value in change.items():
        setattr(settings, name, value)
    one = np.zeros(1, np.float32)
    with pytest.raises(NativeError, match=words):
        native().call("scan", ctypes.byref(settings), floats(one), floats(one), None, 0, floats(one), floats(one))


def test_a_missing_argument_is_refused() -> None:
    settings = ScanParams(8, 1, 0, True, True, True)
    with pytest.raises(NativeError, match="missing"):
        native().call("scan", ctypes.byref(settings), None, None, None, 0, None, None)
