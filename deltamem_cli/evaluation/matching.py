"""Whether an answer recalls a value: word for word, in its first sentence. Plain texts in, yes or no out.

Both texts are compared in Unicode's composed form with white space as single blanks; case counts. A word may not go on
before or behind the value, nor may a hyphen, and a number may not either: 12 is in "12 years", not in "12:30" or "1.12".
"""

from __future__ import annotations

import re
import unicodedata

# A mark that only ends a number or a name ("3.5", "J.R.") is followed by a letter or digit, not by white space.
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u201d\u2019]*\s|\n")


def recalls(answer: str, value: str) -> bool:
    """Whether `value` begins in the first sentence of `answer`."""
    text, wanted = _normal(answer), _normal(value)
    found = re.search(rf"(?<!\w)(?<!\w-)(?<!\d[:.,/]){re.escape(wanted)}(?!\w)(?!-\w)(?![:.,/]\d)", text)
    return found is not None and not sentence_is_over(text[: found.start()], wanted)


def sentence_is_over(answer: str, value: str) -> bool:
    """Whether the first sentence of what was answered so far is complete; marks inside of `value` end none ("St. Ives")."""
    text = answer.lstrip()
    inside = [value[: mark.end()] for mark in _SENTENCE_END.finditer(value)]
    return any(not text[: end.end()].endswith(tuple(inside)) for end in _SENTENCE_END.finditer(text))


def _normal(text: str) -> str:
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    return "\n".join(" ".join(line.split()) for line in lines)
