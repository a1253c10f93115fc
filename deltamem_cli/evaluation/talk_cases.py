"""The hand-written conversations of `dmem eval talk`: what is told, what is asked in another session, which answers are right.

No training reads them, and no program made them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

NEVER = "never"
CATEGORIES = {
    "plain": "one plain fact",
    "longer": "in a longer message",
    "three_messages": "3 facts, 3 messages",
    "three_in_one": "3 facts in one",
    "six": "6 facts",
    "correction": "corrected",
    "third": "about others",
    "after_talk": "after other talk",
    "indirect": "asked indirectly",
    NEVER: "never told",
}
SENTENCES = 2  # of an answer, that count

_SENTENCE_END = re.compile(r"[.!?][\"')\]\u201d\u2019]*(?=\s)|\n")
_NOT_KNOWN = re.compile(
    r"\b(?:"
    r"(?:do not|don t|did not|didn t|cannot|can t) (?:currently |actually |really )?(?:know|have (?:that|this|any|enough|access|the|your|personal)|"
    r"recall|remember|tell|determine|say|find)|"
    r"(?:haven t|have not|hasn t|has not|didn t|did not|never) (?:yet |actually )?(?:told|mention|mentioned|shared|said|say|tell|share|provided|provide|given)|"
    r"no (?:idea|information|record|memory|mention|details)|not (?:sure|known|aware|told|mentioned|provided|specified|certain|able)|"
    r"unable to|unknown|unsure|isn t known|no way of knowing"
    r")\b"
)


@dataclass(frozen=True)
class Asked:
    """value: spellings of which an answer must hold one, none where nothing was told; old: what it must not give instead."""

    ask: str
    value: tuple[str, ...]
    old: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """told: the user's messages; talk: messages behind them that tell nothing."""

    id: str
    category: str
    told: tuple[str, ...]
    talk: tuple[str, ...]
    asked: tuple[Asked, ...]


def conversations(limit: int | None = None) -> list[Conversation]:
    """All of them, or about `limit`: as large a part of each category."""
    text = resources.files("deltamem_cli.evaluation").joinpath("talk.jsonl").read_text(encoding="utf-8")
    every = [_conversation(json.loads(line)) for line in text.splitlines()]
    if limit is None or limit >= len(every):
        return every
    found = []
    for category in CATEGORIES:
        own = [c for c in every if c.category == category]
        found += own[: max(1, round(limit * len(own) / len(every)))]
    return found


def is_right(answer: str, question: Asked) -> bool:
    """Whether the first sentences of an answer hold the value, before anything that is no longer so; or say, where nothing
    was told, that it is not known. Case and punctuation do not count."""
    said = _words(first_sentences(answer))
    if not question.value:
        return says_unknown(said)
    value, old = (_first(said, texts) for texts in (question.value, question.old))
    return value is not None and (old is None or value < old)


def says_unknown(text: str) -> bool:
    """Whether it says that something is not known or was not told."""
    return _NOT_KNOWN.search(_words(text)) is not None


def first_sentences(answer: str, count: int = SENTENCES) -> str:
    """The first `count` sentences."""
    text = answer.strip()
    ends = [m.end() for m in _SENTENCE_END.finditer(text)]
    return text[: ends[count - 1]] if len(ends) >= count else text


def is_over(answer: str) -> bool:
    """Whether what was answered so far holds all the sentences that count."""
    return len(_SENTENCE_END.findall(answer.strip())) >= SENTENCES


def _first(said: str, texts: Sequence[str]) -> int | None:
    places = [m.start() for text in texts if (m := re.search(rf"(?<!\w){re.escape(_words(text))}(?!\w)", said))]
    return min(places, default=None)


def _words(text: str) -> str:
    """Lower-case words and numbers with single blanks between."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+(?:[:.,/]\d+)*", text))


def _conversation(record: dict[str, object]) -> Conversation:
    def texts(said: object) -> tuple[str, ...]:
        return tuple(said) if isinstance(said, list) else ()

    asked = record["asked"]
    assert isinstance(asked, list)
    return Conversation(
        str(record["id"]),
        str(record["category"]),
        texts(record["told"]),
        texts(record["talk"]),
        tuple(Asked(a["ask"], tuple(a["value"]), tuple(a["old"])) for a in asked),
    )
