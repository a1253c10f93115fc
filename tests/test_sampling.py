"""Drawing tokens: the options do what they say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from drawing import draw

from deltamem_cli.engine import Engine, EngineError, EngineOptions, Model, Sampling, Seat
from deltamem_cli.errors import UsageError
from deltamem_cli.session.request import replies

PROMPT = list(range(60, 80))


@pytest.fixture(scope="module")
def model(tiny_model: MakeModel, loaded: LoadModel) -> Model:
    found: Model = loaded(tiny_model("qwen3"))
    return found


@pytest.fixture
def seat(model: Model, tiny_adapter: MakeAdapter) -> Iterator[Seat]:
    with Engine(model, tiny_adapter(model.path), EngineOptions(ctx_size=256, threads=1)) as engine:
        yield Seat(engine)


def drawn(seat: Seat, n: int = 30, **settings: float) -> list[int]:
    seat.clear_context()
    seat.clear_state()
    seat.feed(PROMPT)
    return list(draw(seat, Sampling(**settings), n))  # type: ignore[arg-type]


def test_temperature_zero_always_takes_the_likeliest(seat: Seat) -> None:
    logits = seat.feed(PROMPT)
    first = drawn(seat, temperature=0)
    assert first[0] == int(logits.argmax())
    assert drawn(seat, temperature=0, seed=1) == drawn(seat, temperature=0, seed=2) == first


def test_a_seed_repeats_its_draws_and_another_one_does_not(seat: Seat) -> None:
    hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert drawn(seat, seed=1, **hot) == drawn(seat, seed=1, **hot)
    assert drawn(seat, seed=1, **hot) != drawn(seat, seed=2, **hot)


def test_without_a_seed_every_run_differs(seat: Seat) -> None:
    hot = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert len({tuple(drawn(seat, n=10, **hot)) for _ in range(4)}) > 1


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_each_filter_at_its_narrowest_leaves_the_likeliest(seat: Seat, narrow: dict[str, float]) -> None:
    wide = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    likeliest = drawn(seat, temperature=0)
    assert drawn(seat, **wide) != likeliest
    assert drawn(seat, **(wide | narrow)) == likeliest


def test_a_repeat_penalty_draws_more_different_tokens(seat: Seat) -> None:
    plain, penalized = drawn(seat, 60, temperature=0), drawn(seat, 60, temperature=0, repeat_penalty=3.0)
    assert len(set(penalized)) > len(set(plain))
    assert drawn(seat, 60, temperature=0, repeat_penalty=3.0, repeat_last_n=0) == plain


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_a_penalty_for_what_was_used_draws_more_different_tokens_and_a_reward_fewer(seat: Seat, name: str) -> None:
    plain, penalized, rewarded = (drawn(seat, 60, temperature=0, **{name: by}) for by in (0.0, 2.0, -2.0))
    assert len(set(penalized)) > len(set(plain)) >= len(set(rewarded))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
        ("top_p", float("nan")), ("min_p", -0.1), ("min_p", 2.0), ("repeat_penalty", 0.0), ("repeat_penalty", -1.0),
        ("repeat_last_n", -1), ("frequency_penalty", 2.1), ("presence_penalty", float("nan")), ("seed", -1), ("seed", 2**32),
        ("temperature", float("inf")), ("temperature", 1e300), ("repeat_penalty", float("inf")),
        ("repeat_penalty", float("nan")), ("repeat_penalty", 1e-300), ("repeat_penalty", 1e300),
        ("top_k", 2**32 + 1), ("repeat_last_n", 2**31),
    ],
)  # fmt: skip
def test_a_value_without_sense_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(EngineError, match=re.escape(f"The option {name} is {value}: it must be")):
        Sampling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is used from /proc")
def test_the_largest_values_that_are_taken_reserve_no_memory_and_end_nothing(seat: Seat) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        assert drawn(seat, n=3, temperature=3e38, top_k=2**31 - 1, repeat_penalty=3e38, repeat_last_n=2**31 - 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_nothing_is_drawn_before_anything_is_fed(seat: Seat) -> None:
    with pytest.raises(EngineError, match="feed the model at least one token first"):
        seat.sampler(Sampling()).sample()


@pytest.mark.parametrize(("name", "least"), [("max_tokens", 1), ("loop_guard", 0)])
def test_a_length_that_no_memory_file_can_hold_is_refused(name: str, least: int) -> None:
    """It is stored with the turn, and export and import take numbers of a sane size."""
    for value in (least - 1, 2**31, 10**20):
        with pytest.raises(UsageError, match=f"{name} is {value}: it must be {least} to 2147483647"):
            replies({name: value})
    assert replies({name: 2**31 - 1})[name] == 2**31 - 1
