"""Conversations mixed from the turns of different ones, so that a few written turns teach many combinations.

A turn's layer inputs are those of the conversation it was written in; beside other turns they would differ a little.
What is gained: a turn costs a pass through the backbone once and is then used in many conversations.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltamem_cli.training.batch import Asked, Written
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion

UPDATED_SHARE, UNKNOWN_SHARE, PLAIN_SHARE, PROMPT_SHARE = 0.2, 0.12, 0.25, 0.3


@dataclass
class Query:
    """A question whose prompt was run."""

    question: EncodedQuestion
    asked: Asked

    def answered_as(self, other: EncodedQuestion) -> Query:
        """The same words asked, with the answer of another question of this kind."""
        q = self.question
        return Query(replace(other, prompt=q.prompt, head=q.head, opening=q.opening), self.asked)


@dataclass
class Turn:
    """A user's message and the reply. inputs: [L, T, hidden]; spans: [T], 0 or 1; about: what it tells, if it does"""

    inputs: Tensor
    spans: Tensor
    about: EncodedQuestion | None


class Pool:
    """The turns of the last `size` written conversations. mixed: False leaves conversations whole.

    Any prompt about a kind of fact may ask for any turn that tells one, so that no pair of the two is learned by heart.
    """

    def __init__(self, size: int, mixed: bool) -> None:
        self.written: deque[Written] = deque(maxlen=size)
        self.mixed = mixed

    def add(self, written: Sequence[Written]) -> None:
        """Takes conversations in; the oldest leave. Their prompts must have been run (batch.ask)."""
        self.written.extend(written)
        self.talk: list[Turn] = []
        self.plain: list[Query] = []
        self.unknown: dict[str, EncodedQuestion] = {}
        self.prompts: dict[str, list[Query]] = defaultdict(list)
        told: dict[str, list[Turn]] = defaultdict(list)
        for w in self.written if self.mixed else ():
            self._take(w, told)
        self.by_kind = {kind: turns for kind, turns in told.items() if kind in self.prompts}
        self.told = [t for turns in self.by_kind.values() for t in turns]

    def _take(self, w: Written, told: dict[str, list[Turn]]) -> None:
        values: dict[tuple[int, ...], EncodedQuestion] = {}
        for q, asked in zip(w.episode.questions, w.asked, strict=True):
            if q.value_at:
                values[tuple(q.answer[i] for i in q.value_at)] = q
            elif not q.plain:
                self.unknown[q.question.kind] = q
            if asked is not None:
                (self.plain if q.plain else self.prompts[q.question.kind]).append(Query(q, asked))
        tokens = torch.tensor(w.episode.written)
        for n in range(int(w.spans.max()) // 2 + 1):
            inside = w.spans // 2 == n
            value = tuple(tokens[inside & w.content].tolist())
            turn = Turn(w.inputs[:, inside], w.spans[inside] % 2, values.get(value))
            if turn.about is not None:
                told[turn.about.question.kind].append(turn)
            elif not value:
                self.talk.append(turn)

    def draw(self, rng: random.Random, n: int, most_facts: int) -> list[Written]:
        if not self.mixed:
            return [rng.choice(self.written) for _ in range(n)]
        return [self._mix(rng, rng.randint(1, most_facts)) for _ in range(n)]

    def _mix(self, rng: random.Random, facts: int) -> Written:
        turns = rng.sample(self.told, facts)
        for t in list(turns):
            if t.about is not None and rng.random() < UPDATED_SHARE:
                turns.append(rng.choice(self.by_kind[t.about.question.kind]))
        if self.talk:
            turns += rng.choices(self.talk, k=rng.choice((0, 0, 1, 2)))
        rng.shuffle(turns)
        # of two turns of one kind the later counts
        known = {t.about.question.kind: t.about for t in turns if t.about is not None}
        queries = [rng.choice(self.prompts[kind]).answered_as(about) for kind, about in known.items()]
        if rng.random() < UNKNOWN_SHARE:
            kind = rng.choice([k for k in self.unknown if k not in known and k in self.prompts] or [""])
            queries += [rng.choice(self.prompts[kind]).answered_as(self.unknown[kind])] if kind else []
        if self.plain and rng.random() < PLAIN_SHARE:
            queries.append(rng.choice(self.plain))
        spans = torch.cat([t.spans + 2 * i for i, t in enumerate(turns)])
        return Written(
            torch.cat([t.inputs for t in turns], 1),
            spans,
            torch.zeros(len(spans), dtype=torch.bool),
            EncodedEpisode([], [q.question for q in queries]),
            torch.empty(0),
            [q.asked for q in queries],
        )


def wanted_prompts(rng: random.Random) -> Callable[[EncodedQuestion], bool]:
    """Which prompts of a mixed pool are run: those of plain talk and a share of the others, since any fits any turn."""
    return lambda question: question.plain or rng.random() < PROMPT_SHARE
