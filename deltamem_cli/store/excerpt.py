"""The part of a text that shows what was found in it; knows nothing of how that was found."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

Span = tuple[int, int]  # begin and end of a match, in characters

# Control characters, which no terminal text contains: the caller decides how a match is shown.
MATCH_BEGIN, MATCH_END = "\x02", "\x03"

_BEFORE, _LENGTH = 40, 140  # characters before the first match shown, and in all
_TO_A_SPACE = 20  # characters by which either end is moved to stand between words


def unmarked(marked: str) -> tuple[str, list[Span]]:
    """The text without its marks, and what stood between them."""
    text, spans = "", []
    for part in marked.split(MATCH_BEGIN):
        match, end, rest = part.partition(MATCH_END)
        if end:
            spans.append((len(text), len(text) + len(match)))
        text += match + rest
    return text, spans


def excerpt(text: str, spans: Sequence[Span]) -> str:
    """The part of `text` with most of the matches, each between MATCH_BEGIN and MATCH_END; all of a short text."""
    spans = _merged(spans)
    begin, end = 0, len(text)
    if end > _LENGTH:
        first, last = max(
            (_seen_from(place, spans) for place, _ in spans), key=lambda seen: seen[2], default=(0, 0, 0)
        )[:2]
        begin = _between_words(text, max(0, first - _BEFORE), first, 1)
        end = _between_words(text, min(len(text), max(last, begin + _LENGTH)), last, -1)
    shown, place = "…" if begin else "", begin
    for start, stop in spans:
        if begin <= start and stop <= end:
            shown += text[place:start] + MATCH_BEGIN + text[start:stop] + MATCH_END
            place = stop
    return shown + text[place:end] + ("…" if end < len(text) else "")


def _merged(spans: Sequence[Span]) -> list[Span]:
    """In order, with those that overlap made one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _seen_from(first: int, spans: Sequence[Span]) -> tuple[int, int, int]:
    """`first`, the end of the last match that an excerpt from there on has room for, and how many it has."""
    seen = [end for start, end in spans if start == first or first < start and end <= first + _LENGTH - _BEFORE]
    return first, seen[-1], len(seen)


def _between_words(text: str, place: int, most: int, step: int) -> int:
    """`place`, moved in the direction of `step`, not beyond `most`, to where words part, if that is near."""
    if place in (0, len(text)):
        return place
    near = range(place, place + step * min(_TO_A_SPACE, abs(most - place)), step)
    for other in near:
        if text[other - 1 : other + 1].strip() != text[other - 1 : other + 1]:
            return other
    while place != most and unicodedata.category(text[place])[0] in "MC":  # accents and joiners stay with their letters
        place += step
    return place
