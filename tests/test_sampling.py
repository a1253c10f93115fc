"""Drawing tokens: the options do what they say, and generation stops where it must."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LoadModel, MakeAdapter, MakeModel

from deltamem_cli.engine import Engine, EngineError, EngineOptions, Model, Sampling
from deltamem_cli.errors import UsageError
from deltamem_cli.session.request import replies

PROMPT = list(range(60, 80))


@pytest.fixture(scope="module")
def model(tiny_model: MakeModel, loaded: LoadModel) -> Model:
    found: Model = loaded(tiny_model("qwen3"))
    return found


@pytest.fixture
def engine(model: Model, tiny_adapter: MakeAdapter) -> Iterator[Engine]:
    with Engine(model, tiny_adapter(model.path), EngineOptions(ctx_size=256, threads=1)) as engine:
        yield engine


def drawn(engine: Engine, n: int = 30, **settings: float) -> list[int]:
    engine.clear_context()
    engine.clear_state()
    engine.feed(PROMPT)
    return list(engine.generate(Sampling(**settings), max_tokens=n))  # type: ignore[arg-type]


def test_temperature_zero_always_takes_the_likeliest(engine: Engine) -> None:
    logits = engine.feed(PROMPT)
    first = drawn(engine, temperature=0)
    assert first[0] == int(logits.argmax())
    assert drawn(engine, temperature=0, seed=1) == drawn(engine, temperature=0, seed=2) == first


def test_a_seed_repeats_its_draws_and_another_one_does_not(engine: Engine) -> None:
    hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert drawn(engine, seed=1, **hot) == drawn(engine, seed=1, **hot)
    assert drawn(engine, seed=1, **hot) != drawn(engine, seed=2, **hot)


def test_without_a_seed_every_run_differs(engine: Engine) -> None:
    hot = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert len({tuple(drawn(engine, n=10, **hot)) for _ in range(4)}) > 1


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_each_filter_at_its_narrowest_leaves_the_likeliest(engine: Engine, narrow: dict[str, float]) -> None:
    wide = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    likeliest = drawn(engine, temperature=0)
    assert drawn(engine, **wide) != likeliest
    assert drawn(engine, **(wide | narrow)) == likeliest


def test_a_repeat_penalty_draws_more_different_tokens(engine: Engine) -> None:
    plain, penalized = drawn(engine, 60, temperature=0), drawn(engine, 60, temperature=0, repeat_penalty=3.0)
    assert len(set(penalized)) > len(set(plain))
    assert drawn(engine, 60, temperature=0, repeat_penalty=3.0, repeat_last_n=0) == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
        ("top_p", float("nan")), ("min_p", -0.1), ("min_p", 2.0), ("repeat_penalty", 0.0), ("repeat_penalty", -1.0),
        ("repeat_last_n", -1), ("seed", -1), ("seed", 2**32),
        ("temperature", float("inf")), ("temperature", 1e300), ("repeat_penalty", float("inf")),
        ("repeat_penalty", float("nan")), ("repeat_penalty", 1e-300), ("repeat_penalty", 1e300),
        ("top_k", 2**32 + 1), ("repeat_last_n", 2**31),
    ],
)  # fmt: skip
def test_a_value_without_sense_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(EngineError, match=re.escape(f"The option {name} is {value}: it must be")):
        Sampling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is used from /proc")
def test_the_largest_values_that_are_taken_reserve_no_memory_and_end_nothing(engine: Engine) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        assert drawn(engine, n=3, temperature=3e38, top_k=2**31 - 1, repeat_penalty=3e38, repeat_last_n=2**31 - 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_generation_stops_after_max_tokens_and_has_fed_what_it_gave(engine: Engine) -> None:
    engine.feed(PROMPT)
    assert list(engine.generate(Sampling(), max_tokens=0)) == []
    tokens = list(engine.generate(Sampling(temperature=0), max_tokens=7))
    assert len(tokens) == 7
    assert engine.n_past() == len(PROMPT) + 7


def test_generation_stops_when_the_context_is_full(engine: Engine) -> None:
    engine.feed([1] * 250)
    tokens = list(engine.generate(Sampling(temperature=0)))
    assert len(tokens) == 6
    assert engine.n_past() == engine.n_ctx == 256
    assert list(engine.generate(Sampling(temperature=0))) == []


def test_generation_ends_before_a_token_that_ends_the_turn(engine: Engine, model: Model) -> None:
    """Any token is as likely as any other here, so that one of the end tokens comes soon."""
    ends = [token for token in range(model.n_vocab) if model.is_end(token)]
    assert ends
    for seed in range(8):
        tokens = drawn(engine, n=400, temperature=1e6, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        assert not set(tokens) & set(ends)
        if engine.n_past() < engine.n_ctx:
            return
    pytest.fail("no run ended before the context was full")


def test_closing_a_generator_leaves_what_it_has_given(engine: Engine) -> None:
    engine.feed(PROMPT)
    generation = engine.generate(Sampling(temperature=0))
    next(generation)
    next(generation)
    generation.close()  # type: ignore[attr-defined]
    assert engine.n_past() == len(PROMPT) + 2


def test_reading_only_generation_leaves_the_state(engine: Engine) -> None:
    engine.feed(PROMPT)
    state = engine.state()
    assert list(engine.generate(Sampling(temperature=0), max_tokens=5, write=False))
    assert engine.state().tobytes() == state.tobytes()
    assert list(engine.generate(Sampling(temperature=0), max_tokens=5))
    assert engine.state().tobytes() != state.tobytes()


def test_nothing_is_drawn_before_anything_is_fed(engine: Engine) -> None:
    with pytest.raises(EngineError, match="feed the model at least one token first"):
        next(engine.generate(Sampling()))


@pytest.mark.parametrize(("name", "least"), [("max_tokens", 1), ("loop_guard", 0)])
def test_a_length_that_no_memory_file_can_hold_is_refused(name: str, least: int) -> None:
    """It is stored with the turn, and export and import take numbers of a sane size."""
    for value in (least - 1, 2**31, 10**20):
        with pytest.raises(UsageError, match=f"{name} is {value}: it must be {least} to 2147483647"):
            replies({name: value})
    assert replies({name: 2**31 - 1})[name] == 2**31 - 1
