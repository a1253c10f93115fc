"""What a context has beside δ-mem leaves it alone, and is left alone: caches, attention, LoRA, reuse, other contexts."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from raw_context import FLASH_OFF, FLASH_ON, Q4_0, Q8_0, RawContext, rows
from stock_logits import logits as stock_logits

from deltamem_cli.bindings import COMPUTE, native
from deltamem_cli.engine import Model

LOGITS, STATE = 5e-5, 1e-5
TOKENS = [int(token) for token in np.random.default_rng(21).integers(0, 288, 40)]


@pytest.fixture
def path(tiny_model: MakeModel) -> Path:
    return tiny_model("qwen3", head_dim=32)  # a whole block of the quantized caches


@pytest.fixture
def model(path: Path, loaded: LoadModel) -> Model:
    found: Model = loaded(path)
    return found


@pytest.fixture
def adapter(path: Path, tiny_adapter: MakeAdapter) -> Path:
    return tiny_adapter(path, delta_heads=("q", "k", "v", "o"))


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        ({"flash_attn_type": FLASH_ON}, 0.02),  # it rounds to float16 inside
        ({"type_k": 1, "type_v": 1}, 0.05),
        ({"type_k": Q8_0, "type_v": Q8_0, "flash_attn_type": FLASH_ON}, 0.3),
        ({"type_k": Q4_0, "type_v": Q4_0, "flash_attn_type": FLASH_ON}, 3.0),
    ],
)
def test_flash_attention_and_small_caches_stay_near(
    model: Model, adapter: Path, fields: dict[str, int], tolerance: float
) -> None:
    results = []
    for settings in ({"flash_attn_type": FLASH_OFF}, fields):
        with RawContext(model, adapter, **settings) as context:
            results.append((context.decode_in(8, rows(TOKENS)), context.state()))
    (exact, exact_state), (near, state) = results
    assert np.abs(near - exact).max() < tolerance
    assert np.abs(state - exact_state).max() < tolerance / 10


@pytest.mark.parametrize("compute", COMPUTE[1:])
def test_a_reused_graph_equals_one_built_anew(
    model: Model, adapter: Path, compute: str, tiny_adapter: MakeAdapter, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through writing on and off, another state, detaching and another adapter, in the middle of reuse."""
    other = tiny_adapter(path, seed=5, delta_heads=("k", "o"), rank=4)

    def run() -> tuple[np.ndarray, np.ndarray, int]:
        with RawContext(model, adapter, compute=compute) as context:
            found = []
            for i, row in enumerate(rows(TOKENS)):
                if i in (10, 14):
                    context.call("set_write", i == 14)
                if i == 18:
                    context.set_state(np.full_like(context.state(), 0.1))
                if i == 22:
                    context.detach()
                if i == 26:
                    context.attach(adapter, compute)
                if i == 32:
                    context.detach()
                    context.attach(other, compute)
                found.append(context.decode([row])[0])
            reused = context.llama.llama_perf_context(context.handle).n_reused
            return np.array(found), context.state(), reused

    logits, state, reused = run()
    monkeypatch.setenv("LLAMA_GRAPH_REUSE_DISABLE", "1")
    anew, anew_state, never = run()
    assert never == 0
    assert reused > 15
    assert logits.tobytes() == anew.tobytes()
    assert state.tobytes() == anew_state.tobytes()


def test_before_attaching_and_after_detaching_the_model_is_the_plain_one(model: Model, adapter: Path) -> None:
    with RawContext(model) as context:
        plain = context.decode(rows(TOKENS))
    with RawContext(model) as context:
        assert context.decode(rows(TOKENS)).tobytes() == plain.tobytes()
        context.attach(adapter)
        context.llama.llama_memory_clear(context.memory, True)
        assert context.decode(rows(TOKENS)).tobytes() != plain.tobytes()
        context.detach()
        context.llama.llama_memory_clear(context.memory, True)
        assert context.decode(rows(TOKENS)).tobytes() == plain.tobytes()


@pytest.mark.skipif("DELTAMEM_STOCK_LIB" not in os.environ, reason="no unpatched build is named by DELTAMEM_STOCK_LIB")
@pytest.mark.parametrize("arch", ["qwen3", "phi3", "gemma3", "qwen3moe"])
def test_with_nothing_attached_the_logits_are_those_of_an_unpatched_build(
    arch: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    path, out = tiny_model(arch), tmp_path / "logits.npy"
    script = Path(__file__).with_name("stock_logits.py")
    library = os.environ["DELTAMEM_STOCK_LIB"]
    command = [sys.executable, script, native().directory, library, path, out, *map(str, TOKENS)]
    subprocess.run(command, check=True, capture_output=True)
    assert np.load(out).tobytes() == stock_logits(native().llama, str(path), TOKENS).tobytes()


def write_lora(path: Path, model: Path) -> None:
    """A LoRA of rank 2 for every projection that δ-mem corrects."""
    import gguf

    rng = np.random.default_rng(4)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for tensor in gguf.GGUFReader(model).tensors:
        if ".attn_" in tensor.name and len(tensor.shape) == 2:
            n_in, n_out = (int(size) for size in tensor.shape)
            writer.add_tensor(f"{tensor.name}.lora_a", rng.normal(0, 0.2, (2, n_in)).astype(np.float32))
            writer.add_tensor(f"{tensor.name}.lora_b", rng.normal(0, 0.2, (n_out, 2)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("compute", COMPUTE[1:])
def test_a_lora_adapter_works_beside_it(
    compute: str, path: Path, adapter: Path, tiny_adapter: MakeAdapter, tmp_path: Path
) -> None:
    write_lora(tmp_path / "lora.gguf", path)
    zero = tiny_adapter(path, delta_heads=("q", "k", "v", "o"), zero_delta=True)
    found: dict[tuple[str, bool], np.ndarray] = {}
    with Model(path) as model:  # the LoRA is freed with its model
        lora = native().llama.llama_adapter_lora_init(model.handle, str(tmp_path / "lora.gguf").encode())
        assert lora
        for name, memory in (("none", None), ("zero", zero), ("memory", adapter)):
            for with_lora in (False, True):
                with RawContext(model, memory, compute=compute) as context:
                    if with_lora:
                        one = (context.llama.llama_adapter_lora_p_ctypes * 1)(lora)
                        scales = (ctypes.c_float * 1)(1.0)
                        assert context.llama.llama_set_adapters_lora(context.handle, one, 1, scales) == 0
                    found[name, with_lora] = context.decode(rows(TOKENS))
    assert found["zero", True].tobytes() == found["none", True].tobytes()
    assert np.abs(found["none", True] - found["none", False]).max() > 0.05
    assert np.abs(found["memory", True] - found["none", True]).max() > 0.05
    assert np.abs(found["memory", True] - found["memory", False]).max() > 0.05


def test_contexts_and_adapters_of_one_process_do_not_meet(
    path: Path, model: Model, adapter: Path, tiny_model: MakeModel, tiny_adapter: MakeAdapter, loaded: LoadModel
) -> None:
    """Two adapters on one model, one of them twice, and another model, all taking turns."""
    phi3 = tiny_model("phi3")
    made = [
        (model, adapter, "fused"),
        (model, tiny_adapter(path, seed=9, state_heads=4, rank=4), "fused"),
        (model, adapter, "ops"),
        (model, adapter, "graph"),
        (loaded(phi3), tiny_adapter(phi3), "fused"),
    ]
    alone = []
    for each, file, compute in made:
        with RawContext(each, file, compute=compute) as context:
            alone.append((context.decode_in(4, rows(TOKENS)), context.state()))
    contexts = [RawContext(each, file, compute=compute) for each, file, compute in made]
    try:
        turns = [
            [context.decode(rows(TOKENS[i : i + 4], start=i)) for context in contexts] for i in range(0, len(TOKENS), 4)
        ]
        for number, (context, (logits, state)) in enumerate(zip(contexts, alone, strict=True)):
            assert np.concatenate([turn[number] for turn in turns]).tobytes() == logits.tobytes()
            assert context.state().tobytes() == state.tobytes()
    finally:
        for context in contexts:
            context.__exit__()


def test_a_loaded_adapter_may_be_freed_while_contexts_use_it_and_its_model_before_it(path: Path, adapter: Path) -> None:
    """Run in a process of its own: a mistake here is a use of freed memory."""
    script = """
import sys
from pathlib import Path
from deltamem_cli.bindings import COMPUTE, native
from deltamem_cli.engine import Model
from raw_context import RawContext, rows

path, adapter = Path(sys.argv[1]), sys.argv[2].encode()
for compute in (1, 2, 3):
    model = Model(path)
    first, second = (native().call("adapter_init", model.handle, adapter, compute) for _ in range(2))
    context = RawContext(model)
    context.call("attach", first)
    native().call("adapter_info", first, context.info)
    native().call("adapter_free", first)
    context.decode(rows(list(range(20))))
    assert context.state().any()
    context.__exit__()
    model.close()
    native().call("adapter_info", second, context.info)
    native().call("adapter_free", second)
    native().call("adapter_free", None)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", script, path, adapter], check=True, env=environment)
