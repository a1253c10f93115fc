"""Conversations mixed from the turns of different ones, so that a few written turns teach many combinations.

A turn's layer inputs are those of the conversation it was written in; beside other turns they would differ a little.
What is gained: a turn costs a pass through the backbone once and is then used in many conversations.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deltamem_cli.training.batch import Asked, Written
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion

UPDATED_SHARE, CORRECTED_SHARE = 0.4, 0.75  # of told facts, that change; of changes, that are told as such
UNKNOWN_SHARE, PROMPT_SHARE = 0.06, 0.75
PLAIN_QUERIES = 3  # of a batch, that ask for ordinary talk
RECALLED_SHARE = 0.3  # of told facts, that are asked for and answered in the conversation itself
QUERIES = 2  # ways that one telling is asked about while it is in the pool; what lies below the memory is kept of each
WHOLE_SHARE = 0.25  # of answers that are learned from their first word on; the others from the value on
FEWEST = 4  # conversations of a batch
FACTS = (1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 6)  # of a conversation: what few facts need is needed with many, too
FAR_SHARE, FAR_TURNS = 0.25, 12  # of batches with much talk, and how many turns of it at most
SHOWN_BATCHES, SHOWN_FACTS = 0.3, 0.5  # batches asked after turns shown again; their facts that these turns tell


@dataclass
class Query:
    """A question and its prompt after it was run, as far as the value of the answer."""

    question: EncodedQuestion
    asked: Asked

    def about(self, other: EncodedQuestion, whole: bool = True) -> Query:
        """The same words asked, with the answer of another question of this kind; whole, or from the value on."""
        q = self.question
        words = replace(other, prompt=q.prompt, head=q.head, opening=q.opening, shown=q.shown)
        from_value, own = words.at_value(), q.at_value()
        if not whole and (from_value.prompt, from_value.head) == (own.prompt, own.head):
            return Query(from_value, self.asked.shortened(0))
        return Query(words, self.asked.shortened(len(own.prompt) - len(q.prompt)))


@dataclass(eq=False)
class Turn:
    """A user's message and the reply. parts: [L, t, hidden] each; spans: [T], 0 or 1

    about: what it tells, if it does; corrects: as something that has changed
    showing: prompts that show it again, or where it was repeated; with its own value, so no others show it
    """

    parts: list[Tensor]
    spans: Tensor
    about: EncodedQuestion | None = None
    corrects: bool = False
    showing: Sequence[Query] = ()
    queries: dict[bool, list[Query]] = field(default_factory=dict)

    def query(self, rng: random.Random, prompts: Sequence[Query], shown: bool) -> Query:
        """One of a few ways to ask for what it tells, by these prompts unless turns are shown and it is among them."""
        if shown not in self.queries and self.about is not None:
            chosen = rng.choices((self.showing if shown else ()) or prompts, k=QUERIES)
            self.queries[shown] = [q.about(self.about, whole=rng.random() < WHOLE_SHARE) for q in chosen]
        return rng.choice(self.queries[shown])


class Pool:
    """The turns of the last `size` written conversations. mixed: False leaves conversations whole.

    Any prompt about a kind of fact may ask for any turn that tells one, so that no pair of the two is learned by heart;
    but for prompts that show the fact again, which fit the turn that told it alone.
    """

    def __init__(self, size: int, mixed: bool) -> None:
        self.written: deque[Written] = deque(maxlen=size)
        self.mixed = mixed

    def add(self, written: Sequence[Written]) -> None:
        """Takes conversations in; the oldest leave. Their prompts must have been run (batch.ask)."""
        if not self.mixed:  # their own questions, whole
            written = [
                replace(
                    w,
                    asked=[Query(q, a).about(q).asked for q, a in zip(w.episode.questions, w.asked, strict=True) if a],
                )
                for w in written
            ]
        self.written.extend(written)
        self.talk: list[Turn] = []
        self.plain: list[Query] = []
        self.unknown: dict[str, EncodedQuestion] = {}
        # prompts about a kind of fact, by whether they show turns again that tell none of it
        self.prompts: dict[bool, dict[str, list[Query]]] = {shown: defaultdict(list) for shown in (False, True)}
        # turns that repeat a fact which was asked for, by the question about it
        self.recalled: dict[int, list[Turn]] = defaultdict(list)
        told: dict[str, list[Turn]] = defaultdict(list)
        for w in self.written if self.mixed else ():
            self._take(w, told)
        self.by_kind = {kind: turns for kind, turns in told.items() if kind in self.prompts[False]}
        self.told = [t for turns in self.by_kind.values() for t in turns]
        self.shown_again = [t for t in self.told if t.showing]
        self.corrections = {kind: found for kind, turns in told.items() if (found := [t for t in turns if t.corrects])}
        episodes = [w.episode for w in self.written]
        answers = [q.answer for e in episodes for q in e.questions]
        answers += [r.about.answer for w in self.written for r in w.retold]
        self.tokens = sorted({t for tokens in (*answers, *(e.written for e in episodes)) for t in tokens})

    def _take(self, w: Written, told: dict[str, list[Turn]]) -> None:
        about: dict[tuple[str, str], EncodedQuestion] = {}
        showing: dict[tuple[str, str], list[Query]] = defaultdict(list)
        for q, asked in zip(w.episode.questions, w.asked, strict=True):
            if q.value_at:
                about[q.question.kind, q.question.value] = q
            elif not q.plain:
                self.unknown[q.question.kind] = q
            if asked is None:
                continue
            kind = q.question.kind
            if q.plain:
                self.plain.append(Query(q, asked))
            elif any(m.kind == kind for m in q.shown):
                showing[kind, q.question.value].append(Query(q, asked))
            else:
                self.prompts[bool(q.shown)][kind].append(Query(q, asked))
        spans = w.spans.tolist()
        messages = [m for s in w.episode.sessions for m in s.messages]
        corrections = {n for n, m in enumerate(messages) if m.kind and m.kind in {e.kind for e in messages[:n]}}
        for n, (said, reply) in enumerate(zip(messages[::2], messages[1::2], strict=True)):
            inside = slice(bisect_left(spans, 2 * n), bisect_right(spans, 2 * n + 1))
            fact = said if said.value else reply
            told_about = about.get((fact.kind, fact.value))
            turn = Turn([w.inputs[:, inside]], w.spans[inside] % 2, told_about, 2 * n in corrections)
            if not fact.value:
                self.talk.append(turn)
            elif turn.about is not None and fact is said:
                turn.showing = showing[fact.kind, fact.value]
                told[fact.kind].append(turn)
            elif turn.about is not None:
                self.recalled[id(turn.about)].append(turn)
        for r in w.retold:
            turn = Turn(r.parts, r.spans, r.about, r.message in corrections)
            if messages[r.message].role == "user":
                told[messages[r.message].kind].append(turn)
            else:
                self.recalled[id(r.about)].append(turn)

    def draw(self, rng: random.Random, n: int, facts: int, far: bool, shown: bool) -> list[Written]:
        """Conversations that ask about n questions together; mixed ones of so many facts, with much talk and half as many
        questions when far, and asked about after turns that are shown again when shown."""
        if not self.mixed:
            found: list[Written] = []
            while sum(len(w.asked) for w in found) < n:
                found.append(rng.choice(self.written))
            return found
        rows = n // facts // 2 if far else n // facts
        found = [self._mix(rng, facts, far, shown) for _ in range(max(FEWEST, rows))]
        plain = [q for q in self.plain if shown or not q.question.shown]
        for mixed in rng.sample(found, PLAIN_QUERIES) if plain else ():
            query = rng.choice(plain)
            mixed.episode.questions.append(query.question)
            mixed.asked.append(query.asked)
        return found

    def _mix(self, rng: random.Random, facts: int, far: bool, shown: bool) -> Written:
        turns = rng.sample(self.told, facts)
        if shown and self.shown_again:
            turns = [rng.choice(self.shown_again) if rng.random() < SHOWN_FACTS else t for t in turns]
        for t in list(turns):
            if t.about is not None and rng.random() < UPDATED_SHARE:
                turns.insert(rng.randint(turns.index(t) + 1, len(turns)), self._update(rng, t.about.question.kind))
        # of two turns of one kind the later counts
        known = {t.about.question.kind: t for t in turns if t.about is not None}
        turns = self._between(rng, turns, far)
        queries = [turn.query(rng, self._prompts(kind, shown), shown) for kind, turn in known.items()]
        if rng.random() < UNKNOWN_SHARE:
            kind = rng.choice([k for k in self.unknown if k not in known and k in self.prompts[False]] or [""])
            queries += [rng.choice(self._prompts(kind, shown)).about(self.unknown[kind])] if kind else []
        spans = torch.cat([t.spans + 2 * i for i, t in enumerate(turns)])
        return Written(
            torch.cat([part for t in turns for part in t.parts], 1),
            spans,
            torch.zeros(len(spans), dtype=torch.bool),
            EncodedEpisode([], [q.question for q in queries]),
            torch.empty(0),
            [q.asked for q in queries],
        )

    def _prompts(self, kind: str, shown: bool) -> Sequence[Query]:
        return self.prompts[shown].get(kind) or self.prompts[False][kind]

    def _update(self, rng: random.Random, kind: str) -> Turn:
        """Something that changes a fact, mostly told as a change."""
        corrections = self.corrections.get(kind) if rng.random() < CORRECTED_SHARE else None
        return rng.choice(corrections or self.by_kind[kind])

    def _between(self, rng: random.Random, turns: list[Turn], far: bool) -> list[Turn]:
        """The turns, told facts repeated on being asked, and talk among them; when far, mostly after them."""
        placed = [(i + 1.0, turn) for i, turn in enumerate(turns)]
        for i, turn in enumerate(turns):
            again = self.recalled.get(id(turn.about))
            if again and rng.random() < RECALLED_SHARE and turn.about is not None:
                kind = turn.about.question.kind
                later = (n for n in range(i + 1, len(turns)) if (a := turns[n].about) and a.question.kind == kind)
                placed.append((rng.uniform(i + 1.0, next(later, len(turns)) + 1.0), rng.choice(again)))
        if self.talk:
            n = rng.randint(1, FAR_TURNS) if far else rng.choice((0, 0, 1, 2))
            start = len(turns) + 1.0 if far and rng.random() < 0.7 else 0.0
            placed += [(rng.uniform(start, len(turns) + 2.0), turn) for turn in rng.choices(self.talk, k=n)]
        return [turn for _, turn in sorted(placed, key=lambda item: item[0])]


def size_of_batch(rng: random.Random, most_facts: int) -> tuple[int, bool, bool]:
    """facts, far and shown of Pool.draw(): what is long in one conversation of a batch makes room in all of it."""
    facts = rng.choice([n for n in FACTS if n <= most_facts])
    return facts, rng.random() < FAR_SHARE, rng.random() < SHOWN_BATCHES


def wanted_prompts(rng: random.Random) -> Callable[[EncodedQuestion], bool]:
    """Which prompts of a mixed pool are run: those of plain talk and a share of the others, since any fits any turn."""
    return lambda question: question.plain or rng.random() < PROMPT_SHARE
