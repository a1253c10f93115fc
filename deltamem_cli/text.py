"""Text that others wrote: how its bytes are read, and what of it may stand in a line; and numbers in words."""

from __future__ import annotations

import codecs
import re

_LONGEST_WORD, _LONGEST_SENTENCE = 500, 900  # characters; a path that is refused for its length is told whole
_LONG_WORDS = re.compile(rf"\S{{{_LONGEST_WORD},}}")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
# Control characters, line and paragraph separators, what turns the direction of writing.
# Joiners, soft hyphens, other spaces, private and very new characters are none of these: they are a part of the text.
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def decoded(data: bytes, errors: str = "replace") -> str:
    """UTF-8, or UTF-16 where a byte order mark says so; the mark is no part of the text. Raises UnicodeDecodeError.

    Windows' editors write such a mark, and its PowerShell writes UTF-16.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors)
    return data.decode("utf-8-sig", errors)


def whole(text: str) -> str:
    """Text of a command line or a keyboard: what was no UTF-8, and is no character, becomes U+FFFD, as in a pipe."""
    return _LONE_SURROGATES.sub("\ufffd", text)


def harmless(text: str, instead: str = " ") -> str:
    """On one line, without what would steer a terminal."""
    return STEERING.sub(instead, whole(text))


def harmless_lines(text: str, instead: str = " ") -> str:
    """The same for a text of many lines, whose tabs stay."""
    lines = (line.split("\t") for line in text.split("\n"))
    return "\n".join("\t".join(harmless(part, instead) for part in line) for line in lines)


def short(text: object, longest: int = 100) -> str:
    """What a sentence quotes of others' words: without its middle where it is long."""
    line = str(text)
    half = (longest - 1) // 2
    return line if len(line) <= longest else f"{line[:half]}…{line[-half:]}"


def sentence(text: str) -> str:
    """What is told, however long the paths, names and reasons in it are: they are as long as others make them."""
    return short(_LONG_WORDS.sub(lambda word: short(word[0], _LONGEST_WORD), text), _LONGEST_SENTENCE)


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 turn, 1,200 turns."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
