"""Builds the files of published adapters for tests, byte by byte and without PyTorch."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from deltamem_cli.formats.weight import Weight

GOLDEN = Path(__file__).parent / "golden"
STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}

# Opcodes of the pickle format, protocol 2.


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def sequence(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def named(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + sequence(*arguments) + b"R"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    return sequence(text("storage"), named("torch", kind), text(key), text("cpu"), whole(count)) + b"Q"


def tensor(stored: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    return call(
        named("torch._utils", "_rebuild_tensor_v2"),
        stored,
        whole(offset),
        sequence(*map(whole, size)),
        sequence(*map(whole, stride)),
        b"\x89",
        call(named("collections", "OrderedDict")),
    )


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def whole_pickle(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def archive(pickled: bytes, storages: dict[str, bytes], order: bytes | None = b"little", **options: Any) -> bytes:
    """The zip that torch.save writes around a pickle and its storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as zip_file:
        zip_file.writestr("adapter/data.pkl", pickled)
        if order is not None:
            zip_file.writestr("adapter/byteorder", order)
        for key, raw in storages.items():
            zip_file.writestr(f"adapter/data/{key}", raw)
        zip_file.writestr("adapter/version", b"3\n")
    return buffer.getvalue()


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def torch_bytes(tensors: dict[str, Weight]) -> bytes:
    """What torch.save writes for a dict of contiguous tensors."""
    items, storages = {}, {}
    for key, (name, weight) in enumerate(tensors.items()):
        stored = storage(str(key), weight.data.size, STORAGES[weight.type])
        items[name] = tensor(stored, 0, weight.shape, contiguous(weight.shape))
        storages[str(key)] = weight.data.tobytes()
    return archive(whole_pickle(mapping(items)), storages)


def safetensors_bytes(tensors: dict[str, Weight], metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, weight in tensors.items():
        raw = weight.data.tobytes()
        header[name] = {
            "dtype": weight.type,
            "shape": list(weight.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def published_tensors(
    config: dict[str, Any],
    layers: tuple[int, ...],
    hidden: int,
    widths: dict[str, int],
    type: str = "F32",
    seed: int = 0,
) -> dict[str, Weight]:
    """Random tensors under the names and in the shapes that the published code saves for a config."""
    rng = np.random.default_rng(seed)
    rank, heads = config.get("rank", 8), config.get("num_state_heads", 1)
    read = rank * heads
    gates = read if config.get("rankwise_gates", True) else heads
    shapes: dict[str, tuple[int, ...]] = {
        **{f"memory_{part}_proj": (read, hidden) for part in "qkv"},
        **{f"delta_{head}_proj": (widths.get(head, hidden), read) for head in "qkvo"},
        "beta_proj": (gates, hidden),
        "beta_bias": (gates,),
    }
    if not config.get("couple_lambda", True):
        shapes |= {"lambda_proj": (gates, hidden), "lambda_bias": (gates,)}
    if config.get("delta_o_rmsnorm", False):
        shapes["delta_o_rmsnorm_weight"] = (hidden,)
    if config.get("trainable_delta_scale", False):
        shapes["delta_scale_raw"] = (4,) if config.get("delta_scale_granularity") == "head" else (1,)
    return {
        f"model.layers.{layer}.self_attn.{name}": Weight.from_float32(rng.normal(size=shape), type)
        for layer in layers
        for name, shape in shapes.items()
    }


def write_published(folder: Path, config: dict[str, Any], tensors: dict[str, Weight]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "delta_mem_config.json").write_text(json.dumps(config))
    (folder / "delta_mem_adapter.pt").write_bytes(torch_bytes(tensors))
    return folder
