"""How a model is run: threads, KV cache, flash attention. What was chosen is told, and the memory does not mind."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LoadModel, MakeModel

from deltamem_cli.engine import Engine, EngineError, EngineOptions, Seat, threads
from deltamem_cli.paths import starter_adapter, starter_model
from deltamem_cli.session.loading import load
from deltamem_cli.session.request import Request


def v2(root: Path, limits: dict[str, str]) -> None:
    for path, text in limits.items():
        folder = root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"a/b": "max 100000"}, None),
        ({"a/b": "150000 100000"}, 1.5),
        ({"a": "200000 100000", "a/b": "max 100000"}, 2.0),  # a limit further up holds for all below it
        ({"a": "200000 100000", "a/b": "400000 100000"}, 2.0),
        ({"": "300000 100000"}, 3.0),  # a container sees its own group as the root
        ({"a/b": "rubbish"}, None),
    ],
)
def test_the_quota_of_a_container_is_the_least_of_its_groups(
    tmp_path: Path, limits: dict[str, str], expected: float | None
) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    v2(tmp_path / "cgroup", limits)
    assert threads.cpu_quota(tmp_path / "cgroup", own) == expected


def test_the_quota_of_an_old_container_is_read_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("7:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n")
    folder = tmp_path / "cgroup" / "cpu" / "docker" / "x"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000")
    (folder / "cpu.cfs_quota_us").write_text("-1")
    assert threads.cpu_quota(tmp_path / "cgroup", own) is None
    (folder / "cpu.cfs_quota_us").write_text("250000")
    assert threads.cpu_quota(tmp_path / "cgroup", own) == 2.5


def test_no_more_threads_than_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_others_running", lambda: 0)
    monkeypatch.setattr(threads, "_siblings", lambda core: str(core // 2))  # two threads per core
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads.platform, "system", lambda: "Linux")
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    assert threads.default_threads() == 4
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.5)
    assert threads.default_threads() == 2
    monkeypatch.setattr(threads, "cpu_quota", lambda: 0.5)
    assert threads.default_threads() == 1
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    monkeypatch.setattr(threads, "_siblings", lambda core: None)  # as on Windows
    assert threads.default_threads() == 4


def test_what_was_chosen_is_told(tiny_model: MakeModel, loaded: LoadModel) -> None:
    model = loaded(tiny_model("qwen3"))
    with Engine(model, None, EngineOptions(ctx_size=0)) as engine:
        chosen = engine.chosen()
    assert chosen["threads"] >= 1 and chosen["ctx_size"] == 512
    assert (chosen["cache_type_k"], chosen["flash_attention"], chosen["gpu_layers"]) == ("f16", "on", 0)
    with Engine(model, None, EngineOptions(ctx_size=256, flash_attention="off", threads=1)) as engine:
        assert engine.chosen() == {
            "threads": 1,
            "gpu_layers": 0,
            "ctx_size": 256,
            "cache_type_k": "f16",
            "cache_type_v": "f16",
            "flash_attention": "off",
        }


def test_a_cache_that_can_not_be_is_refused_in_one_sentence(tiny_model: MakeModel, loaded: LoadModel) -> None:
    with pytest.raises(EngineError, match="only with flash attention, which is off: use --flash-attn auto"):
        EngineOptions(cache_type_v="q4_0", flash_attention="off")
    EngineOptions(cache_type_k="q4_0", flash_attention="off")
    model = loaded(tiny_model("qwen3"))
    assert model.head_width("k") % 32
    for flash in ("auto", "off"):  # off: llama.cpp itself would end the process
        with pytest.raises(EngineError, match="needs heads of a multiple of 32 .*--cache-type-k f16"):
            Engine(model, None, EngineOptions(ctx_size=256, cache_type_k="q8_0", flash_attention=flash))
    with pytest.raises(EngineError, match="--cache-type-v f16"):
        Engine(model, None, EngineOptions(ctx_size=256, cache_type_v="q8_0"))


TOLD_AND_ASKED = (
    ("My name is Maria and my dog is called Rex.", "What is my dog called?"),
    ("I live in Lisbon and my sister is a welder.", "Where do I live?"),
    ("I work as a nurse and I am allergic to peanuts.", "What am I allergic to?"),
    ("My favourite tea is rooibos. The meeting is on Tuesday.", "When is the meeting?"),
)


def tell_and_ask(model: Any, settings: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """States after each message [n, state], and what each adds to the logits in an empty context [n, vocabulary]."""
    states, added = [], []
    with Engine(model, starter_adapter(), EngineOptions(ctx_size=256, threads=1, **settings)) as engine:  # type: ignore[arg-type]
        seat = Seat(engine)
        for told, asked in TOLD_AND_ASKED:
            said, question = (
                model.tokenize(model.render([{"role": "user", "content": text}]), special=True)
                for text in (told, asked)
            )
            seat.feed(said)
            states.append(seat.state().ravel())
            seat.clear_context()
            with_memory = seat.feed(question, write=False)
            seat.clear_context()
            seat.clear_state()
            added.append(with_memory - seat.feed(question, write=False))
            seat.clear_context()
    return np.stack(states), np.stack(added)


@pytest.fixture(scope="module")
def with_an_exact_cache(loaded: LoadModel) -> tuple[np.ndarray, np.ndarray]:
    """What tell_and_ask() finds with nothing of the cache rounded."""
    if starter_adapter() is None:
        pytest.skip("this package has no adapter for its starter")
    exact = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off"}
    return tell_and_ask(loaded(starter_model()), exact)


@pytest.mark.parametrize(
    ("settings", "tolerance", "likeness"),
    [
        # the model's own rounding, of 4-bit weights, makes 4 % of any other order of operations, and other CPUs others
        ({"flash_attention": "on"}, 0.08, 0.9),
        ({"flash_attention": "off"}, 0.08, 0.9),
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 0.1, 0.9),
        ({"cache_type_k": "q8_0", "flash_attention": "off"}, 0.1, 0.9),
        ({"cache_type_k": "q4_0", "cache_type_v": "q4_0"}, 0.4, 0.6),
    ],
)
def test_the_memory_is_the_same_whatever_the_cache_is_like(
    loaded: LoadModel,
    with_an_exact_cache: tuple[np.ndarray, np.ndarray],
    settings: dict[str, str],
    tolerance: float,
    likeness: float,
) -> None:
    states, added = tell_and_ask(loaded(starter_model()), settings)
    exact, expected = with_an_exact_cache
    assert np.isfinite(added).all()
    assert (np.linalg.norm(states - exact, axis=1) <= tolerance * np.linalg.norm(exact, axis=1)).all()
    n = len(TOLD_AND_ASKED)
    alike = np.corrcoef(added, expected)[:n, n:]
    assert alike.argmax(1).tolist() == list(range(n))  # more like its own than like what any other message adds
    assert np.diag(alike).mean() >= likeness


def test_a_sliding_window_keeps_what_its_layers_look_at(tiny_model: MakeModel, loaded: LoadModel) -> None:
    """Tokens that are taken out of the middle may leave less than the window behind them; then all is fed again."""
    for arch, window in (("qwen3", 0), ("gemma3", 8)):
        with Engine(loaded(tiny_model(arch)), None, EngineOptions(ctx_size=256, threads=1)) as engine:
            seat = Seat(engine)
            seat.feed(list(range(60, 100)))
            assert seat.keeps_without(10, 40 - window) and seat.keeps_without(10, 40)
            assert seat.keeps_without(10, 41 - window) == (window == 0) or window == 1
            assert not seat.is_torn()


@pytest.mark.parametrize(("trained", "tokens"), [(0, 4096), (2**32 - 1, 4096), (16, 256), (512, 512)])
def test_a_model_that_names_no_sensible_context_gets_the_usual_one(
    home: Path, tiny_model: MakeModel, trained: int, tokens: int
) -> None:
    model = tiny_model("qwen3", n_ctx=trained)
    with ExitStack() as stack:
        loaded = load(stack, Request(model=model, threads=1))
        assert loaded.engine.n_ctx_seq == tokens
        loaded.seat.feed(list(range(20)))
