"""Weights round, widen and scale without losing what they need not lose."""

from __future__ import annotations

import numpy as np
import pytest

from deltamem_cli.formats.weight import Weight


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan() -> None:
    cases = {
        0x3F800000: 0x3F80,  # 1
        0x3F808000: 0x3F80,  # halfway, to even
        0x3F818000: 0x3F82,  # halfway, to even
        0x3F808001: 0x3F81,
        0x7F7FFFFF: 0x7F80,  # the largest float32 rounds to Inf
        0x80000000: 0x8000,
    }
    values = np.array(list(cases), np.uint32).view(np.float32)
    assert Weight.from_float32(values, "BF16").data.tolist() == list(cases.values())
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(Weight.from_float32(nan, "BF16").float32).all()


def test_scaling_keeps_the_type_only_when_nothing_is_lost() -> None:
    rng = np.random.default_rng(0)
    for type in ("BF16", "F16"):
        weight = Weight.from_float32(rng.normal(size=100), type)
        double = weight.scaled(2.0)
        assert double.type == type
        np.testing.assert_array_equal(double.float32, weight.float32 * 2)
        third = weight.scaled(1 / 3)
        assert third.type == "F32"
        np.testing.assert_array_equal(third.float32, (weight.float32.astype(np.float64) / 3).astype(np.float32))
    # a power of two is not enough where numbers leave the range of the type
    assert Weight.from_float32(np.array([60000.0]), "F16").scaled(2.0).type == "F32"
    assert Weight.from_float32(np.array([2.0**-24]), "F16").scaled(0.5).type == "F32"


@pytest.mark.parametrize(("type", "largest"), [("F16", 65504.0), ("BF16", 3.3895314e38), ("F32", 3.4028235e38)])
def test_the_largest_numbers_of_a_type_are_finite(type: str, largest: float) -> None:
    numbers = Weight.from_float32(np.array([largest, -largest, 0.0]), type)
    assert numbers.is_finite
    assert numbers.float32[0] == np.float32(largest)
    for value in (np.inf, -np.inf, np.nan):
        assert not Weight.from_float32(np.array([0.0, value]), type).is_finite


def test_a_weight_refuses_numbers_of_another_type() -> None:
    with pytest.raises(ValueError, match="BF16"):
        Weight(np.zeros(3, np.float32), "BF16")
