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

from deltamem_cli.engine import Cancelled, Engine, EngineError, EngineOptions, Sampling

EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off", "threads": 1}
LOGITS, STATE = 5e-5, 1e-5
TOKENS = [int(token) for token in np.random.default_rng(31).integers(0, 288, 2000)]


@pytest.fixture(params=["token", "message_mean"])
def granularity(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(granularity: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel) -> Iterator[Engine]:
    """Many small micro-batches in each batch, so that most cancels fall into the middle of one."""
    path = tiny_model("qwen3", n_ctx=4096)
    adapter = tiny_adapter(path, write_granularity=granularity)
    options = EngineOptions(ctx_size=2048, batch=500, micro_batch=8, **EXACT)  # type: ignore[arg-type]
    with Engine(loaded(path), adapter, options) as engine:
        yield engine


def cancel_after(engine: Engine, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, engine.cancel)
    timer.start()
    return timer


def test_feeding_the_rest_after_a_cancel_equals_feeding_without_one(engine: Engine) -> None:
    engine.feed(TOKENS)  # the first run is slower, and its time is not what the others take
    engine.clear_context()
    engine.clear_state()
    start = time.monotonic()
    expected = engine.feed(TOKENS)
    whole, state = time.monotonic() - start, engine.state()
    stopped_inside = 0
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        engine.clear_context()
        engine.clear_state()
        done = 0
        while done < len(TOKENS):
            timer = cancel_after(engine, part * whole)
            try:
                logits = engine.feed(TOKENS[done:])
                done = len(TOKENS)
            except Cancelled as cancelled:
                assert engine.n_past() == done + cancelled.fed
                done += cancelled.fed
                stopped_inside += 0 < done < len(TOKENS) and done % 500 > 0
            timer.cancel()
            timer.join()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS)
        np.testing.assert_allclose(engine.state(), state, rtol=0, atol=STATE)
    assert stopped_inside, "no cancel fell into the middle of a batch"


def test_what_was_fed_before_a_cancel_is_in_context_and_memory(engine: Engine, granularity: str) -> None:
    spans = None if granularity == "token" else [i // 50 for i in range(len(TOKENS))]
    fed, delay = 0, 0.01
    while not fed:  # a loaded machine may not begin before the timer
        engine.clear_context()
        engine.clear_state()
        timer = cancel_after(engine, delay)
        try:
            engine.feed(TOKENS, spans=spans)
            pytest.skip("this machine feeds faster than it cancels")
        except Cancelled as cancelled:
            fed = cancelled.fed
        finally:
            timer.cancel()
            timer.join()
        delay *= 2
    state = engine.state()
    if spans:
        assert not state.any(), "the span writes of a pass that was not finished are dropped"
        engine.feed(TOKENS[fed:], spans=spans[fed:])
        assert engine.state().any(), "the next pass writes again"
    else:
        engine.clear_context()
        engine.clear_state()
        engine.feed(TOKENS[:fed])
        np.testing.assert_allclose(state, engine.state(), rtol=0, atol=STATE)


def test_a_cancel_before_feeding_is_forgotten(engine: Engine) -> None:
    engine.cancel()
    engine.feed(TOKENS[:20])
    assert engine.n_past() == 20


def test_nothing_can_be_drawn_after_a_cancel_until_tokens_are_fed(engine: Engine) -> None:
    def cancel(_: int) -> None:
        engine.cancel()

    engine.feed([1])
    engine.clear_context()
    with pytest.raises(Cancelled) as cancelled:
        engine.feed(TOKENS, progress=cancel)
    assert cancelled.value.fed == 500
    with pytest.raises(EngineError, match="feed the model at least one token first"):
        next(engine.generate(Sampling()))
    engine.feed([1])
    next(engine.generate(Sampling(temperature=0)))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to the process")
def test_ctrl_c_in_the_middle_of_a_feed_leaves_a_usable_engine(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    """Pressed twice, as impatient people do; in a process of its own, because a fault here is a crash."""
    script = """
import os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from deltamem_cli.engine import Engine, EngineOptions, Model

options = EngineOptions(ctx_size=2048, batch=1500, micro_batch=8, threads=1, cache_type_k="f32", cache_type_v="f32", flash_attention="off")
tokens = [i * 7919 % 288 for i in range(1500)]
with Model(Path(sys.argv[1])) as model, Engine(model, Path(sys.argv[2]), options) as engine:
    engine.feed(tokens)
    engine.clear_context()
    engine.clear_state()
    start = time.monotonic()
    engine.feed(tokens)
    whole, state = time.monotonic() - start, engine.state()
    stopped, feeding = 0, False

    def on_signal(*_):
        if feeding:  # a second press may come when the first one has done its work
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    for part in (0.2, 0.4, 0.6):
        engine.clear_context()
        engine.clear_state()

        def press():
            time.sleep(part * whole)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.002)

        feeding = True
        threading.Thread(target=press).start()
        try:
            try:
                engine.feed(tokens)
            finally:
                feeding = False
        except KeyboardInterrupt:
            stopped += 1
        rest = tokens[engine.n_past():]
        if rest:
            engine.feed(rest)
        assert np.abs(engine.state() - state).max() < 1e-5, np.abs(engine.state() - state).max()
    print(stopped)
"""
    path = tiny_model("qwen3", n_ctx=4096)
    command = [sys.executable, "-c", script, path, tiny_adapter(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
