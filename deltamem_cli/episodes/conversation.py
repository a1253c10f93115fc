"""Draws conversations as people hold them, to train on: facts told one by one or together, corrected, asked for, talk between."""

from __future__ import annotations

import random
from collections.abc import Sequence

from deltamem_cli.episodes import phrasings, spoken
from deltamem_cli.episodes.episode import Episode, Fact, Question, Utterance, small_talk
from deltamem_cli.episodes.split import TRAIN
from deltamem_cli.episodes.spoken import Spoken

SHORT_SHARE = 0.25  # of the kinds drawn, that are of kinds.py
ALIKE_SHARE = 0.35  # of the kinds drawn, that are another's but for whom they are about
TOGETHER_SHARE = 0.35  # of the messages that tell, that tell two or three facts
JOINTS = (" ", " ", " ", "\n", " And ", " Also, ", " oh and ", " btw ", ", ")
OWN_REPLIES = 0.5  # of the replies to what is told, that are the model's own words to something else

Talk = Sequence[tuple[str, str]]


def draw_kinds(rng: random.Random, count: int, part: str = TRAIN) -> list[Spoken]:
    """Different kinds; some of them alike."""
    chosen: list[Spoken] = []
    while len(chosen) < count:
        pool: Sequence[Spoken] = spoken.short(part) if rng.random() < SHORT_SHARE else spoken.everyday(part)
        if chosen and rng.random() < ALIKE_SHARE:
            base = rng.choice(chosen).base
            every: list[Spoken] = [*spoken.short(part), *spoken.everyday(part)]
            pool = [k for k in every if k.base == base]
        kind = rng.choice(pool)
        if kind not in chosen:
            chosen.append(kind)
    return chosen


def draw_conversation(
    rng: random.Random,
    facts: int,
    *,
    part: str = TRAIN,
    phrasing_part: str | None = None,
    talk: Talk = (),
    talk_turns: int = 0,
    updates: int = 0,
    asks: int = 0,
    unknown: int = 0,
    system: str = "",
) -> Episode:
    """One session that tells so many facts, with a question about each, and unknown ones about what it does not tell.

    updates: facts that are corrected later; asks: that are asked for and answered in the session; part: of values;
    phrasing_part: of phrasings, the same unless given.
    """
    words = phrasing_part or part
    kinds = draw_kinds(rng, facts + unknown, TRAIN)
    told, not_told = kinds[:facts], kinds[facts:]
    value: dict[str, str] = {}
    for kind in told:
        value[kind.name] = _free(rng, kind, part, value)
    blocks: list[list[Utterance]] = []
    left = list(told)
    while left:
        size = rng.randint(2, 3) if rng.random() < TOGETHER_SHARE else 1
        some, left = left[:size], left[size:]
        blocks.append(_told(rng, some, value, words, talk))
    blocks += [small_talk(rng, 1, TRAIN, talk) for _ in range(talk_turns)]
    rng.shuffle(blocks)
    for kind in rng.sample(told, min(updates, facts)):
        old = value[kind.name]
        value[kind.name] = _free(rng, kind, part, value)
        said = kind.correct(rng, words, old)
        fact = Fact(kind.name, value[kind.name])
        message = Utterance("user", said.replace("{v}", fact.value), (fact,), corrects=old)
        blocks.insert(rng.randint(_place(blocks, kind.name), len(blocks)), [message, _reply(rng, talk)])
    for kind in rng.sample(told, min(asks, facts)):
        asked, answer = kind.ask(rng, words)
        at = rng.randint(_place(blocks, kind.name), len(blocks))
        now = next(f.value for b in reversed(blocks[:at]) for f in b[0].facts if f.kind == kind.name)
        blocks.insert(
            at, [Utterance("user", asked, asks=kind.name), Utterance("assistant", answer.replace("{v}", now))]
        )
    episode = Episode(system, [[m for block in blocks for m in block]])
    for kind in told:
        episode.questions.append(question(rng, kind, value[kind.name], words))
    for kind in not_told:
        asked, _ = kind.ask(rng, words)
        episode.questions.append(Question(asked, kind.unknown, "", kind.name))
    return episode


def told_prompt(rng: random.Random) -> str:
    """A message that tells a fact, for the model without memory to answer."""
    (kind,) = draw_kinds(rng, 1)
    return kind.tell(rng, TRAIN).replace("{v}", rng.choice(kind.values(TRAIN)))


def question(rng: random.Random, kind: Spoken, value: str, part: str = TRAIN) -> Question:
    """A question about a kind that was told with this value; part: of phrasings."""
    asked, answer = kind.ask(rng, part)
    return Question(asked, answer.replace("{v}", value), value, kind.name)


def other_values(rng: random.Random, kind: Spoken, taken: set[str], count: int) -> list[str]:
    """Up to `count` values of the training part that are not taken."""
    free = [v for v in kind.values(TRAIN) if v not in taken]
    return rng.sample(free, min(count, len(free)))


def _free(rng: random.Random, kind: Spoken, part: str, taken: dict[str, str]) -> str:
    """A value that no other fact of the conversation has: the answer must say which fact was meant."""
    free = [v for v in kind.values(part) if v not in taken.values()]
    return rng.choice(free or [v for v in kind.values(TRAIN) if v not in taken.values()])


def _told(rng: random.Random, kinds: Sequence[Spoken], value: dict[str, str], part: str, talk: Talk) -> list[Utterance]:
    said = ""
    for kind in kinds:
        statement = kind.tell(rng, part, short=len(kinds) > 1).replace("{v}", value[kind.name])
        said = _joined(rng, said, statement) if said else statement
    facts = tuple(Fact(kind.name, value[kind.name]) for kind in kinds)
    return [Utterance("user", said, facts), _reply(rng, talk)]


def _joined(rng: random.Random, said: str, more: str) -> str:
    joint = rng.choice(JOINTS)
    if joint == ", ":
        said = said.rstrip(".!")
    elif joint != "\n" and said[-1:] not in ".!?":
        said += "."
    return said + joint + more


def _reply(rng: random.Random, talk: Talk) -> Utterance:
    if talk and rng.random() < OWN_REPLIES:
        return Utterance("assistant", rng.choice(talk)[1])
    # a value of several words does not fit the replies that name one
    plain = [t for t in phrasings.of_part(phrasings.ACKNOWLEDGED, TRAIN) if "{v}" not in t]
    return Utterance("assistant", rng.choice(plain))


def _place(blocks: Sequence[Sequence[Utterance]], kind: str) -> int:
    """Behind the block that told it last."""
    return 1 + max(i for i, block in enumerate(blocks) if any(f.kind == kind for f in block[0].facts))
