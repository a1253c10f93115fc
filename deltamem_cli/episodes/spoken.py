"""How one kind of fact is told, corrected and asked about: everyday kinds, written by hand, and the short ones of kinds.py."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

from deltamem_cli.episodes import phrasings, split
from deltamem_cli.episodes.kinds import KINDS, Kind, kinds_of
from deltamem_cli.episodes.values import values

SHORT = 80  # characters up to which a statement can stand beside others in one message
# of hand-written lists of a dozen: what is held out of these nobody trains on and nobody validates with
PHRASING_SHARE, KIND_SHARE = 0.15, 0.1


class Spoken(Protocol):
    """base: common to kinds that differ only in whom they are about. A text's {v} stands for the value."""

    @property
    def name(self) -> str:
        """What tells this kind from all others."""

    @property
    def base(self) -> str:
        """What kinds share whose values could be taken for each other."""

    @property
    def unknown(self) -> str:
        """The answer where nothing was told."""
        ...

    def values(self, part: str) -> Sequence[str]:
        """What may be told in a part."""
        ...

    def tell(self, rng: random.Random, part: str, short: bool = False) -> str:
        """short: one that can stand beside others in a message."""
        ...

    def correct(self, rng: random.Random, part: str, old: str) -> str:
        """Tells another value later; it may name the old one."""
        ...

    def ask(self, rng: random.Random, part: str) -> tuple[str, str]:
        """A question and its answer."""
        ...


@dataclass(frozen=True)
class Everyday:
    """A kind of everyday.json for one `who`, which stands open in its texts: they are divided alike for all."""

    name: str
    base: str
    who: str
    unknown: str
    own_values: tuple[str, ...]
    vocabulary: str
    said: tuple[str, ...]
    corrected: tuple[str, ...]
    asked: tuple[tuple[str, str], ...]

    def values(self, part: str) -> Sequence[str]:
        """The values of `part`."""
        return values(self.vocabulary, part) if self.vocabulary else _of_values(self.own_values, part)

    def tell(self, rng: random.Random, part: str, short: bool = False) -> str:
        """A message that tells the fact, with {v} for its value. short: a brief one without a question, if any."""
        said = _of_part(self.said, part)
        if short:
            said = tuple(t for t in said if len(t) <= SHORT and "?" not in t) or (min(said, key=len),)
        return self._of_whom(rng.choice(said))

    def correct(self, rng: random.Random, part: str, old: str) -> str:
        """A message that replaces the value `old` by {v}."""
        return self._of_whom(rng.choice(_of_part(self.corrected, part))).replace("{old}", old)

    def ask(self, rng: random.Random, part: str) -> tuple[str, str]:
        """A question and its answer, with {v} for the value."""
        asked = dict(self.asked)
        question = rng.choice(_of_part(tuple(asked), part))
        wrap = rng.choice(phrasings.of_part(phrasings.ASKED_WRAPPED, part)) if rng.random() < 0.2 else "{q}"
        return wrap.replace("{q}", self._of_whom(question)), self._of_whom(asked[question])

    def _of_whom(self, text: str) -> str:
        return text.replace("{who}", self.who)


@dataclass(frozen=True)
class Short:
    """A kind of kinds.py, with the phrasings that fit all of those."""

    kind: Kind

    @property
    def name(self) -> str:
        """The name of the kind."""
        return self.kind.name

    @property
    def base(self) -> str:
        """The vocabulary that its values come from."""
        return self.kind.vocabulary

    @property
    def unknown(self) -> str:
        """The answer when nothing was told."""
        return phrasings.UNKNOWN.replace("{n}", self.kind.noun)

    def values(self, part: str) -> Sequence[str]:
        """The values of `part`."""
        return values(self.kind.vocabulary, part)

    def tell(self, rng: random.Random, part: str, short: bool = False) -> str:
        """A message that tells the fact, with {v} for its value. short: the bare sentence."""
        said = phrasings.pick(rng, phrasings.said(self.kind, part))
        return said if short else phrasings.wrap(rng, phrasings.WRAPPED, "{s}", said, part)

    def correct(self, rng: random.Random, part: str, old: str) -> str:
        """A message that replaces the value `old` by {v}."""
        said = phrasings.pick(rng, phrasings.said(self.kind, part))
        return phrasings.wrap(rng, phrasings.CORRECTED, "{s}", said, part)

    def ask(self, rng: random.Random, part: str) -> tuple[str, str]:
        """A question and its answer, with {v} for the value."""
        asked = phrasings.pick(rng, phrasings.asked(self.kind, part))
        own = self.kind.answer if asked in self.kind.asked else ""
        answer = own.replace("{}", "{v}") or self.kind.answer_for("{v}")
        return phrasings.wrap(rng, phrasings.ASKED_WRAPPED, "{q}", asked, part), answer


@cache
def everyday(part: str) -> tuple[Everyday, ...]:
    """The everyday kinds that a part may tell; the held-out ones are told by no other."""
    bases = {kind["kind"] for kind in _read()}
    held_out = set(split.phrasings_of(sorted(bases), split.HELD_OUT, KIND_SHARE))
    return tuple(
        made for kind in _read() if (kind["kind"] in held_out) == (part == split.HELD_OUT) for made in _made(kind)
    )


@cache
def short(part: str) -> tuple[Short, ...]:
    """The kinds of kinds.py that a part may tell."""
    return tuple(Short(kind) for kind in kinds_of(part))


@cache
def by_name(name: str) -> Spoken:
    """Raises KeyError for a kind that is not there."""
    return _names()[name]


@cache
def _names() -> dict[str, Spoken]:
    found: dict[str, Spoken] = {k.name: k for part in (split.TRAIN, split.HELD_OUT) for k in everyday(part)}
    return found | {k.name: Short(k) for k in KINDS}


@cache
def _read() -> list[dict[str, Any]]:
    text = resources.files("deltamem_cli.episodes").joinpath("everyday.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return found


def _made(kind: dict[str, Any]) -> list[Everyday]:
    def of(who: str) -> Everyday:
        return Everyday(
            f"{kind['kind']} of {who}" if who else kind["kind"],
            kind["kind"],
            who,
            kind["unknown"].replace("{who}", who),
            tuple(kind.get("values", ())),
            kind.get("vocabulary", ""),
            tuple(kind["said"]),
            tuple(kind["corrected"]),
            tuple((question, answer) for question, answer in kind["asked"]),
        )

    return [of(who) for who in kind.get("who", [""])]


@cache
def _of_part(texts: tuple[str, ...], part: str) -> tuple[str, ...]:
    """A list too short to be divided that far is everybody's but the held-out part's."""
    own = tuple(split.phrasings_of(texts, part, PHRASING_SHARE))
    return own or tuple(split.phrasings_of(texts, split.TRAIN, PHRASING_SHARE))


@cache
def _of_values(texts: tuple[str, ...], part: str) -> tuple[str, ...]:
    return tuple(split.values_of(texts, part)) or texts[:1]
