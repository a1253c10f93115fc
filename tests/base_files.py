"""Builds base models without weights, and converts published adapters for them, for tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from published_files import published_tensors, write_published

from deltamem_cli.adapter.convert import convert
from deltamem_cli.adapter.format import Adapter
from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.weight import Weight

HIDDEN, HEADS, HEADS_KV, HEAD_DIM, LAYERS = 24, 4, 2, 8, 3
WIDTHS = {"q": HEADS * HEAD_DIM, "k": HEADS_KV * HEAD_DIM, "v": HEADS_KV * HEAD_DIM, "o": HIDDEN}
ALL_HEADS = {"delta_heads": ["q", "k", "v", "o"]}


def base_model(
    tmp_path: Path,
    architecture: str = "qwen3",
    keys: dict[str, object] | None = None,
    tensors: dict[str, tuple[int, ...]] | None = None,
    fused: bool = False,
) -> Path:
    """A base model with nothing but keys and attention weights; tensors replaces shapes, (0,) leaves one out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        if fused:
            shapes[f"blk.{layer}.attn_qkv.weight"] = (WIDTHS["q"] + WIDTHS["k"] + WIDTHS["v"], HIDDEN)
        else:
            shapes |= {f"blk.{layer}.attn_{part}.weight": (WIDTHS[part], HIDDEN) for part in "qkv"}
        shapes[f"blk.{layer}.attn_output.weight"] = (HIDDEN, WIDTHS["q"])
    all_keys: dict[str, object] = {
        "general.type": "model",
        "general.name": "a base",
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": HEADS_KV,
        f"{architecture}.attention.key_length": HEAD_DIM,
        f"{architecture}.attention.value_length": HEAD_DIM,
    }
    path = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (all_keys | (keys or {})).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, shape in (shapes | (tensors or {})).items():
        if shape != (0,):
            writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(
    tmp_path: Path, base: Path, config: dict | None = None, layers=range(LAYERS), **options
) -> tuple[Adapter, dict[str, Weight]]:
    config = ALL_HEADS | (config or {})
    tensors = published_tensors(config, tuple(layers), HIDDEN, WIDTHS, **options)
    folder = write_published(tmp_path / "published", config, tensors)
    return convert(folder, base, tmp_path / "out.gguf"), tensors


def refusal(tmp_path: Path, base: Path, config: dict | None = None, layers=range(LAYERS), **options) -> str:
    with pytest.raises(AdapterError) as caught:
        converted(tmp_path, base, config, layers, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()
    return str(caught.value)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What upstream's permute does, written as the list of rows: the halves of each head become neighbours."""
    size = rows.shape[0] // heads
    order = [head * size + pair + half for head in range(heads) for pair in range(size // 2) for half in (0, size // 2)]
    return rows[order]
