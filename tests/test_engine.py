"""The engine: what it feeds, draws, drops and refuses, on tiny models and the starter model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from drawing import draw

from deltamem_cli.bindings import NativeError
from deltamem_cli.engine import ChatTemplate, Engine, EngineError, EngineOptions, Model, Sampling, Seat
from deltamem_cli.errors import DeltamemError
from deltamem_cli.paths import starter_model

TOKENS = list(range(60, 100))
EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": "off", "threads": 1}


def options(**settings: object) -> EngineOptions:
    return EngineOptions(**(EXACT | {"ctx_size": 256} | settings))  # type: ignore[arg-type]


@pytest.fixture
def path(tiny_model: MakeModel) -> Path:
    return tiny_model("qwen3")


@pytest.fixture
def model(path: Path, loaded: LoadModel) -> Model:
    found: Model = loaded(path)
    return found


@pytest.fixture
def adapter(path: Path, tiny_adapter: MakeAdapter) -> Path:
    return tiny_adapter(path)


@pytest.fixture
def seat(model: Model, adapter: Path) -> Iterator[Seat]:
    with Engine(model, adapter, options()) as engine:
        yield Seat(engine)


# feeding


def test_all_logits_have_a_row_per_token_and_the_last_is_what_plain_feeding_gives(seat: Seat, model: Model) -> None:
    everything = seat.feed(TOKENS, all_logits=True)
    assert everything.shape == (len(TOKENS), model.n_vocab)
    seat.clear_context()
    seat.clear_state()
    np.testing.assert_allclose(seat.feed(TOKENS), everything[-1], rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [1, 8, 63])
def test_a_context_of_few_tokens_is_fed_in_pieces_that_it_takes(model: Model, adapter: Path, size: int) -> None:
    """llama.cpp takes no batch larger than the context that was asked for, though it makes a larger one."""
    with Engine(model, adapter, options()) as engine:
        seat = Seat(engine)
        expected = seat.feed(TOKENS, all_logits=True)
    with Engine(model, adapter, options(ctx_size=size)) as engine:
        seat = Seat(engine)
        assert engine.n_ctx_seq >= size
        np.testing.assert_allclose(seat.feed(TOKENS, all_logits=True), expected, rtol=0, atol=5e-5)


def test_a_context_as_large_as_a_model_that_does_not_say_is_refused(tiny_model: MakeModel) -> None:
    with Model(tiny_model("qwen3", n_ctx=0)) as model, pytest.raises(EngineError, match="set one with --ctx-size"):
        Engine(model, None, options(ctx_size=0))


@pytest.mark.parametrize("layers", [-2, 2**31, 2**32 + 1])
def test_layers_that_no_gpu_can_count_are_refused(path: Path, layers: int) -> None:
    with pytest.raises(EngineError, match=f"gpu_layers is {layers}"):
        Model(path, gpu_layers=layers)


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_spans_make_one_pass_whatever_the_batch_size(
    path: Path, model: Model, tiny_adapter: MakeAdapter, batch: int
) -> None:
    adapter = tiny_adapter(path, write_granularity="sentence_mean")
    spans = [-1, -1, *(i // 9 for i in range(len(TOKENS) - 2))]
    with Engine(model, adapter, options()) as engine:
        seat = Seat(engine)
        assert engine.granularity == "sentence_mean"
        expected = seat.feed(TOKENS, spans=spans, all_logits=True), seat.state()
    done: list[int] = []
    with Engine(model, adapter, options(batch=batch)) as engine:
        seat = Seat(engine)
        logits = seat.feed(TOKENS, spans=spans, all_logits=True, progress=done.append)
        np.testing.assert_allclose(logits, expected[0], rtol=0, atol=5e-5)
        np.testing.assert_allclose(seat.state(), expected[1], rtol=0, atol=1e-5)
        seat.clear_state()
        seat.clear_context()
        with seat.one_pass():  # several feeds may be one pass as well
            for i in range(0, len(TOKENS), 15):
                seat.feed(TOKENS[i : i + 15], spans=spans[i : i + 15])
        np.testing.assert_allclose(seat.state(), expected[1], rtol=0, atol=1e-5)
    assert done == [*range(batch, len(TOKENS), batch), len(TOKENS)]


def test_a_failure_inside_a_pass_ends_it_without_writing(path: Path, model: Model, tiny_adapter: MakeAdapter) -> None:
    with Engine(model, tiny_adapter(path, write_granularity="message_mean"), options(batch=8)) as engine:
        seat = Seat(engine)

        def fail(done: int) -> None:
            if done > 16:
                seat.cancel()

        with pytest.raises(DeltamemError, match="stopped"):
            seat.feed(TOKENS, spans=[0] * len(TOKENS), progress=fail)
        assert seat.n_past == 24
        assert not seat.state().any()
        seat.set_state(seat.state() + 0.5)  # not refused: no pass is open


def test_a_pass_with_a_failure_inside_writes_nothing_though_later_tokens_went_well(
    path: Path, model: Model, tiny_adapter: MakeAdapter
) -> None:
    with Engine(model, tiny_adapter(path, write_granularity="message_mean"), options(batch=8)) as engine:
        seat = Seat(engine)

        def cancel(_: int) -> None:
            seat.cancel()

        with pytest.raises(NativeError, match="its span writes were dropped"), seat.one_pass():
            seat.feed([1, 2], spans=[0, 0])
            with pytest.raises(DeltamemError, match="stopped"):
                seat.feed(TOKENS, spans=[1] * len(TOKENS), progress=cancel)
            seat.feed([3, 4], spans=[2, 2])
        assert not seat.state().any()
        seat.feed([3, 4], spans=[2, 2])
        assert seat.state().any()


def test_reading_only_leaves_the_state(seat: Seat) -> None:
    seat.feed(TOKENS)
    state = seat.state()
    seat.feed(TOKENS, write=False)
    assert seat.state().tobytes() == state.tobytes()
    seat.feed([5])
    assert seat.state().tobytes() != state.tobytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tokens": []}, "no tokens to feed"),
        ({"tokens": [1, 288]}, "out of range: .*0 to 287"),
        ({"tokens": [-1]}, "out of range"),
        ({"tokens": [1, 2], "spans": [0]}, "2 tokens but 1 span ids"),
        ({"tokens": [1] * 218}, "218 tokens don't fit in the context, which holds 40 of 256: drop"),
        ({"tokens": [1] * 10**6}, "1000000 tokens don't fit"),
    ],
)
def test_what_cannot_be_fed_is_refused_and_changes_nothing(
    seat: Seat, arguments: dict[str, list[int]], words: str
) -> None:
    seat.feed(TOKENS)
    state = seat.state()
    with pytest.raises(EngineError, match=words):
        seat.feed(**arguments)  # type: ignore[arg-type]
    assert seat.state().tobytes() == state.tobytes()
    assert seat.n_past == len(TOKENS)
    seat.feed([1] * 216)
    assert seat.n_past == seat.n_ctx_seq == 256


# states


def test_a_state_set_is_the_state_got_and_does_what_it_did(model: Model, adapter: Path) -> None:
    with Engine(model, adapter, options(seats=2)) as engine:
        one, other = Seat(engine), Seat(engine)
        one.feed(TOKENS)
        state = one.state()
        assert state.shape == engine.state_shape == (2, 1, 8, 8)
        assert state.dtype == np.float32
        one.clear_context()
        expected = one.feed(TOKENS, write=False)
        other.set_state(state.astype(np.float64)[:, :, :, ::-1][:, :, :, ::-1])  # any layout of memory
        np.testing.assert_allclose(other.feed(TOKENS, write=False), expected, rtol=0, atol=5e-5)
        other.clear_state()
        assert one.state().tobytes() == state.tobytes()
        assert not other.state().any()
        state[:] = 0  # a copy: the engine's own is another
        assert one.state().any()


def test_a_state_of_another_shape_or_with_nan_is_refused(seat: Seat) -> None:
    seat.feed(TOKENS)
    state = seat.state()
    for shape in ((2, 1, 8, 9), (2, 2, 8, 8), (1, 1, 8, 8), (128,), ()):
        with pytest.raises(EngineError, match=r"does not fit; this adapter needs \(2, 1, 8, 8\)"):
            seat.set_state(np.zeros(shape, np.float32))
    with pytest.raises(NativeError, match="NaN"):
        seat.set_state(np.full(seat.engine.state_shape, np.nan, np.float32))
    assert seat.state().tobytes() == state.tobytes()


def test_an_engine_without_adapter_has_no_memory_and_says_so(model: Model) -> None:
    with Engine(model, None, options()) as engine:
        seat = Seat(engine)
        assert not engine.has_memory
        assert engine.added_bytes == 0
        seat.feed(TOKENS, spans=[0] * len(TOKENS))
        with seat.one_pass():
            seat.feed([1], write=False)
        for question in (seat.state, seat.clear_state, lambda: seat.set_state(np.zeros(1, np.float32))):
            with pytest.raises(NativeError, match="no deltamem adapter"):
                question()


# what leaves the visible context


def test_a_dropped_part_is_gone_for_the_model_and_stays_in_the_memory(
    tiny_model: MakeModel, loaded: LoadModel, tiny_adapter: MakeAdapter
) -> None:
    """With one layer, keys and values depend on nothing but their token, so what is left equals a fresh context."""
    path = tiny_model("qwen3", n_layer=1)
    with Engine(loaded(path), tiny_adapter(path), options()) as engine:
        seat = Seat(engine)
        seat.feed(TOKENS)
        seat.drop(5, 25)
        assert seat.n_past == 20
        state = seat.state()
        shifted = seat.feed([7], write=False)
        seat.clear_context()
        assert seat.state().tobytes() == state.tobytes()
        seat.feed(TOKENS[:5] + TOKENS[25:], write=False)
        np.testing.assert_allclose(shifted, seat.feed([7], write=False), rtol=0, atol=1e-3)


def test_a_full_window_goes_on_by_dropping(seat: Seat) -> None:
    states = [seat.state()]
    for _ in range(12):
        if seat.n_past + len(TOKENS) > seat.n_ctx_seq:
            seat.drop(4, 4 + 2 * len(TOKENS))
        seat.feed(TOKENS)
        states.append(seat.state())
        assert np.isfinite(states[-1]).all()
        assert states[-1].tobytes() != states[-2].tobytes()
    assert seat.n_past <= seat.n_ctx_seq


def test_dropping_the_end_takes_the_last_tokens_back(seat: Seat) -> None:
    seat.feed(TOKENS)
    seat.clear_state()
    expected = seat.feed([1], write=False)
    seat.drop(len(TOKENS), 10**9)
    assert seat.n_past == len(TOKENS)
    np.testing.assert_allclose(seat.feed([1], write=False), expected, rtol=0, atol=5e-5)
    seat.drop(0, seat.n_past)
    assert seat.n_past == 0
    seat.feed(TOKENS)


@pytest.mark.parametrize(("start", "end"), [(20, 10), (-1, 5), (41, 50)])
def test_a_part_that_is_none_is_not_dropped(seat: Seat, start: int, end: int) -> None:
    seat.feed(TOKENS)
    with pytest.raises(EngineError, match=f"The tokens {start} to"):
        seat.drop(start, end)
    assert seat.n_past == len(TOKENS)
    seat.feed([1])


# making contexts and models


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache_type_k": "q3"}, "cache type q3 is not known"),
        ({"flash_attention": "maybe"}, "it must be auto, on or off"),
        ({"compute": "gpu"}, "must be one of auto, fused, ops, graph"),
        ({"batch": 0}, "batch is 0"),
        ({"micro_batch": -1}, "micro_batch is -1"),
        ({"seats": 0}, "seats is 0"),
        ({"ctx_size": -1}, "context size is -1"),
        ({"seats": 2, "ctx_size": 2**30}, "2 seats of 1073741824 tokens are more than"),
        ({"ctx_size": 2**31}, "context size is 2147483648"),
        ({"ctx_size": 2**32 + 1}, "context size is 4294967297"),
        ({"batch": 2**32 + 1}, "batch is 4294967297"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": -2}, "threads is -2"),
        ({"threads": 10000}, "threads is 10000"),
    ],
)
def test_options_without_sense_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        EngineOptions(**settings)  # type: ignore[arg-type]


def test_a_context_that_cannot_be_made_is_refused_with_llama_cpps_reason(model: Model) -> None:
    with pytest.raises(EngineError, match=r"A context of 256 tokens can't be created \(.+\)"):
        Engine(model, None, options(seats=1000))
    with Engine(model, None, options()) as engine:
        Seat(engine).feed([1])


def test_files_that_are_no_model_are_refused(tmp_path: Path, path: Path, adapter: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:100_000])
    (tmp_path / "head.gguf").write_bytes(path.read_bytes()[:500])
    for file in (tmp_path / "text.gguf", tmp_path / "cut.gguf", tmp_path / "head.gguf", adapter):
        with pytest.raises(EngineError, match=f"{file.name} can't be loaded") as error:
            Model(file)
        assert "\n" not in str(error.value)
    for file, why in ((tmp_path / "none.gguf", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(EngineError, match=why):
            Model(file)


def test_a_path_with_any_letters_can_be_loaded(path: Path, adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "modèle 日本 'x'"
    folder.mkdir()
    odd = folder / os.fsdecode(b"m\xff.gguf") if sys.platform == "linux" else folder / "m.gguf"
    odd.write_bytes(path.read_bytes())
    other = odd.with_name(f"a{odd.name}")
    other.write_bytes(adapter.read_bytes())
    with Model(odd) as model, Engine(model, other, options()) as engine:
        seat = Seat(engine)
        seat.feed([1, 2])


QUIET = """
import sys
from pathlib import Path
from deltamem_cli.bindings import native
from deltamem_cli.engine import Engine, EngineError, EngineOptions, Model, Sampling, Seat
from deltamem_cli.errors import DeltamemError

path, adapter, debug = Path(sys.argv[1]), Path(sys.argv[2]), len(sys.argv) > 3
native().log_to_stderr = debug
with Model(path) as model, Engine(model, adapter, EngineOptions(ctx_size=256, threads=1)) as engine:
    seat = Seat(engine)
    seat.feed(list(range(50)))
    seat.sampler(Sampling(seed=1)).sample()
    for wrong in (lambda: Engine(model, path), lambda: Engine(model, None, EngineOptions(seats=1000)), lambda: Model(adapter)):
        try:
            wrong()
        except DeltamemError:
            continue
        raise AssertionError
"""


@pytest.mark.parametrize("debug", [False, True])
def test_nothing_of_llama_cpp_reaches_the_screen_unless_asked_for(path: Path, adapter: Path, debug: bool) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", QUIET, path, adapter, *(["debug"] if debug else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ""
    assert ("llama" in done.stderr) == debug
    assert (done.stderr == "") == (not debug)


def test_the_starter_model_talks_and_ends_its_turn() -> None:
    try:
        path = starter_model()
    except DeltamemError:
        pytest.skip("this build has no starter model")
    # Its own template, but for the words about itself that it puts before a question; they confuse it.
    start, end = "{{ '<|im_start|>' + ", " + '\\n' }}"
    template = f"{start}'user'{end}{{{{ messages[0].content + '<|im_end|>'{end}{start}'assistant'{end}"
    with Model(path) as model, Engine(model, None, EngineOptions(ctx_size=256, threads=1)) as engine:
        seat = Seat(engine)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert model.text(model.tokenize(model.render(question), special=True), special=True) == model.render(question)
        prompt = model.render(question, template=ChatTemplate(template, "the chat template"))
        seat.feed(model.tokenize(prompt, special=True))
        reply = list(draw(seat, Sampling(temperature=0), max_tokens=30))
        assert model.text(reply) == "The capital of France is Paris."
        assert not any(model.is_end(token) for token in reply)
