"""Finds words that a tokenizer would take minutes for: some look, for each letter of a number, at all that follow it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_WORDS = re.compile(r"\S{64,}|\s{64,}")
_SECONDS, _PER_LETTER = 2.0, 2e-6  # of the processor; measured: half of that for a letter, in most vocabularies


def slow_word(text: str, split: Callable[[str], object]) -> str | None:
    """The word of `text` at which `split` has taken too long, or would; None where it is quick.

    Found by splitting its words, each from its beginning on and ever further: that takes a few seconds and no more.
    """
    left = _SECONDS + len(text) * _PER_LETTER
    for word in _WORDS.findall(text):
        size, took = 32, 0.0
        while size < len(word):
            before, size = size, min(2 * size, len(word))
            if took * (size / before) ** 2 > left:
                return str(word)
            begin = time.thread_time()
            split(word[:size])
            took = time.thread_time() - begin
            left -= took
        if left < 0:
            return str(word)
    return None
