"""Random numbers in the storage types of GGUF; knows nothing of what they are used for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Type name to (ggml's number for it, GGUF's number for a file that is mostly of it, bytes and numbers of a block).
_TYPES = {"F32": (0, 0, 4, 1), "F16": (1, 1, 2, 1), "Q4_0": (2, 2, 18, 32), "Q8_0": (8, 7, 34, 32)}


def type_number(type: str) -> int:
    """ggml's number for a tensor type."""
    return _TYPES[type][0]


def file_type_number(type: str) -> int:
    """The number for `general.file_type` of a model that is mostly of this type."""
    return _TYPES[type][1]


def storable_type(shape: tuple[int, ...], type: str) -> str:
    """The type a tensor gets: vectors stay F32, as do rows that whole blocks do not fill."""
    return "F32" if len(shape) == 1 or shape[-1] % _TYPES[type][3] else type


def stored_shape(shape: tuple[int, ...], type: str) -> tuple[int, ...]:
    """Shape in bytes for block types, in numbers for the others."""
    _, _, size, count = _TYPES[type]
    return shape if count == 1 else (*shape[:-1], shape[-1] // count * size)


def stored_nbytes(shape: tuple[int, ...], type: str) -> int:
    """How many bytes a tensor of that shape takes."""
    _, _, size, count = _TYPES[type]
    return math.prod(shape) // count * size


def draw(rng: np.random.Generator, shape: tuple[int, ...], type: str, *, std: float, mean: float = 0.0) -> NDArray[Any]:
    """Random numbers of about this deviation, already in their storage type.

    Blocks are drawn as bytes rather than quantized from floats, which is what makes billions of them cheap;
    their mean is 0 whatever mean says.
    Returns float32 or float16 of the shape, or uint8 of stored_shape.
    """
    if _TYPES[type][3] == 1:
        numbers = rng.standard_normal(shape, dtype=np.float32) * np.float32(std) + np.float32(mean)
        return numbers.astype(np.float16) if type == "F16" else numbers
    size = _TYPES[type][2]
    n_blocks = stored_nbytes(shape, type) // size
    payload = np.frombuffer(rng.bytes(n_blocks * (size - 2)), dtype=np.uint8)
    blocks = np.empty((n_blocks, size), dtype=np.uint8)
    blocks[:, 2:] = payload.reshape(n_blocks, size - 2)
    choice = np.frombuffer(rng.bytes(n_blocks), dtype=np.uint8)
    blocks[:, :2] = _scales(type, std).view(np.uint8).reshape(-1, 2)[choice]
    return blocks.reshape(stored_shape(shape, type))


def _scales(type: str, std: float) -> NDArray[np.float16]:
    """256 block scales to choose from.

    Half of them are negative, because Q4_0 counts from -8 to 7 and its mean of -1/2 would add up over the layers.
    """
    levels = np.arange(-8, 8) if type == "Q4_0" else np.arange(-128, 128)
    spread = np.linspace(0.5, 1.5, 128)
    unit = std / math.sqrt(float(np.mean(levels**2)) * float(np.mean(spread**2)))
    return (np.concatenate([spread, -spread]) * unit).astype("<f2")
