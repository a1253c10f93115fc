"""What is told and what is asked about it later, invented or from a file; knows nothing of models and tokens.

Everything is said in held-out phrasings. Values are held out too, but for one mode (`seen`); kinds of facts are those of
the training, but for another (`new_kinds`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltamem_cli.episodes import HELD_OUT, TRAIN, Episode, Utterance, generate_episode
from deltamem_cli.episodes.episode import small_talk
from deltamem_cli.episodes.kinds import kinds_of
from deltamem_cli.errors import DeltamemError

# Questions about one conversation are not independent of each other, so few are asked about each.
QUESTIONS_PER_CASE = 3


@dataclass(frozen=True)
class ToldTurn:
    """reply None: what is said is not answered."""

    said: str
    reply: str | None

    def lines(self) -> list[str]:
        """What was said and answered, line by line."""
        return [*self.said.splitlines(), *(self.reply or "").splitlines()]


@dataclass(frozen=True)
class Asked:
    """old: the value that an update replaces, else empty."""

    content: str
    value: str
    kind: str
    old: str = ""


@dataclass(frozen=True)
class Case:
    """facts: how many were told. update: what is said later, after which the questions have their values."""

    facts: int
    sessions: Sequence[Sequence[ToldTurn]]
    questions: Sequence[Asked]
    system: str = ""
    update: Sequence[ToldTurn] = field(default=())

    def tells(self, value: str) -> bool:
        """Whether any message holds `value`."""
        return any(value in e.said for session in [*self.sessions, self.update] for e in session)


def draw_cases(facts: int, questions: int, values: str, seed: int, kinds: str = TRAIN) -> list[Case]:
    """Cases of `facts` facts that ask `questions` questions together; at least two, so that each has a donor.

    values, kinds: which part they are of (episodes/split.py). Empty when that part has fewer kinds than facts.
    """
    if facts > len(kinds_of(kinds)):
        return []
    rng = random.Random(f"recall {seed} {values} {facts}" + (" of new kinds" if kinds == HELD_OUT else ""))
    per_case = min(facts, QUESTIONS_PER_CASE)
    found: list[Case] = []
    left = questions
    while left > 0 or len(found) < 2:
        episode = generate_episode(
            rng, facts, value_part=values, phrasing_part=HELD_OUT, kind_part=kinds, system="", max_questions=per_case
        )
        case = case_of(episode, facts)
        found.append(Case(facts, case.sessions, case.questions[: max(0, left)]))
        left -= per_case
    return found


def draw_updates(facts: int, cases: int, seed: int) -> list[Case]:
    """Cases whose one question has another value after what `update` says."""
    rng = random.Random(f"update {seed} {facts}")
    found = []
    for _ in range(cases):
        episode = generate_episode(
            rng, facts, value_part=HELD_OUT, phrasing_part=HELD_OUT, system="", updates=1, max_questions=facts
        )
        # the correction is what is said last
        *told, update = exchanges(episode.sessions[0])
        asked = [question for question in case_of(episode, facts).questions if question.old]
        found.append(Case(facts, [told], asked, update=[update]))
    return found


def read_cases(path: Path) -> list[Case]:
    """The cases of a file as `adapter train --data` takes it: its validation lines, or all when it marks none."""
    from deltamem_cli.episodes.jsonl import read_episodes

    train, validation = read_episodes(path)
    found = [case_of(episode, 0) for episode in validation or train]
    found = [Case(len(c.questions), c.sessions, c.questions, c.system) for c in found if c.questions]
    if not found:
        raise DeltamemError(f'{path} asks for no value; give its questions a "value" that their answers must contain')
    return found


def case_of(episode: Episode, facts: int) -> Case:
    """An episode as a case; questions without a value are left out."""
    asked = [Asked(q.content, q.value, q.kind, q.old_value) for q in episode.questions if q.value]
    return Case(facts, [exchanges(session) for session in episode.sessions], asked, episode.system)


def exchanges(messages: Sequence[Utterance]) -> list[ToldTurn]:
    """The messages of one session as turns. Raises DeltamemError for a reply to nothing."""
    turns: list[ToldTurn] = []
    for message in messages:
        if message.role == "user":
            turns.append(ToldTurn(message.content, None))
        elif message.role == "assistant" and turns and turns[-1].reply is None:
            turns[-1] = ToldTurn(turns[-1].said, message.content)
        else:
            raise DeltamemError(
                f"A conversation has a message of the {message.role} that follows no message of the user: "
                f"“{message.content[:40]}”; let every reply follow a user's message"
            )
    return turns


def unrelated_talk(seed: str) -> Iterator[ToldTurn]:
    """Small talk without end that tells no fact."""
    rng = random.Random(f"talk {seed}")
    while True:
        yield from exchanges(small_talk(rng, 8, HELD_OUT))
