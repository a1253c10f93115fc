"""The torch backbone with the torch memory gives the numbers of the published implementation."""

from training_support import need

need("torch")

from pathlib import Path

import numpy as np
import pytest
import torch

from deltamem_cli.adapter.convert import convert
from deltamem_cli.adapter.format import AdapterConfig, read_adapter
from deltamem_cli.engine import Engine, EngineOptions, Model, Seat
from deltamem_cli.synthetic import write_model
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.export import export_adapter, memory_from_adapter
from deltamem_cli.training.memory import Memory, Session
from deltamem_cli.training.shape import ARCHITECTURES as SUPPORTED

CASES = sorted(p for p in (Path(__file__).parent / "golden").iterdir() if p.is_dir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backbone_and_memory_give_the_published_logits_and_states(case: Path, tmp_path: Path) -> None:
    convert(case / "adapter", case / "model.gguf", tmp_path / "adapter.gguf")
    adapter = read_adapter(tmp_path / "adapter.gguf")
    memory = memory_from_adapter(adapter.config, adapter.tensors)
    backbone = Backbone(case / "model.gguf")
    vectors = np.load(case / "vectors.npz")
    spans_name = {"message_mean": "message_ids", "sentence_mean": "sentence_ids"}.get(adapter.config.write_granularity)
    states, past = memory.zero_states(1), None
    steps = sorted({name.split(".")[0] for name in vectors.files if "." in name})
    assert len(steps) >= 8
    for step in steps:
        if step.startswith(("c_", "z_")):
            past = None
        if step.startswith("z_"):
            states = memory.zero_states(1)
        ids = torch.from_numpy(vectors[f"{step}.tokens"].astype(np.int64)).reshape(1, -1)
        on = torch.full(ids.shape, bool(vectors[f"{step}.write"]))
        key = f"{step}.{spans_name}"
        spans = torch.from_numpy(vectors[key].astype(np.int64)).reshape(1, -1) if key in vectors.files else None
        if spans is not None:
            on = on & (spans >= 0)
        session = Session(memory, states, on, spans)
        with torch.no_grad():
            hidden, new = backbone.run(backbone.embed(ids), torch.tensor([ids.shape[1]]), past, session)
            logits = backbone.logits(hidden)[0].numpy()
        states, past = session.stacked, new
        assert np.abs(logits - vectors[f"{step}.logits"]).max() < 1e-4, step
        assert np.abs(states[0].detach().numpy() - vectors[f"{step}.state"]).max() < 1e-5, step


@pytest.mark.parametrize("arch", SUPPORTED)
def test_an_exported_memory_computes_in_llama_cpp_what_it_computed_in_training(arch: str, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arch, seed=3)
    backbone = Backbone(base)
    torch.manual_seed(4)
    shape = backbone.shape
    config = AdapterConfig(
        arch, shape.hidden, shape.n_layer, tuple(range(shape.n_layer))[1:], rank=4, delta_heads=("q", "k", "v", "o"),
        rankwise_gates=False,
    )  # fmt: skip
    memory = Memory(config, backbone.widths, beta_bias=-1.0)
    with torch.no_grad():
        for delta in memory.delta.values():
            delta.normal_(0, 0.5)
        memory.gate.normal_(0, 0.3)
        memory.scale["o"].fill_(1.7)
    export_adapter(memory, tmp_path / "adapter.gguf", "tiny", {})
    adapter = read_adapter(tmp_path / "adapter.gguf")
    memory = memory_from_adapter(adapter.config, adapter.tensors)  # rounded to F16, as the file is
    tokens = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]
    ids = torch.tensor([tokens])
    session = Session(memory, memory.zero_states(1), torch.ones_like(ids))
    with torch.no_grad():
        hidden, _ = backbone.run(backbone.embed(ids), torch.tensor([len(tokens)]), correct=session)
        logits = backbone.logits(hidden)[0].numpy()
        silent, _ = backbone.run(backbone.embed(ids), torch.tensor([len(tokens)]))
        assert np.abs(backbone.logits(silent)[0].numpy() - logits).max() > 1e-2  # the memory does something
    options = EngineOptions(ctx_size=64, cache_type_k="f32", cache_type_v="f32", flash_attention="off")
    with Model(base) as model, Engine(model, tmp_path / "adapter.gguf", options) as engine:
        seat = Seat(engine)
        there = seat.feed(tokens, all_logits=True)
        state = seat.state()
    rough = 30 if arch in ("gemma2", "gemma3") else 1  # ggml looks GELU up in a table of float16
    assert np.abs(there - logits).max() < rough * 2e-4
    assert np.abs(state - session.stacked[0].detach().numpy()).max() < rough * 2e-5
