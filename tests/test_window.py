"""The window draws a reply: it ends where it must, and what was given is what the model has read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel

from deltamem_cli.engine import Engine, EngineOptions, Model, Sampling, Seat
from deltamem_cli.session.window import Window

PROMPT = list(range(60, 80))
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tiny_model: MakeModel, loaded: LoadModel) -> Model:
    found: Model = loaded(tiny_model("qwen3"))
    return found


@pytest.fixture
def window(model: Model, tiny_adapter: MakeAdapter) -> Iterator[Window]:
    with Engine(model, tiny_adapter(model.path), EngineOptions(ctx_size=256, threads=1)) as engine:
        window = Window(Seat(engine))
        window.start([])
        window.feed(1, PROMPT, write=True)
        yield window


def reply(
    window: Window, sampling: Sampling = GREEDY, *, max_tokens: int | None = None, write: bool = True
) -> Iterator[int]:
    return window.reply(1, sampling, write=write, take=lambda token: 0, max_tokens=max_tokens)


def test_a_reply_stops_after_max_tokens_and_has_been_fed(window: Window) -> None:
    assert list(reply(window, max_tokens=0)) == []
    tokens = list(reply(window, max_tokens=7))
    assert len(tokens) == 7
    assert window.n_past == len(PROMPT) + 7
    assert window.tokens(1) == PROMPT + tokens


def test_a_reply_ends_before_a_token_that_ends_the_turn(window: Window, model: Model) -> None:
    """Any token is as likely as any other here, so that one of the end tokens comes soon."""
    ends = {token for token in range(model.n_vocab) if model.is_end(token)}
    assert ends
    hot = {"temperature": 1e6, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for seed in range(8):
        tokens = list(reply(window, Sampling(**hot, seed=seed), max_tokens=400))  # type: ignore[arg-type]
        assert not set(tokens) & ends
        if len(tokens) < 400:
            return
    pytest.fail("no reply ended by itself")


def test_a_reply_that_fills_the_window_goes_on_and_the_oldest_leaves_it(window: Window) -> None:
    tokens = list(reply(window, max_tokens=300))
    assert len(tokens) == 300
    assert window.n_past <= window.seat.n_ctx_seq
    assert window.tokens(1) == tokens[-window.n_past :]


def test_closing_a_reply_leaves_what_it_has_given(window: Window) -> None:
    tokens = reply(window)
    given = [next(tokens), next(tokens)]
    tokens.close()  # type: ignore[attr-defined]
    assert window.tokens(1) == PROMPT + given and window.n_past == len(PROMPT) + 2


def test_a_reply_that_is_read_only_leaves_the_memory(window: Window) -> None:
    before = window.seat.state().tobytes()
    assert list(reply(window, max_tokens=5, write=False))
    assert window.seat.state().tobytes() == before
    assert list(reply(window, max_tokens=5))
    assert window.seat.state().tobytes() != before


def test_a_message_whose_marks_are_not_written_takes_one_pass_of_the_model(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = window.seat.state()
    marks, content = PROMPT[:4], PROMPT[4:12]
    for tokens, write in ((marks, False), (content, True), (marks, False)):
        window.feed(2, tokens, write=write)
    apart = window.seat.state()
    window.start([])
    window.seat.clear_state()
    window.feed(1, PROMPT, write=True)
    assert np.abs(window.seat.state() - before).max() < 1e-6
    passes: list[int] = []
    real = Seat.feed
    monkeypatch.setattr(Seat, "feed", lambda self, tokens, **more: passes.append(1) or real(self, tokens, **more))
    window.feed(2, [*marks, *content, *marks], write=True, spans=[-1] * 4 + [0] * 8 + [-1] * 4)
    assert len(passes) == 1
    assert np.abs(window.seat.state() - apart).max() < 1e-5 < np.abs(apart - before).max()
