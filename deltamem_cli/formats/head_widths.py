"""How wide the heads of a model are, by the keys of its GGUF file."""

from __future__ import annotations

from collections.abc import Callable


def head_widths(number: Callable[[str, int], int]) -> tuple[int, int]:
    """Numbers in a head's key and in its value.

    number: what the file says under a key without its architecture, or the default that it is given with.
    """
    heads = number("attention.head_count", 0)
    even = number("embedding_length", 0) // heads if heads else 0  # where the file does not say it
    return number("attention.key_length", even), number("attention.value_length", even)
