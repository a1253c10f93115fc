"""What becomes of sound files: bytes, numbers, texts and trees that are almost as they were. Seeded, so always the same."""

from __future__ import annotations

import copy
import random
import struct
from typing import Any

# numbers that sizes, counts and places break on
NUMBERS = [0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 65, 127, 128, 255, 256, 511, 65535, 65536]
NUMBERS += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    1.5,
    1e308,
    -0.0,
    "",
    "x",
    "\0",
    "\u2028",
    "a" * 70000,
    [],
    {},
    [[]],
    {"a": 1},
]
VALUES += [*NUMBERS, -(2**63), 10**40, float("inf"), float("nan"), "\ud800", "../../x", [0] * 5000]
BYTES = [0, 1, 255, 127, 128]
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a GGUF value, by its type
_STRING = 8


def of_bytes(rng: random.Random, data: bytes, end: int | None = None) -> bytes:
    """end: most changes lie before it, where a header is."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        size = len(changed) if end is None or rng.random() < 0.1 else min(end, len(changed))
        at = rng.randrange(max(1, size))
        kind = rng.random()
        if kind < 0.4:
            changed[at : at + 1] = bytes([rng.choice([*BYTES, rng.randrange(256)])])
        elif kind < 0.6:
            width = rng.choice([2, 4, 8])
            order = rng.choice(["little", "big"])
            changed[at : at + width] = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind < 0.7:
            changed[at : at + rng.randint(1, 64)] = b""
        elif kind < 0.8:
            changed[at:at] = changed[at : at + rng.randint(1, 64)] * rng.choice([1, 1, 50])
        elif kind < 0.9:
            changed[at:at] = rng.randbytes(rng.randint(1, 16))
        else:
            del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def of_text(rng: random.Random, text: str, parts: list[str]) -> str:
    """parts: what belongs to the language of the text."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.randint(0, 12))
        text = text[:at] + rng.choice(["", rng.choice(parts), text[at:end] * 2]) + text[end:]
    return text


def of_tree(rng: random.Random, document: Any) -> Any:
    """A document of JSON's kinds with up to three of its parts replaced, taken out, doubled or nested."""
    root = [copy.deepcopy(document)]
    for _ in range(rng.randint(1, 3)):
        places = _places(root)
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.6:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 0.75 and holder is not root:
            del holder[key]
        elif kind < 0.85 and isinstance(holder, list) and holder is not root:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind < 0.9:
            other, at = rng.choice(places)
            holder[key] = copy.deepcopy(other[at])
        elif isinstance(holder, dict):
            holder[rng.choice(["", "x", "__metadata__", "\u2028"])] = copy.deepcopy(rng.choice(VALUES))
    if rng.random() < 0.05:  # last, since copying follows it
        holder, key = rng.choice(_places(root))
        for _ in range(rng.choice([2, 60, 900])):
            holder[key] = [holder[key]]
    return root[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        holder = waiting.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))[:50]
        for key, value in items:
            found.append((holder, key))
            if isinstance(value, (dict, list)):
                waiting.append(value)
    return found


def of_gguf(rng: random.Random, data: bytes, spots: list[tuple[int, int]]) -> bytes:
    """spots: see gguf_spots."""
    if rng.random() < 0.25:
        return of_bytes(rng, data, spots[-1][0])
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, width = rng.choice(spots)
        if width in (1, 2, 4, 8) and rng.random() < 0.8:
            changed[at : at + width] = (rng.choice([*NUMBERS, rng.getrandbits(32)]) % 2 ** (8 * width)).to_bytes(
                width, "little"
            )
        elif width:
            changed[at + rng.randrange(width)] = rng.choice([*BYTES, rng.randrange(256)])
    return bytes(changed)


def gguf_spots(data: bytes) -> list[tuple[int, int]]:
    """(place, bytes) of everything in the header that says something; of arrays the ends alone."""
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    spots, at = [(4, 4), (8, 8), (16, 8)], 24

    def put(width: int, keep: bool = True) -> None:
        nonlocal at
        if keep:
            spots.append((at, width))
        at += width

    def text(keep: bool = True) -> None:
        (length,) = struct.unpack_from("<Q", data, at)
        put(8, keep)
        put(length, keep)

    for _ in range(n_keys):
        text()
        (kind,) = struct.unpack_from("<I", data, at)
        put(4)
        if kind in _SCALARS:
            put(_SCALARS[kind])
        elif kind == _STRING:
            text()
        else:
            kind, count = struct.unpack_from("<IQ", data, at)
            put(4)
            put(8)
            for i in range(count):
                keep = i in (0, 1, count - 1)
                text(keep) if kind == _STRING else put(_SCALARS[kind], keep)
    for _ in range(n_tensors):
        text()
        (dimensions,) = struct.unpack_from("<I", data, at)
        put(4)
        for _ in range(dimensions):
            put(8)
        put(4)
        put(8)
    return spots
