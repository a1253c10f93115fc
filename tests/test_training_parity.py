"""The torch backbone with the torch memory gives the numbers of the published implementation."""

from training_support import need

need("torch")

from pathlib import Path

import numpy as np
import pytest
import torch

from deltamem_cli.adapter.convert import convert
from deltamem_cli.adapter.format import read_adapter
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.export import memory_from_adapter
from deltamem_cli.training.memory import Session

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
