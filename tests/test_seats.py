"""Several seats of one engine in one batch: each has the logits and the memory that it would have alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from drawing import draw

from deltamem_cli.engine import Cancelled, Engine, EngineError, EngineOptions, Model, Sampling, Seat, decode

LOGITS, STATE = 1e-4, 1e-5
EXACT: dict[str, Any] = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off", "threads": 1}
N_SEATS = 4
TOKENS = [[(i * 7919 + 13 * seat) % 288 for i in range(size)] for seat, size in enumerate((40, 3, 75, 21))]
WRITES = [True, False, True, True]
GRANULARITIES = ["token", "message_mean", "sentence_mean"]


def options(**settings: Any) -> EngineOptions:
    return EngineOptions(**{**EXACT, "ctx_size": 256, "seats": N_SEATS, **settings})


@pytest.fixture(autouse=True, params=["fused", "graph"])
def compute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXACT, "compute", request.param)


@pytest.fixture(params=GRANULARITIES)
def granularity(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(tiny_model: MakeModel, loaded: LoadModel) -> Model:
    found: Model = loaded(tiny_model("qwen3"))
    return found


@pytest.fixture
def adapter(model: Model, tiny_adapter: MakeAdapter, granularity: str) -> Path:
    return tiny_adapter(model.path, write_granularity=granularity, state_heads=2)


@pytest.fixture
def engine(model: Model, adapter: Path) -> Iterator[Engine]:
    with Engine(model, adapter, options()) as engine:
        yield engine


def spans(number: int, granularity: str) -> list[int] | None:
    """Of TOKENS[number]: some are not written. The ids are the same in every seat, and must not meet."""
    if granularity == "token" and number % 2:
        return None
    return [(0, -1, 3, 1)[i // 9 % 4] for i in range(len(TOKENS[number]))]


def start(shape: Sequence[int], number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.2, shape).astype(np.float32)


@pytest.mark.parametrize("batch", [512, 16])
@pytest.mark.parametrize("writes", [[True] * N_SEATS, WRITES, [False] * N_SEATS])
def test_seats_that_are_fed_together_are_as_engines_of_their_own(
    model: Model, adapter: Path, granularity: str, batch: int, writes: list[bool]
) -> None:
    expected = []
    for number, tokens in enumerate(TOKENS):
        with Engine(model, adapter, options(seats=1)) as single:
            seat = Seat(single)
            seat.set_state(start(single.state_shape, number))
            logits = seat.feed(
                tokens, write=writes[number], spans=spans(number, granularity), all_logits=number % 2 == 0
            )
            expected.append((logits, seat.state(), seat.feed([5], write=False)))
    with Engine(model, adapter, options(batch=batch)) as engine:
        seats = [Seat(engine) for _ in TOKENS]
        feeds = []
        for number, (seat, tokens) in enumerate(zip(seats, TOKENS, strict=True)):
            seat.set_state(start(engine.state_shape, number))
            feeds.append(
                seat.begin(tokens, write=writes[number], spans=spans(number, granularity), all_logits=number % 2 == 0)
            )
        count = 0
        with seats[0].one_pass(), seats[1].one_pass(), seats[2].one_pass(), seats[3].one_pass():
            while any(not feed.is_over for feed in feeds):
                decode(feeds)
                count += 1
        assert count == -(-sum(map(len, TOKENS)) // batch)
        for number, (seat, feed) in enumerate(zip(seats, feeds, strict=True)):
            logits, state, after = expected[number]
            np.testing.assert_allclose(feed.result(), logits, rtol=0, atol=LOGITS)
            np.testing.assert_allclose(seat.state(), state, rtol=0, atol=STATE)
            changed = np.abs(seat.state() - start(engine.state_shape, number)).max()
            assert changed > 0.01 if writes[number] else changed == 0
            np.testing.assert_allclose(seat.feed([5], write=False), after, rtol=0, atol=LOGITS)


def count_decoded(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> list[int]:
    """Becomes the sizes of all batches."""
    sizes: list[int] = []
    decoded = engine.native.llama.llama_decode

    def counted(context: Any, batch: Any) -> Any:
        sizes.append(batch.n_tokens)
        return decoded(context, batch)

    monkeypatch.setattr(engine.native.llama, "llama_decode", counted)
    return sizes


def test_the_head_of_one_seat_is_copied_to_another_that_begins_alike(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, message = TOKENS[3], TOKENS[0]
    first, second, other = (Seat(engine) for _ in range(3))
    sizes = count_decoded(monkeypatch, engine)
    for seat in (first, second):
        seat.set_state(start(engine.state_shape, 1))
        seat.start(head)
        assert seat.n_past == len(head)
        np.testing.assert_array_equal(seat.state(), start(engine.state_shape, 1))
    assert sizes == [len(head)], "computed once"
    expected = first.feed(message)
    np.testing.assert_allclose(second.feed(message), expected, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(second.state(), first.state(), rtol=0, atol=STATE)
    sizes.clear()
    other.start(head)  # read in another state, it is another one
    first.start(message)
    assert sizes == [len(head), len(message)]
    assert np.abs(other.feed(message) - expected).max() > LOGITS


def test_a_head_that_is_copied_replaces_what_the_seat_held(engine: Engine) -> None:
    seat, other = Seat(engine), Seat(engine)
    other.start(TOKENS[3])
    expected = other.feed(TOKENS[1], write=False)
    seat.feed(TOKENS[2], write=False)
    seat.start(TOKENS[3])
    np.testing.assert_allclose(seat.feed(TOKENS[1], write=False), expected, rtol=0, atol=LOGITS)


def test_a_head_that_is_too_large_to_copy_is_computed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltamem_cli.engine.heads.MOST_BYTES", 100)
    sizes = count_decoded(monkeypatch, engine)
    for seat in (Seat(engine), Seat(engine)):
        seat.start(TOKENS[3])
    assert sizes == [len(TOKENS[3])] * 2


def test_replies_drawn_together_are_those_drawn_alone(engine: Engine, model: Model, adapter: Path) -> None:
    """Each with options of its own, also such that look back at what was drawn."""
    samplings = [
        Sampling(temperature=0),
        Sampling(temperature=1.5, top_k=0, seed=3),
        Sampling(temperature=0, repeat_penalty=3.0),
        Sampling(temperature=1.5, top_k=0, seed=4),
    ]
    alone = []
    for tokens, sampling in zip(TOKENS, samplings, strict=True):
        with Engine(model, adapter, options(seats=1)) as single:
            seat = Seat(single)
            seat.feed(tokens)
            alone.append(list(draw(seat, sampling, 20)))
    seats = [Seat(engine) for _ in TOKENS]
    for seat, tokens in zip(seats, TOKENS, strict=True):
        seat.feed(tokens)
    samplers = [seat.sampler(sampling) for seat, sampling in zip(seats, samplings, strict=True)]
    drawn: list[list[int]] = [[] for _ in seats]
    going = [number for number, tokens in enumerate(alone) if tokens]
    while going:
        feeds = []
        for number in going:
            drawn[number].append(samplers[number].sample())
            feeds.append(seats[number].begin(drawn[number][-1:]))
        decode(feeds)
        going = [number for number in going if len(drawn[number]) < len(alone[number])]
    for sampler in samplers:
        sampler.close()
    assert drawn == alone


def test_short_feeds_are_over_first_and_long_ones_share_the_rest(model: Model) -> None:
    with Engine(model, None, options(batch=32)) as engine:
        seats = [Seat(engine) for _ in range(N_SEATS)]
        feeds = [seat.begin([1] * size) for seat, size in zip(seats, (100, 1, 40, 2), strict=True)]
        seen = []
        while not all(feed.is_over for feed in feeds):
            decode(feeds)
            seen.append([feed.done for feed in feeds])
        assert seen[0] == [14, 1, 15, 2] and seen[1] == [30, 1, 31, 2]
        assert seen[-1] == [100, 1, 40, 2] and len(seen) == 5
        assert [seat.n_past for seat in seats] == [100, 1, 40, 2]


def test_a_seat_of_another_pass_writes_when_that_one_ends_and_no_other_does(engine: Engine, granularity: str) -> None:
    if granularity == "token":
        pytest.skip("every token writes at once")
    one, other = Seat(engine), Seat(engine)
    with one.one_pass():
        one.feed([1, 2, 3], spans=[0, 0, 0])
        with other.one_pass():
            other.feed([4, 5], spans=[0, 0])
        assert other.state().any() and not one.state().any()
        other.set_state(other.state() * 2)  # not refused: its pass is over
        with pytest.raises(Exception, match="while a pass is open"):
            one.clear_state()
    assert one.state().any()


def test_a_failed_feed_drops_the_writes_of_its_own_pass_alone(engine: Engine, granularity: str) -> None:
    if granularity == "token":
        pytest.skip("every token writes at once")
    one, other = Seat(engine), Seat(engine)
    with other.one_pass():
        other.feed([4, 5], spans=[0, 0])
        with pytest.raises(EngineError, match="broken"), one.one_pass():
            one.feed([1, 2, 3], spans=[0, 0, 0])
            raise EngineError("broken")
        assert not one.state().any()
        other.feed([6], spans=[1])
    assert other.state().any() and not one.state().any()


def test_one_seat_is_cancelled_and_the_others_go_on(model: Model, adapter: Path) -> None:
    with Engine(model, adapter, options(batch=16)) as engine:
        seats = [Seat(engine), Seat(engine)]
        given = [spans(0, "sentence_mean") for _ in seats]
        feeds = [seat.begin(TOKENS[0], spans=given[0]) for seat in seats]
        with seats[1].one_pass():
            decode(feeds)
            seats[0].cancel()
            while not feeds[1].is_over:
                decode(feeds)
        with pytest.raises(Cancelled) as cancelled:
            feeds[0].result()
        assert cancelled.value.fed == seats[0].n_past == 8
        assert seats[0].logits is None
        with Engine(model, adapter, options(seats=1)) as single:
            alone = Seat(single)
            logits = alone.feed(TOKENS[0], spans=given[1])
            np.testing.assert_allclose(feeds[1].result(), logits, rtol=0, atol=LOGITS)
            np.testing.assert_allclose(seats[1].state(), alone.state(), rtol=0, atol=STATE)
        seats[0].feed(TOKENS[0][8:])  # and it can go on itself
        assert seats[0].n_past == len(TOKENS[0])


@pytest.mark.parametrize("both", [True, False])
def test_a_batch_is_stopped_when_nobody_needs_it_any_more(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel, both: bool
) -> None:
    path = tiny_model("qwen3", n_ctx=4096)
    settings = options(ctx_size=2048, batch=2048, micro_batch=8, seats=2)
    tokens = [i * 7919 % 288 for i in range(1000)]
    with Engine(loaded(path), tiny_adapter(path), settings) as engine:
        seats = [Seat(engine), Seat(engine)]
        feeds = [seat.begin(tokens) for seat in seats]

        def cancel() -> None:
            while not engine._running:
                time.sleep(0.0005)
            for seat in seats if both else seats[:1]:
                seat.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        decode(feeds)
        thread.join()
        if both:
            assert all(isinstance(feed.error, Cancelled) and feed.done < len(tokens) for feed in feeds)
        else:
            assert feeds[1].result().any() and seats[1].n_past == len(tokens)


def test_what_one_seat_drops_and_clears_the_others_keep(engine: Engine) -> None:
    seats = [Seat(engine) for _ in range(3)]
    for seat, tokens in zip(seats, TOKENS, strict=False):
        seat.feed(tokens)
    before = [(seat.n_past, seat.state().tobytes()) for seat in seats]
    seats[0].drop(3, 20)
    seats[2].clear_context()
    seats[2].clear_state()
    assert [seat.n_past for seat in seats] == [len(TOKENS[0]) - 17, before[1][0], 0]
    assert [seat.state().tobytes() for seat in seats[:2]] == [state for _, state in before[:2]]
    assert not seats[2].state().any()


def test_every_seat_has_the_whole_context_size_whatever_the_others_hold(model: Model) -> None:
    with Engine(model, None, options(ctx_size=256, seats=3)) as engine:
        seats = [Seat(engine) for _ in range(3)]
        for seat in seats:
            seat.feed([1] * 256)
            assert seat.n_past == seat.n_ctx_seq == 256
        with pytest.raises(EngineError, match="which holds 256 of 256"):
            seats[1].feed([1])


def test_an_engine_has_no_more_seats_than_it_was_made_with(model: Model) -> None:
    with Engine(model, None, options(seats=2)) as engine:
        assert [Seat(engine).sequence for _ in range(2)] == [0, 1]
        with pytest.raises(EngineError, match="All seats of this engine are taken: make it with more than 2"):
            Seat(engine)


@pytest.mark.parametrize("arch", ["gemma3", "qwen3"])
def test_seats_that_are_not_neighbours_are_fed_together(tiny_model: MakeModel, loaded: LoadModel, arch: str) -> None:
    model = loaded(tiny_model(arch))
    with Engine(model, None, options()) as engine, Engine(model, None, options(seats=1)) as single:
        seats, alone = [Seat(engine) for _ in range(N_SEATS)], Seat(single)
        feeds = [seats[3].begin(TOKENS[3]), seats[1].begin(TOKENS[1])]
        decode(feeds)
        for feed, number in zip(feeds, (3, 1), strict=True):
            alone.clear_context()
            np.testing.assert_allclose(feed.result(), alone.feed(TOKENS[number]), rtol=0, atol=LOGITS)
