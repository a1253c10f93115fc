"""Writes a random adapter for any GGUF model; knows nothing of running it."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_cli.formats.head_widths import head_widths

if TYPE_CHECKING:
    from deltamem_cli.adapter.format import AdapterConfig
    from deltamem_cli.formats.gguf_header import Header


def random_adapter(
    model: Path,
    out: Path,
    *,
    seed: int = 0,
    scale: float = 2.0,
    zero_delta: bool = False,
    type: str = "BF16",
    **settings: Any,
) -> AdapterConfig:
    """Writes an adapter whose corrections change logits visibly and leave them finite. Returns its settings.

    scale: 2 makes corrections about a fifth of what they are added to; zero_delta makes all of them exactly 0
    type: F32, F16 or BF16; settings: fields of AdapterConfig, which by default are those of the published adapter
    Raises AdapterError when the model cannot be read or settings are wrong.
    """
    import numpy as np

    from deltamem_cli.adapter.format import AdapterConfig, Provenance, write_adapter
    from deltamem_cli.formats.gguf_header import read_header
    from deltamem_cli.formats.weight import Weight
    from deltamem_cli.synthetic.weights import draw

    header = read_header(model)
    arch = header.get("general.architecture")
    n_layer = _number(header, "block_count")
    config = AdapterConfig(
        architecture=arch,
        embedding_length=_number(header, "embedding_length"),
        block_count=n_layer,
        **{"layers": tuple(range(n_layer))} | settings,
    )
    tensors: dict[str, Weight] = {}
    for layer in config.layers:
        widths = _widths(header, layer)
        for name, sizes in config.tensor_shapes(layer).items():
            kind = name.split("deltamem_")[1]
            shape = tuple(widths[kind] if size is None else size for size in sizes)
            # Seeded by name, so that two adapters that differ in one setting share all other tensors.
            rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
            mean, std = _distribution(config, kind, scale)
            numbers = draw(rng, shape, "F32", std=std, mean=mean)
            if zero_delta and kind.startswith("delta_"):
                numbers[...] = 0
            tensors[name] = Weight.from_float32(numbers, type if len(shape) > 1 else "F32")
    write_adapter(out, config, tensors, Provenance(name="synthetic", source=f"random numbers, seed {seed}"))
    return config


def _distribution(config: AdapterConfig, kind: str, scale: float) -> tuple[float, float]:
    """Mean and deviation of a tensor's numbers."""
    if kind.startswith("delta_"):
        # The norm makes its input's deviation 1, while reads are about a tenth.
        if kind == "delta_o_norm.weight":
            return 0.1 * scale, 0.01 * scale
        return 0.0, scale / math.sqrt(config.read_width)
    if kind.endswith(".bias"):
        # As published adapters start: little is written and much is kept.
        return (-1.5 if kind == "beta.bias" else 1.5), 0.1
    unit = 1 / math.sqrt(config.embedding_length)
    if kind in ("q.weight", "k.weight") and not config.normalize_qk:
        # A raw key's square length times beta must stay below 2, or the state grows without end.
        return 0.0, 0.5 * unit / math.sqrt(config.rank)
    return 0.0, unit if kind in ("q.weight", "k.weight", "v.weight") else 0.5 * unit


def _widths(header: Header, layer: int) -> dict[str, int]:
    """How many numbers the base's q, k and v have in a layer."""
    n_head = _number(header, "attention.head_count", layer)
    n_head_kv = _number(header, "attention.head_count_kv", layer, n_head)
    key, value = head_widths(lambda name, default: _number(header, name, layer, default))
    return {"delta_q.weight": n_head * key, "delta_k.weight": n_head_kv * key, "delta_v.weight": n_head_kv * value}


def _number(header: Header, key: str, layer: int = 0, default: int | None = None) -> int:
    """A number of the model, which some models give per layer."""
    from deltamem_cli.formats.errors import AdapterError

    value = header.get(f"{header.get('general.architecture')}.{key}", default)
    if isinstance(value, list) and layer < len(value):
        value = value[layer]
    if not isinstance(value, int):
        raise AdapterError(f"{header.path} does not say its {key}, so no adapter can be made for it; give a text model")
    return value
