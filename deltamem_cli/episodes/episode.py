"""Draws one episode: sessions in which facts are told, then questions that are asked in a fresh context."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from deltamem_cli.episodes import phrasings
from deltamem_cli.episodes.kinds import Kind, kinds_of
from deltamem_cli.episodes.split import TRAIN, phrasings_of
from deltamem_cli.episodes.values import values

TOLD, UPDATED, UNKNOWN = "told", "updated", "unknown"


@dataclass(frozen=True)
class Message:
    """value and kind: of the fact, where this message of the user states one, or this reply recalls one."""

    role: str
    content: str
    value: str = ""
    kind: str = ""


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
    sessions: list[list[Message]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def _pick(rng: random.Random, general_and_own: tuple[tuple[str, ...], tuple[str, ...]]) -> str:
    general, own = general_and_own
    return rng.choice(own if own and rng.random() < 0.5 else general)


def _wrap(rng: random.Random, wraps: phrasings.Lists, slot: str, sentence: str, part: str) -> str:
    wrap = rng.choice(phrasings.of_part(wraps, part))
    return wrap.replace(slot, sentence)


def _tell(
    rng: random.Random, kind: Kind, value: str, part: str, wraps: phrasings.Lists = phrasings.WRAPPED
) -> list[Message]:
    statement = _pick(rng, phrasings.said(kind, part)).replace("{v}", value)
    reply = rng.choice(phrasings.of_part(phrasings.ACKNOWLEDGED, part)).replace("{v}", value)
    return [Message("user", _wrap(rng, wraps, "{s}", statement, part), value, kind.name), Message("assistant", reply)]


def _ask(rng: random.Random, kind: Kind, part: str) -> str:
    question = _pick(rng, phrasings.asked(kind, part))
    return _wrap(rng, phrasings.ASKED_WRAPPED, "{q}", question, part)


def question_about(rng: random.Random, kind: Kind, value: str, part: str = TRAIN) -> Question:
    return Question(_ask(rng, kind, part), kind.answer_for(value), value, kind.name)


def talk_prompt(rng: random.Random, part: str = TRAIN) -> str:
    """Something ordinary to say that tells no fact, to be answered by whoever it is said to."""
    if rng.random() < 0.25:
        return rng.choice(phrasings.talk(part))[0]
    topic = rng.choice(values(rng.choice(phrasings.TOPIC_VOCABULARIES), part))
    return rng.choice(phrasings_of(phrasings.TOPICS, part)).replace("{t}", topic)


def small_talk(
    rng: random.Random, turns: int, part: str = TRAIN, talk: Sequence[tuple[str, str]] = ()
) -> list[Message]:
    """turns unrelated questions with their answers, of talk or else of the built-in ones, none twice in a row."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < turns:
        pairs += rng.sample(talk or phrasings.talk(part), min(turns - len(pairs), 8))
    return [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def generate_episode(
    rng: random.Random,
    n_facts: int,
    *,
    value_part: str = TRAIN,
    phrasing_part: str = TRAIN,
    kind_part: str = TRAIN,
    talk_turns: int = 0,
    talk: Sequence[tuple[str, str]] = (),
    recalls: int = 0,
    updates: int = 0,
    unknown: int = 0,
    sessions: int = 1,
    max_questions: int = 6,
    system: str | None = None,
) -> Episode:
    """One episode with n_facts facts of different kinds; updates of them are told again with another value.

    recalls: how many facts are asked for and answered in the sessions themselves; talk: pairs for small_talk.
    system None draws one: mostly the model's own default (an empty text), sometimes another.
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
    for kind in rng.sample(told, recalls):
        v = value[kind.name]
        after = 1 + next(i for i, block in enumerate(blocks) if block[0].kind == kind.name)
        said = [Message("user", _ask(rng, kind, phrasing_part)), Message("assistant", kind.answer_for(v), v, kind.name)]
        blocks.insert(rng.randint(after, len(blocks)), said)
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
