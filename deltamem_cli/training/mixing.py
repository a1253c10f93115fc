"""Conversations mixed from the turns of different ones, so that a few written turns teach many combinations.

A turn's layer inputs are those of the conversation it was written in; beside other turns they would differ a little.
What is gained: a turn costs a pass through the backbone once and is then used in many conversations.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_cli.training.batch import Asked, Written
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion

UPDATED_SHARE, UNKNOWN_SHARE, PLAIN_SHARE = 0.2, 0.12, 0.25


@dataclass
class Query:
    question: EncodedQuestion
    asked: Asked

    @property
    def kind(self) -> str:
        return self.question.question.kind


@dataclass
class Turn:
    """A user's message and the reply. inputs: [L, T, hidden]; spans: [T], 0 or 1; query: None for small talk"""

    inputs: Tensor
    spans: Tensor
    query: Query | None


class Pool:
    """The turns of the last `size` written conversations. mixed: False leaves conversations whole."""

    def __init__(self, size: int, mixed: bool) -> None:
        self.written: deque[Written] = deque(maxlen=size)
        self.mixed = mixed
        self.told: list[Turn] = []
        self.talk: list[Turn] = []
        self.plain: list[Query] = []
        self.unknown: list[Query] = []

    def add(self, written: Sequence[Written]) -> None:
        """Takes conversations in; the oldest leave. Their questions must have been asked (batch.ask)."""
        self.written.extend(written)
        self.told, self.talk, self.plain, self.unknown = [], [], [], []
        for w in self.written if self.mixed else ():
            self._take(w)
        self.by_kind: dict[str, list[Turn]] = defaultdict(list)
        for t in self.told:
            if t.query is not None:
                self.by_kind[t.query.kind].append(t)

    def _take(self, w: Written) -> None:
        queries = [Query(q, a) for q, a in zip(w.episode.questions, w.asked, strict=True)]
        self.plain += [q for q in queries if q.question.plain]
        self.unknown += [q for q in queries if not q.question.plain and not q.question.value_at]
        tokens = torch.tensor(w.episode.written)
        about = {tuple(_value(q.question)): q for q in queries if q.question.value_at}
        for n in range(int(w.spans.max()) // 2 + 1):
            inside = w.spans // 2 == n
            told = tuple(tokens[inside & w.content].tolist())
            turn = Turn(w.inputs[:, inside], w.spans[inside] % 2, about.get(told))
            if turn.query is not None:
                self.told.append(turn)
            elif not told:
                self.talk.append(turn)

    def draw(self, rng: random.Random, n: int, most_facts: int) -> list[Written]:
        if not self.mixed:
            return [rng.choice(self.written) for _ in range(n)]
        return [self._mix(rng, rng.randint(1, most_facts)) for _ in range(n)]

    def _mix(self, rng: random.Random, facts: int) -> Written:
        turns = rng.sample(self.told, facts)
        for t in list(turns):
            if t.query is not None and rng.random() < UPDATED_SHARE:
                turns.append(rng.choice(self.by_kind[t.query.kind]))
        if self.talk:
            turns += rng.choices(self.talk, k=rng.choice((0, 0, 1, 2)))
        rng.shuffle(turns)
        # of two turns of one kind the later counts
        queries = list({t.query.kind: t.query for t in turns if t.query is not None}.values())
        known = {q.kind for q in queries}
        for share, others in ((UNKNOWN_SHARE, self.unknown), (PLAIN_SHARE, self.plain)):
            if others and rng.random() < share:
                other = rng.choice(others)
                queries += [other] if other.kind not in known else []
        spans = torch.cat([t.spans + 2 * i for i, t in enumerate(turns)])
        return Written(
            torch.cat([t.inputs for t in turns], 1),
            spans,
            torch.zeros(len(spans), dtype=torch.bool),
            EncodedEpisode([], [q.question for q in queries]),
            torch.empty(0),
            [q.asked for q in queries],
        )


def _value(question: EncodedQuestion) -> list[int]:
    return [question.answer[i] for i in question.value_at]
