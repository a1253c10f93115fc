"""Reads the header of a GGUF file, that is its keys and where its tensors lie; knows nothing of adapters.

The gguf package's reader builds numpy views of every vocabulary entry, which takes many
seconds for a large vocabulary, and answers damaged files with numpy errors; this one steps over the vocabulary and checks every bound.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem_cli import reading
from deltamem_cli.formats.errors import AdapterError, shown

# GGUF value types in the order of their numbers; None marks the two that are not a plain number.
_FORMATS = ("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", None, None, "<Q", "<q", "<d")
_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SKIPPED_PREFIX = "tokenizer."
_MAX_ALIGNMENT = 1 << 20
_MOST_NUMBERS = 1 << 56


@dataclass(frozen=True)
class Value:
    """A metadata value with the type it was written in, such as "u32", "str" or "array of str"."""

    type: str
    value: Any


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: shape in numpy order (the reverse of GGUF's), ggml type number, offset in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights: keys, and where each tensor lies. size: of the file, in bytes."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, TensorPlace]
    size: int

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key whatever its type, or default."""
        return self.metadata[key].value if key in self.metadata else default


class _Damaged(Exception):
    """What is wrong with the file, without its name."""


class _Cursor:
    """Takes values off the front of a buffer and refuses to go past its end."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.position = 0
        self.end = len(buffer)

    def number(self, format: str) -> Any:
        position = self.position
        self.position += struct.calcsize(format)
        self.check()
        return struct.unpack_from(format, self.buffer, position)[0]

    def string(self) -> str:
        length = self.number("<Q")
        start = self.position
        self.position += length
        self.check()
        try:
            return self.buffer[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise _Damaged("it holds a text that is not UTF-8") from None

    def check(self) -> None:
        if self.position > self.end:
            raise _Damaged("it ends in the middle of its header")

    def value(self, key: str) -> Value:
        kind = self.number("<I")
        if kind >= len(_NAMES):
            raise _Damaged(f"its key {shown(key)} has the unknown type {kind}")
        if kind == _STRING:
            return Value("str", self.string())
        if kind == _ARRAY:
            return self.array(key)
        return Value(_NAMES[kind], self.scalar(kind, key))

    def scalar(self, kind: int, key: str) -> Any:
        if kind == _BOOL:
            byte = self.number("<B")
            if byte > 1:
                raise _Damaged(f"its key {shown(key)} is a truth value but holds {byte}")
            return bool(byte)
        format = _FORMATS[kind]
        assert format is not None
        return self.number(format)

    def array(self, key: str) -> Value:
        kind = self.number("<I")
        count = self.number("<Q")
        if kind >= len(_NAMES) or kind == _ARRAY:
            raise _Damaged(f"its key {shown(key)} is an array of the unknown type {kind}")
        type = f"array of {_NAMES[kind]}"
        if key.startswith(_SKIPPED_PREFIX):
            self.skip(kind, count)
            return Value(type, None)
        # A forged count ends these loops at the end of the file.
        if kind == _STRING:
            return Value(type, [self.string() for _ in range(count)])
        return Value(type, [self.scalar(kind, key) for _ in range(count)])

    def skip(self, kind: int, count: int) -> None:
        if kind != _STRING:
            self.position += count * struct.calcsize(_FORMATS[kind] or "")
            return
        # Local names: this runs once per vocabulary entry and merge.
        position, end, buffer, unpack = self.position, self.end, self.buffer, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if position + 8 > end:
                break
            position += 8 + unpack(buffer, position)[0]
        self.position = position
        self.check()


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        reading.check_regular(path)
        with path.open("rb") as file:
            try:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file cannot be mapped
                raise AdapterError(f"{path} is empty, so it is not a GGUF file; download or convert it again") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AdapterError(f"{path} cannot be read ({reason}); check the path and its permissions") from None
    with buffer:
        yield buffer


def read_header(path: Path) -> Header:
    """Reads keys and tensor places; values under "tokenizer." that are arrays come back as None.

    Raises AdapterError when the file cannot be read, is no GGUF file or is damaged.
    """
    with _mapped(path) as buffer:
        if buffer[:4] != b"GGUF":
            raise AdapterError(f"{path} is not a GGUF file (its first bytes are wrong); give a .gguf file")
        try:
            return _parse(path, buffer)
        except _Damaged as damage:
            raise AdapterError(f"{path} is damaged or not complete: {damage}; download or convert it again") from None


def _parse(path: Path, buffer: mmap.mmap) -> Header:
    cursor = _Cursor(buffer)
    cursor.position = 4
    version = cursor.number("<I")
    if version not in (2, 3):
        raise _Damaged(f"its GGUF version reads {version} and only little-endian versions 2 and 3 are known")
    tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.string()
        if key in metadata:
            raise _Damaged(f"its key {shown(key)} occurs twice")
        metadata[key] = cursor.value(key)
    places: list[TensorPlace] = []
    for _ in range(tensor_count):
        name = cursor.string()
        n_dims = cursor.number("<I")
        if not 1 <= n_dims <= 4:
            raise _Damaged(f"its tensor {shown(name)} has {n_dims} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(n_dims))[::-1]
        if math.prod(max(1, extent) for extent in shape) > _MOST_NUMBERS:  # also beside an extent of 0
            raise _Damaged(f"its tensor {shown(name)} claims a shape that no file has room for")
        places.append(TensorPlace(name, shape, cursor.number("<I"), cursor.number("<Q")))
    alignment = metadata.get("general.alignment", Value("u32", 32)).value
    if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _Damaged(f"its alignment reads {shown(alignment)}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorPlace] = {}
    for place in places:
        if place.name in tensors:
            raise _Damaged(f"its tensor {shown(place.name)} occurs twice")
        tensors[place.name] = TensorPlace(place.name, place.shape, place.type, data_start + place.offset)
    return Header(path, metadata, tensors, len(buffer))
