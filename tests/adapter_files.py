"""Builds adapter files for tests, sound ones and forged ones."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from deltamem_cli.adapter.format import AdapterConfig, read_adapter, write_adapter
from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.weight import Weight

SMALL = AdapterConfig("qwen3", embedding_length=12, block_count=3, layers=(0, 2), rank=2)
PREFIX = "adapter.deltamem."
KIND = gguf.GGUFValueType


def tensors_of(config: AdapterConfig, type: str = "F32", seed: int = 0) -> dict[str, Weight]:
    rng = np.random.default_rng(seed)
    return {
        name: Weight.from_float32(
            rng.normal(size=[10 if n is None else n for n in shape]), type if shape[1:] else "F32"
        )
        for layer in config.layers
        for name, shape in config.tensor_shapes(layer).items()
    }


def written(tmp_path: Path, config: AdapterConfig = SMALL) -> Path:
    path = tmp_path / "a.gguf"
    write_adapter(path, config, tensors_of(config))
    return path


def forged(
    tmp_path: Path,
    keys: dict[str, tuple[object, gguf.GGUFValueType] | None] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
    architecture: str = "qwen3",
) -> Path:
    """A file as write_adapter makes it, with keys and tensors replaced, added or (None) left out."""
    kind = gguf.GGUFValueType
    all_keys: dict[str, tuple[object, gguf.GGUFValueType] | None] = {
        "general.type": ("adapter", kind.STRING),
        "adapter.type": ("deltamem", kind.STRING),
        PREFIX + "version": (1, kind.UINT32),
        PREFIX + "rank": (2, kind.UINT32),
        PREFIX + "state_heads": (1, kind.UINT32),
        PREFIX + "write_granularity": ("token", kind.STRING),
        PREFIX + "delta_heads": (["q", "o"], kind.ARRAY),
        PREFIX + "state_update": ("standard", kind.STRING),
        PREFIX + "rankwise_gates": (True, kind.BOOL),
        PREFIX + "couple_lambda": (True, kind.BOOL),
        PREFIX + "normalize_qk": (True, kind.BOOL),
        PREFIX + "embedding_length": (12, kind.UINT32),
        PREFIX + "block_count": (3, kind.UINT32),
        PREFIX + "layers": ([0, 2], kind.ARRAY),
    }
    all_tensors: dict[str, np.ndarray | None] = {name: weight.data for name, weight in tensors_of(SMALL).items()}
    path = tmp_path / "forged.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, entry in (all_keys | (keys or {})).items():
        if entry is None:
            continue
        value, type = entry
        sub_type = kind.UINT32 if isinstance(value, list) and value and isinstance(value[0], int) else None
        writer.add_key_value(key, value, type, sub_type)
    for name, data in (all_tensors | (tensors or {})).items():
        if data is not None:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        read_adapter(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message
