"""What the cache holds after the head that was computed last, for other seats: most conversations begin alike."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

# A head's keys and values are copied to the host and back, which pays while they are few.
MOST_BYTES = 64 * 2**20


class KeptHead:
    """Tokens that were read from an empty context in a certain state, and what llama.cpp's memory held then.

    For the engine's own threads one at a time: hold Engine.alone.
    """

    def __init__(self, llama: Any) -> None:
        self._llama = llama
        self._read: tuple[tuple[int, ...], bytes] | None = None
        self._data: Any = None

    def keep(self, context: Any, sequence: int, tokens: Sequence[int], state: bytes) -> None:
        """Takes a copy of what `sequence` holds: `tokens`, read in `state`."""
        size = int(self._llama.llama_state_seq_get_size(context, sequence))
        if size > MOST_BYTES:
            return
        data = (ctypes.c_uint8 * size)()
        if self._llama.llama_state_seq_get_data(context, data, size, sequence) == size:
            self._read, self._data = (tuple(tokens), state), data

    def put(self, context: Any, sequence: int, tokens: Sequence[int], state: bytes) -> bool:
        """Fills `sequence`, which is empty, with the copy, if it is one of `tokens` read in `state`."""
        if self._read != (tuple(tokens), state):
            return False
        return bool(self._llama.llama_state_seq_set_data(context, self._data, len(self._data), sequence))
