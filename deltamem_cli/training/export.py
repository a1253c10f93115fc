"""Writes a trained memory as an adapter file; the backbone's own basis is the GGUF's, so no rows are permuted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from deltamem_cli.adapter.format import Provenance, write_adapter
from deltamem_cli.formats.weight import Weight
from deltamem_cli.training.memory import Memory

DELTA_SIZE = 0.04


def export_adapter(
    memory: Memory, path: Path, base_model: str, summary: dict[str, Any], license: str | None = None
) -> None:
    """F16 matrices and F32 vectors. summary: what a reader needs to train it again, as JSON in the file."""
    provenance = Provenance(
        name=f"δ-mem for {base_model}",
        license=license,
        base_model=base_model,
        source="dmem adapter train",
        training=json.dumps(summary, ensure_ascii=False),
    )
    write_adapter(path, memory.config, adapter_tensors(memory), provenance)


def adapter_tensors(memory: Memory) -> dict[str, Weight]:
    """The memory's parameters under an adapter file's names: matrices in float16, vectors in float32."""
    c = memory.config
    tensors: dict[str, Weight] = {}
    for slot, layer in enumerate(c.layers):
        q, k, v = memory.proj[slot].split(c.read_width)
        parts: dict[str, Tensor] = {"q.weight": q, "k.weight": k, "v.weight": v}
        for i, gate in enumerate(("beta", "lambda") if c.has_lambda else ("beta",)):
            rows = slice(i * c.gate_width, (i + 1) * c.gate_width)
            parts[f"{gate}.weight"], parts[f"{gate}.bias"] = memory.gate[slot, rows], memory.gate_bias[slot, rows]
        parts |= {
            f"delta_{head}.weight": memory.scale[head][slot] * delta[slot] for head, delta in memory.delta.items()
        }
        if memory.delta_o_norm is not None:
            parts["delta_o_norm.weight"] = memory.delta_o_norm[slot]
        for part, tensor in parts.items():
            data = tensor.detach().float().cpu().numpy()
            tensors[f"blk.{layer}.deltamem_{part}"] = Weight.from_float32(data, "F32" if data.ndim == 1 else "F16")
    return tensors


def memory_from_adapter(config: Any, tensors: dict[str, Weight]) -> Memory:
    """The memory that an adapter file holds: to go on training it, or to check it in PyTorch."""
    import torch

    def stack(part: str) -> Tensor:
        return torch.stack(
            [torch.from_numpy(tensors[f"blk.{n}.deltamem_{part}"].float32.copy()) for n in config.layers]
        )

    widths = {h: stack(f"delta_{h}.weight").shape[1] for h in config.delta_heads}
    memory = Memory(config, widths)
    gates = ("beta", "lambda") if config.has_lambda else ("beta",)
    with torch.no_grad():
        memory.proj.copy_(torch.cat([stack(f"{n}.weight") for n in "qkv"], 1))
        memory.gate.copy_(torch.cat([stack(f"{g}.weight") for g in gates], 1))
        memory.gate_bias.copy_(torch.cat([stack(f"{g}.bias") for g in gates], 1))
        for h, delta in memory.delta.items():
            whole = stack(f"delta_{h}.weight")
            # small parameters times a scale, as training has them, so that its learning rate fits
            size = whole.square().mean((1, 2)).sqrt() / DELTA_SIZE
            memory.scale[h].copy_(torch.where(size > 0, size, 1.0))
            delta.copy_(whole / memory.scale[h][:, None, None])
        if memory.delta_o_norm is not None:
            memory.delta_o_norm.copy_(stack("delta_o_norm.weight"))
    return memory
