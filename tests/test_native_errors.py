"""Every misuse of states, spans, passes and adapters is answered with one clear sentence, and all goes on as before."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from raw_context import RawContext, Row, floats, rows

from deltamem_cli.bindings import AdapterInfo, NativeError, native
from deltamem_cli.engine import Model

TOKENS = list(range(40, 52))


@pytest.fixture
def path(tiny_model: MakeModel) -> Path:
    return tiny_model("qwen3")


@pytest.fixture
def model(path: Path, loaded: LoadModel) -> Model:
    found: Model = loaded(path)
    return found


@pytest.fixture
def adapter(path: Path, tiny_adapter: MakeAdapter) -> Path:
    return tiny_adapter(path, write_granularity="message_mean")


@pytest.fixture
def context(model: Model, adapter: Path) -> Iterator[RawContext]:
    with RawContext(model, adapter, n_seq_max=3, n_ctx=768) as context:
        context.decode(rows(TOKENS))
        yield context


@pytest.fixture
def plain(model: Model) -> Iterator[RawContext]:
    with RawContext(model) as context:
        yield context


def test_a_state_of_a_wrong_size_is_refused_and_the_old_one_stays(context: RawContext) -> None:
    before = context.state()
    wrong = np.zeros(before.size + 1, np.float32)
    for size in (0, 1, before.size - 1, before.size + 1, 2**40):
        for function in ("state_set", "state_get"):
            with pytest.raises(
                NativeError, match=rf"A state of {size} numbers does not fit; .*\.gguf needs {before.size}"
            ):
                context.call(function, 0, floats(wrong), size)
    with pytest.raises(NativeError, match="No memory for the state"):
        context.call("state_set", 0, None, before.size)
    assert context.state().tobytes() == before.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_with_nan_or_infinity_is_refused_and_the_old_one_stays(context: RawContext, value: float) -> None:
    before = context.state()
    for at in (0, before.size // 2, before.size - 1):
        state = before.copy()
        state.ravel()[at] = value
        with pytest.raises(NativeError, match="NaN or infinite"):
            context.set_state(state)
    assert context.state().tobytes() == before.tobytes()


@pytest.mark.parametrize("sequence", [-1, 3, 256, 2**31 - 1, -(2**31)])
def test_a_sequence_out_of_range_is_refused(context: RawContext, sequence: int) -> None:
    state = context.state()
    calls = [
        ("state_get", (sequence, floats(state), state.size)),
        ("state_set", (sequence, floats(state), state.size)),
        ("state_copy", (0, sequence)),
        ("state_copy", (sequence, 0)),
    ]
    if sequence >= 0:  # clearing takes negative numbers for all
        calls.append(("state_clear", (sequence,)))
    for name, args in calls:
        with pytest.raises(NativeError, match=f"Sequence {sequence} does not exist; this context has 0 to 2"):
            context.call(name, *args)
    assert context.try_decode([Row(1, 0, (sequence,))]) == -1
    context.decode(rows([1], start=len(TOKENS)))


def test_without_an_adapter_every_question_is_refused(plain: RawContext) -> None:
    one, spans = np.zeros(1, np.float32), (ctypes.c_int32 * 1)(0)
    calls = [
        ("detach", ()), ("state_get", (0, floats(one), 1)), ("state_set", (0, floats(one), 1)), ("state_clear", (0,)),
        ("state_clear", (-1,)), ("state_copy", (0, 0)), ("set_write", (True,)), ("set_spans", (spans, 1)),
        ("pass_begin", (0,)), ("pass_drop", (0,)), ("pass_end", (0,)),
    ]  # fmt: skip
    for name, args in calls:
        with pytest.raises(NativeError, match="This context has no deltamem adapter: attach one first"):
            plain.call(name, *args)
        with pytest.raises(NativeError, match="No context was given"):
            native().call(name, None, *args)
    for name in ("state_n_floats", "state_n_bytes"):
        assert plain.call(name) == 0
        assert "has no deltamem adapter" in native().last_error()
    plain.decode(rows(TOKENS))


def test_questions_to_no_adapter_are_refused() -> None:
    layers = (ctypes.c_int32 * 2)()
    for name, args in (("adapter_info", (ctypes.byref(AdapterInfo()),)), ("adapter_layers", (layers, 2))):
        with pytest.raises(NativeError, match="No adapter was given"):
            native().call(name, None, *args)


def test_layers_asked_for_with_another_number_are_refused(model: Model, adapter: Path) -> None:
    handle = native().call("adapter_init", model.handle, str(adapter).encode(), 0)
    layers = (ctypes.c_int32 * 9)()
    for n in (0, 1, 3, 9):
        with pytest.raises(NativeError, match="number of layers does not fit"):
            native().call("adapter_layers", handle, layers, n)
    native().call("adapter_free", handle)


def test_a_second_adapter_over_the_first_is_refused_and_the_first_works_on(
    context: RawContext, path: Path, tiny_adapter: MakeAdapter
) -> None:
    before = context.state()
    with pytest.raises(NativeError, match=r"already has the adapter .*\.gguf: detach it first"):
        context.attach(tiny_adapter(path, rank=4))
    context.info.rank = 8
    assert context.state().tobytes() == before.tobytes()
    context.decode(rows([7], start=len(TOKENS)))
    assert context.state().tobytes() != before.tobytes()


def test_an_adapter_loaded_for_one_model_is_not_attached_to_another(
    adapter: Path, model: Model, tiny_model: MakeModel, loaded: LoadModel
) -> None:
    handle = native().call("adapter_init", model.handle, str(adapter).encode(), 0)
    for other, words in (("llama", "for qwen3, this model is llama"), ("qwen3", "of 2 layers, this one has 3")):
        with (
            RawContext(loaded(tiny_model(other, n_layer=3))) as context,
            pytest.raises(NativeError, match=words),
        ):
            context.call("attach", handle)
    native().call("adapter_free", handle)


def test_span_ids_of_a_wrong_number_stop_the_decode_and_are_used_up(context: RawContext) -> None:
    before, start = context.state(), len(TOKENS)
    for spans in ([0], [0] * 13):
        assert context.try_decode(rows(TOKENS, start=start), spans) == -1
        assert f"Span ids for {len(spans)} tokens were set, but the batch has 12" in native().last_error()
    assert context.state().tobytes() == before.tobytes()
    context.decode(rows(TOKENS, start=start))  # without ids again
    assert native().last_error() == ""
    for args in ((None, 3), ((ctypes.c_int32 * 1)(0), 0)):
        with pytest.raises(NativeError, match="No span ids"):
            context.call("set_spans", *args)


def test_span_ids_are_used_up_by_a_batch_that_llama_cpp_refuses(context: RawContext, adapter: Path) -> None:
    """A token or a position that can't be: the ids must not wait for the next batch."""
    before, start = context.state(), len(TOKENS)
    for bad in ([Row(10**6, start)], [Row(-1, start)], [Row(1, start + 50)]):
        assert context.try_decode(bad, [-1]) == -1
        assert native().last_error() == "", "δ-mem is not the cause"
    context.decode(rows([5], start=start))
    assert context.state().tobytes() != before.tobytes(), "the token was written, so -1 was not its span id"


def test_a_token_in_two_sequences_is_refused(context: RawContext) -> None:
    before, start = context.state(), len(TOKENS)
    assert context.try_decode([Row(1, start, (0,)), Row(2, start + 1, (0, 1))]) == -1
    assert "Token 1 belongs to 2 sequences, with a memory it must be one" in native().last_error()
    assert context.state().tobytes() == before.tobytes()
    context.decode(rows([1], start=start))


def test_passes_out_of_order_are_refused(context: RawContext) -> None:
    with pytest.raises(NativeError, match="No pass is open"):
        context.call("pass_end", 0)
    context.call("pass_begin", 0)
    with pytest.raises(NativeError, match="A pass is open already"):
        context.call("pass_begin", 0)
    context.call("pass_end", 0)
    context.call("pass_begin", 0)
    context.decode(rows([1], start=len(TOKENS)), [0])
    context.detach()  # with it go the states and the pass


def test_an_error_is_told_once_and_to_its_own_thread(context: RawContext) -> None:
    with pytest.raises(NativeError):
        context.call("pass_end", 0)
    assert "No pass is open" in native().last_error()
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(native().last_error()))
    thread.start()
    thread.join()
    assert seen == [""]
    assert context.try_decode([Row(10**6, len(TOKENS))]) == -1
    assert native().last_error() == "", "it is not what this decode failed of"
    with pytest.raises(NativeError):
        context.call("pass_end", 0)
    context.call("set_write", True)
    assert native().last_error() == ""


def test_freeing_in_any_order_ends_well(path: Path, adapter: Path) -> None:
    """In a process of its own, where a use of freed memory shows."""
    script = """
import sys
from pathlib import Path
from deltamem_cli.engine import Engine, EngineError, EngineOptions, Model, Sampling, Seat

path, adapter = map(Path, sys.argv[1:])
model = Model(path)
engines = [Engine(model, adapter, EngineOptions(ctx_size=256, threads=1)) for _ in range(2)]
model.close()
model.close()
for engine in engines:
    seat = Seat(engine)
    seat.feed([1, 2, 3])
    assert seat.state().any()
    engine.close()
    engine.close()
    for use in (lambda: seat.feed([1]), lambda: seat.sampler(Sampling()).sample()):
        try:
            use()
        except EngineError:
            continue
        raise AssertionError("a closed engine was used")
assert model.handle is None
try:
    Engine(model)
except EngineError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, path, adapter]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"The model {path.name} is closed" in done.stdout
