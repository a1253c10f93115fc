"""Reads the tensors of a safetensors file; knows nothing of adapters.

The safetensors package is not used: its numpy interface has no bfloat16, the type of the published adapter, and the
format is a length, a JSON header and raw little-endian numbers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from deltamem_cli import reading
from deltamem_cli.formats.errors import AdapterError, shown
from deltamem_cli.formats.weight import STORAGE, Weight

_MAX_HEADER = 8 << 20
_MOST = 1 << 30  # bytes; the largest published adapter has 11 million


class _Damaged(Exception):
    """What is wrong with the file, without its name."""


def read_safetensors_file(path: Path) -> dict[str, Weight]:
    """Reads all tensors of a file of F32, F16 and BF16 numbers.

    Raises AdapterError when the file cannot be read, is damaged or holds other numbers.
    """
    try:
        return _parse(reading.whole_file(path, _MOST))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AdapterError(f"{path} cannot be read ({reason}); check the path and its permissions") from None
    except _Damaged as damage:
        raise AdapterError(f"{path} is not a sound safetensors file: {damage}; download it again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise _Damaged("a name occurs twice in its header")
    return dict(pairs)


def _parse(raw: bytes) -> dict[str, Weight]:
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(_MAX_HEADER, len(raw) - 8):
        raise _Damaged("it is shorter than its header")
    try:
        header = json.loads(raw[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _Damaged("its header is not JSON") from None
    if not isinstance(header, dict):
        raise _Damaged("its header is not a list of tensors")
    header.pop("__metadata__", None)
    data = memoryview(raw)[8 + length :]
    tensors: dict[str, Weight] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in header.items():
        type, shape, (begin, end) = _entry(name, entry)
        if begin > end or end > len(data) or end - begin != math.prod(shape) * STORAGE[type].itemsize:
            raise _Damaged(f"its tensor {shown(name)} does not lie where its header says")
        if any(extent > len(raw) for extent in shape):  # beside an extent of 0 anything would fit
            raise _Damaged(f"its tensor {shown(name)} claims a shape that the file has no room for")
        ranges.append((begin, end))
        tensors[name] = Weight(np.frombuffer(data[begin:end], dtype=STORAGE[type]).reshape(shape), type)
    expected = 0
    for begin, end in sorted(ranges):
        if begin != expected:
            raise _Damaged("its tensors overlap or leave gaps")
        expected = end
    if expected != len(data):
        raise _Damaged("it has bytes that belong to no tensor")
    return tensors


def _entry(name: str, entry: Any) -> tuple[str, list[int], list[int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Damaged(f"its tensor {shown(name)} is not described by dtype, shape and data_offsets")
    type, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(type, str) or type not in STORAGE:
        raise _Damaged(f"its tensor {shown(name)} holds {shown(type)} numbers, and only F32, F16 and BF16 can be used")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(_is_count(number) for number in numbers):
            raise _Damaged(f"its tensor {shown(name)} has a shape or place that is not a list of whole numbers")
    if len(offsets) != 2 or len(shape) > 4:
        raise _Damaged(f"its tensor {shown(name)} has {len(shape)} dimensions and {len(offsets)} offsets")
    return type, shape, offsets


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
