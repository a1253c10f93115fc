"""A decode that is stopped leaves context and memory in agreement, so that going on gives what never stopping gives."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel

from deltamem_cli.engine import Cancelled, Engine, EngineError, EngineOptions, Sampling, Seat

EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off", "threads": 1}
LOGITS, STATE = 5e-5, 1e-5
TOKENS = [int(token) for token in np.random.default_rng(31).integers(0, 288, 2000)]


@pytest.fixture(params=["token", "message_mean"])
def granularity(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["fused", "graph"])
def compute(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def seat(
    granularity: str, compute: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> Iterator[Seat]:
    """Many small micro-batches in each batch, so that most cancels fall into the middle of one."""
    path = tiny_model("qwen3", n_ctx=4096)
    adapter = tiny_adapter(path, write_granularity=granularity)
    options = EngineOptions(ctx_size=2048, batch=500, micro_batch=8, compute=compute, **EXACT)  # type: ignore[arg-type]
    with Engine(loaded(path), adapter, options) as engine:
        yield Seat(engine)


def cancel_after(seat: Seat, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, seat.cancel)
    timer.start()
    return timer


def test_feeding_the_rest_after_a_cancel_equals_feeding_without_one(seat: Seat) -> None:
    seat.feed(TOKENS)  # the first run is slower, and its time is not what the others take
    seat.clear_context()
    seat.clear_state()
    start = time.monotonic()
    expected = seat.feed(TOKENS)
    whole, state = time.monotonic() - start, seat.state()
    stopped_inside = 0
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        seat.clear_context()
        seat.clear_state()
        done = 0
        while done < len(TOKENS):
            timer = cancel_after(seat, part * whole)
            try:
                logits = seat.feed(TOKENS[done:])
                done = len(TOKENS)
            except Cancelled as cancelled:
                assert seat.n_past == done + cancelled.fed
                done += cancelled.fed
                stopped_inside += 0 < done < len(TOKENS) and done % 500 > 0
            timer.cancel()
            timer.join()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS)
        np.testing.assert_allclose(seat.state(), state, rtol=0, atol=STATE)
    assert stopped_inside, "no cancel fell into the middle of a batch"


def test_what_was_fed_before_a_cancel_is_in_context_and_memory(seat: Seat, granularity: str) -> None:
    spans = None if granularity == "token" else [i // 50 for i in range(len(TOKENS))]
    fed, delay = 0, 0.01
    while not fed:  # a loaded machine may not begin before the timer
        seat.clear_context()
        seat.clear_state()
        timer = cancel_after(seat, delay)
        try:
            seat.feed(TOKENS, spans=spans)
            pytest.skip("this machine feeds faster than it cancels")
        except Cancelled as cancelled:
            fed = cancelled.fed
        finally:
            timer.cancel()
            timer.join()
        delay *= 2
    state = seat.state()
    if spans:
        assert not state.any(), "the span writes of a pass that was not finished are dropped"
        seat.feed(TOKENS[fed:], spans=spans[fed:])
        assert seat.state().any(), "the next pass writes again"
    else:
        seat.clear_context()
        seat.clear_state()
        seat.feed(TOKENS[:fed])
        np.testing.assert_allclose(state, seat.state(), rtol=0, atol=STATE)


def test_a_cancel_before_feeding_is_forgotten(seat: Seat) -> None:
    seat.cancel()
    seat.feed(TOKENS[:20])
    assert seat.n_past == 20


def test_nothing_can_be_drawn_after_a_cancel_until_tokens_are_fed(seat: Seat) -> None:
    def cancel(_: int) -> None:
        seat.cancel()

    seat.feed([1])
    seat.clear_context()
    with pytest.raises(Cancelled) as cancelled:
        seat.feed(TOKENS, progress=cancel)
    assert cancelled.value.fed == 500
    with pytest.raises(EngineError, match="feed the model at least one token first"):
        seat.sampler(Sampling()).sample()
    seat.feed([1])
    seat.sampler(Sampling(temperature=0)).sample()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to the process")
def test_ctrl_c_in_the_middle_of_a_feed_leaves_a_usable_engine(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    """Pressed twice, as impatient people do; in a process of its own, because a fault here is a crash."""
    script = """
import os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from deltamem_cli.engine import Engine, EngineOptions, Model, Seat

options = EngineOptions(ctx_size=2048, batch=1500, micro_batch=8, threads=1, cache_type_k="f32", cache_type_v="f32", flash_attention="off")
tokens = [i * 7919 % 288 for i in range(1500)]
with Model(Path(sys.argv[1])) as model, Engine(model, Path(sys.argv[2]), options) as engine:
    seat = Seat(engine)
    seat.feed(tokens)
    seat.clear_context()
    seat.clear_state()
    start = time.monotonic()
    seat.feed(tokens)
    whole, state = time.monotonic() - start, seat.state()
    stopped, feeding = 0, False

    def on_signal(*_):
        if feeding:  # a second press may come when the first one has done its work
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    for part in (0.2, 0.4, 0.6):
        seat.clear_context()
        seat.clear_state()

        def press():
            time.sleep(part * whole)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.002)

        feeding = True
        threading.Thread(target=press).start()
        try:
            try:
                seat.feed(tokens)
            finally:
                feeding = False
        except KeyboardInterrupt:
            stopped += 1
        rest = tokens[seat.n_past:]
        if rest:
            seat.feed(rest)
        assert np.abs(seat.state() - state).max() < 1e-5, np.abs(seat.state() - state).max()
    print(stopped)
"""
    path = tiny_model("qwen3", n_ctx=4096)
    command = [sys.executable, "-c", script, path, tiny_adapter(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
