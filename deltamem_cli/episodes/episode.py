"""Draws one episode: sessions in which facts are told, then questions that are asked in a fresh context."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from deltamem_cli.episodes import phrasings
from deltamem_cli.episodes.kinds import Kind, kinds_of
from deltamem_cli.episodes.requests import draw_request
from deltamem_cli.episodes.split import TRAIN, phrasings_of
from deltamem_cli.episodes.values import values

TOLD, UPDATED, UNKNOWN = "told", "updated", "unknown"
REQUEST_SHARE, TALK_SHARE = 0.45, 0.15  # of ordinary prompts; the others are about a topic


class Fact(NamedTuple):
    """kind: its name; value: word for word as it is told."""

    kind: str
    value: str


def last_place(text: str, value: str) -> int:
    """Where a text names a value last, as words of its own if it does; -1 where it does not."""
    places = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text)]
    return places[-1] if places else text.rfind(value)


@dataclass(frozen=True)
class Utterance:
    """facts: what this message of the user states; asks: the kind of fact that it asks for, corrects: that it changes."""

    role: str
    content: str
    facts: tuple[Fact, ...] = ()
    asks: str = ""
    corrects: str = ""


@dataclass(frozen=True)
class Question:
    """answer holds value word for word; old_value is what an update replaced."""

    content: str
    answer: str
    value: str
    kind: str
    about: str = TOLD
    old_value: str = ""


@dataclass
class Episode:
    """Every session starts with an empty context; questions are asked after the last session, each in its own."""

    system: str
    sessions: list[list[Utterance]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def _tell(
    rng: random.Random, kind: Kind, value: str, part: str, wraps: phrasings.Lists = phrasings.WRAPPED
) -> list[Utterance]:
    statement = phrasings.pick(rng, phrasings.said(kind, part)).replace("{v}", value)
    reply = rng.choice(phrasings.of_part(phrasings.ACKNOWLEDGED, part)).replace("{v}", value)
    said = phrasings.wrap(rng, wraps, "{s}", statement, part)
    return [Utterance("user", said, (Fact(kind.name, value),)), Utterance("assistant", reply)]


def _ask(rng: random.Random, kind: Kind, part: str) -> str:
    question = phrasings.pick(rng, phrasings.asked(kind, part))
    return phrasings.wrap(rng, phrasings.ASKED_WRAPPED, "{q}", question, part)


def talk_prompt(rng: random.Random, part: str = TRAIN) -> str:
    """Something ordinary to say that tells no fact, to be answered by whoever it is said to."""
    which = rng.random()
    if which < REQUEST_SHARE:
        return draw_request(rng, part)
    if which < REQUEST_SHARE + TALK_SHARE:
        return rng.choice(phrasings.talk(part))[0]
    topic = rng.choice(values(rng.choice(phrasings.TOPIC_VOCABULARIES), part))
    return rng.choice(phrasings_of(phrasings.TOPICS, part)).replace("{t}", topic)


def small_talk(
    rng: random.Random, turns: int, part: str = TRAIN, talk: Sequence[tuple[str, str]] = ()
) -> list[Utterance]:
    """turns unrelated questions with their answers, of talk or else of the built-in ones, none twice in a row."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < turns:
        pairs += rng.sample(talk or phrasings.talk(part), min(turns - len(pairs), 8))
    return [Utterance(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def generate_episode(
    rng: random.Random,
    n_facts: int,
    *,
    value_part: str = TRAIN,
    phrasing_part: str = TRAIN,
    kind_part: str = TRAIN,
    talk_turns: int = 0,
    talk: Sequence[tuple[str, str]] = (),
    updates: int = 0,
    unknown: int = 0,
    sessions: int = 1,
    max_questions: int = 6,
    system: str | None = None,
) -> Episode:
    """One episode with n_facts facts of different kinds; updates of them are told again with another value.

    talk: pairs for small_talk. system None draws one: mostly the model's own default (an empty text), sometimes another.
    """
    # a fact and its update need two values
    fit = [k for k in kinds_of(kind_part) if len(values(k.vocabulary, value_part)) > 1]
    kinds = rng.sample(fit, n_facts + unknown)
    told, not_told = kinds[:n_facts], kinds[n_facts:]
    value: dict[str, str] = {}
    for kind in told:
        # two facts of one episode never share a value: the answer must say which fact was meant
        value[kind.name] = rng.choice([v for v in values(kind.vocabulary, value_part) if v not in value.values()])
    blocks = [_tell(rng, k, value[k.name], phrasing_part) for k in told]
    blocks += [small_talk(rng, 1, phrasing_part, talk) for _ in range(talk_turns)]
    rng.shuffle(blocks)
    old: dict[str, str] = {}
    for kind in rng.sample(told, min(updates, n_facts)):
        old[kind.name] = value[kind.name]
        value[kind.name] = rng.choice([v for v in values(kind.vocabulary, value_part) if v not in value.values()])
        blocks.append(_tell(rng, kind, value[kind.name], phrasing_part, phrasings.CORRECTED))
    if system is None:
        system = "" if rng.random() < 0.8 else rng.choice(phrasings.SYSTEMS)
    sessions = min(sessions, len(blocks))
    cuts = [0, *sorted(rng.sample(range(1, len(blocks)), sessions - 1)), len(blocks)]
    parts = [blocks[a:b] for a, b in pairwise(cuts)]
    episode = Episode(system, [[m for block in p for m in block] for p in parts])
    for kind in rng.sample(told, min(max_questions, n_facts)):
        v = value[kind.name]
        about = UPDATED if kind.name in old else TOLD
        episode.questions.append(
            Question(_ask(rng, kind, phrasing_part), kind.answer_for(v), v, kind.name, about, old.get(kind.name, ""))
        )
    for kind in not_told:
        answer = phrasings.UNKNOWN.replace("{n}", kind.noun)
        episode.questions.append(Question(_ask(rng, kind, phrasing_part), answer, "", kind.name, UNKNOWN))
    return episode
