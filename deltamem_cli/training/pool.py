"""Conversations mixed from the turns of different ones, so that a few written turns teach many combinations.

A turn's layer inputs are those of the conversation it was written in; beside other turns they would differ a little.
What is gained: a turn costs a pass through the backbone once and is then used in many conversations.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deltamem_cli.episodes import Fact, Question
from deltamem_cli.episodes.episode import last_place
from deltamem_cli.episodes.spoken import by_name
from deltamem_cli.training.batch import Asked, Written
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, Encoder

UPDATED_SHARE = 0.35  # of told facts, that are corrected later
ALIKE_SHARE = 0.3  # of the turns of a conversation, that tell something alike of somebody else
UNKNOWN_SHARE = 0.4  # of conversations, that are asked for something they do not tell
PLAIN_QUERIES = 4  # of a batch, that ask for ordinary talk
ASKED_SHARE = 0.3  # of told facts, that are asked for in the conversation itself
QUERIES = 2  # ways that one telling is asked about while it is in the pool; what lies below the memory is kept of each
WHOLE_SHARE = 0.5  # of answers that are learned from their first word on; the others from the value on
FEWEST = 4  # conversations of a batch
FACTS = (1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 6)  # of a conversation: what few facts need is needed with many, too
FAR_SHARE, FAR_TURNS = 0.25, 12  # of batches with much talk, and how many turns of it at most
SHOWN_BATCHES, SHOWN_FACTS = 0.35, 0.5  # batches asked after turns shown again; their facts that these turns tell


@dataclass
class Query:
    """A question and its prompt after it was run, as far as the value of the answer."""

    question: EncodedQuestion
    asked: Asked

    def about(self, fact: Fact, encoder: Encoder, whole: bool = True) -> Query:
        """The same words asked, answered with another value; whole, or from the value on."""
        q = self.question.question
        at = last_place(q.answer, q.value)
        answer = q.answer[:at] + fact.value + q.answer[at + len(q.value) :]
        return self._answered(encoder.answered(self.question, replace(q, answer=answer, value=fact.value)), whole)

    def unknown(self, encoder: Encoder) -> Query:
        """The same words asked where nothing was told."""
        q = self.question.question
        question = Question(q.content, by_name(q.kind).unknown, "", q.kind)
        return self._answered(encoder.answered(self.question, question), whole=True)

    def _answered(self, words: EncodedQuestion, whole: bool) -> Query:
        from_value, own = words.at_value(), self.question.at_value()
        if not whole and (from_value.prompt, from_value.head) == (own.prompt, own.head):
            return Query(from_value, self.asked.shortened(0))
        return Query(words, self.asked.shortened(len(own.prompt) - len(words.prompt)))


@dataclass(eq=False)
class Turn:
    """A message of the user. parts: [L, t, hidden] each

    facts: what it tells; corrects: the value that it replaces, else empty; asks: the kind of fact that it asks for
    showing: per fact, prompts that show it again; with its own value, so no others show it
    """

    parts: list[Tensor]
    facts: tuple[Fact, ...] = ()
    corrects: str = ""
    asks: str = ""
    showing: dict[Fact, list[Query]] = field(default_factory=dict)
    queries: dict[tuple[Fact, bool], list[Query]] = field(default_factory=dict)

    def query(self, rng: random.Random, encoder: Encoder, fact: Fact, prompts: Sequence[Query], shown: bool) -> Query:
        """One of a few ways to ask for a fact that it tells, by these prompts unless turns are shown and it is among them."""
        if (fact, shown) not in self.queries:
            chosen = rng.choices((self.showing.get(fact) if shown else ()) or prompts, k=QUERIES)
            made = [q.about(fact, encoder, whole=rng.random() < WHOLE_SHARE) for q in chosen]
            self.queries[fact, shown] = made
        return rng.choice(self.queries[fact, shown])


class Pool:
    """The turns of the last `size` written conversations. mixed: False leaves conversations whole.

    Any prompt about a kind of fact may ask for any turn that tells one, so that no pair of the two is learned by heart;
    but for prompts that show the fact again, which fit the turn that told it alone.
    """

    def __init__(self, size: int, mixed: bool, encoder: Encoder) -> None:
        self.written: deque[Written] = deque(maxlen=size)
        self.mixed = mixed
        self.encoder = encoder

    def add(self, written: Sequence[Written]) -> None:
        """Takes conversations in; the oldest leave. Their prompts must have been run (batch.ask)."""
        if not self.mixed:  # their own questions, whole
            written = [
                replace(
                    w,
                    asked=[
                        Query(q, a)._answered(q, whole=True).asked
                        for q, a in zip(w.episode.questions, w.asked, strict=True)
                        if a
                    ],
                )
                for w in written
            ]
        self.written.extend(written)
        self.talk: list[Turn] = []
        self.plain: list[Query] = []
        # prompts about a kind of fact, by whether they show turns again that tell none of it
        self.prompts: dict[bool, dict[str, list[Query]]] = {shown: defaultdict(list) for shown in (False, True)}
        self.asking: dict[str, list[Turn]] = defaultdict(list)
        self.told: list[Turn] = []
        for w in self.written if self.mixed else ():
            self._take(w)
        known = self.prompts[False]
        self.told = [t for t in self.told if all(f.kind in known for f in t.facts)]
        self.shown_again = [t for t in self.told if t.showing]
        self.by_base: dict[str, list[Turn]] = defaultdict(list)
        self.by_fact: dict[Fact, list[Turn]] = defaultdict(list)
        self.corrections: dict[str, list[Turn]] = defaultdict(list)
        for t in self.told:
            for base in {by_name(f.kind).base for f in t.facts}:
                self.by_base[base].append(t)
            if len(t.facts) == 1:
                (self.corrections[t.facts[0].kind] if t.corrects else self.by_fact[t.facts[0]]).append(t)
        self.kinds_of_base: dict[str, list[str]] = defaultdict(list)
        for kind in known:
            self.kinds_of_base[by_name(kind).base].append(kind)
        episodes = [w.episode for w in self.written]
        answers = [q.answer for e in episodes for q in e.questions]
        answers += [self.encoder.answered(q, q.question).answer for e in episodes for q in e.questions]
        values = {f.value for w in self.written for r in w.retold for f in r.facts}
        # a value stands behind a space, or begins an answer
        answers += [self.encoder.tokenizer.encode(before + v) for v in values for before in ("", " ")]
        answers += [q.unknown(self.encoder).question.answer for queries in known.values() for q in queries[:1]]
        self.tokens = sorted({t for tokens in (*answers, *(e.written for e in episodes)) for t in tokens})

    def _take(self, w: Written) -> None:
        showing: dict[Fact, list[Query]] = defaultdict(list)
        for q, asked in zip(w.episode.questions, w.asked, strict=True):
            if asked is None:
                continue
            kind = q.question.kind
            if q.plain:
                self.plain.append(Query(q, asked))
            elif any(f.kind == kind for m in q.shown for f in m.facts):
                showing[Fact(kind, q.question.value)].append(Query(q, asked))
            elif q.value_at:
                self.prompts[bool(q.shown)][kind].append(Query(q, asked))
        spans = w.spans.tolist()
        messages = [m for s in w.episode.sessions for m in s.messages]
        for n, said in enumerate(messages[::2]):
            inside = slice(bisect_left(spans, 2 * n), bisect_right(spans, 2 * n))
            turn = Turn([w.inputs[:, inside]], said.facts, said.corrects, said.asks)
            if said.facts:
                turn.showing = {f: showing[f] for f in said.facts if showing[f]}
                self.told.append(turn)
            elif said.asks:
                self.asking[said.asks].append(turn)
            else:
                self.talk.append(turn)
        self.told += [Turn(r.parts, r.facts, messages[r.message].corrects) for r in w.retold]

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
        for mixed in rng.sample(found, min(PLAIN_QUERIES, len(found))) if plain else ():
            query = rng.choice(plain)
            mixed.episode.questions.append(query.question)
            mixed.asked.append(query.asked)
        return found

    def _mix(self, rng: random.Random, facts: int, far: bool, shown: bool) -> Written:
        turns: list[Turn] = []
        while (left := facts - sum(len(t.facts) for t in turns)) > 0:
            again = shown and self.shown_again and rng.random() < SHOWN_FACTS
            among = self.shown_again if again else self.told
            if turns and rng.random() < ALIKE_SHARE:
                among = self.by_base[by_name(rng.choice(turns[-1].facts).kind).base]
            turn = rng.choice(among)
            # with more facts than there is room for only where nothing else was found
            if len(turn.facts) <= left or rng.random() < 0.1:
                turns.append(turn)
        for t in turns:
            if len(t.facts) == 1 and not t.corrects and rng.random() < UPDATED_SHARE:
                self._correct(rng, turns, t)
        # of two turns that tell one kind the later counts
        known = {f.kind: (f, t) for t in turns for f in t.facts}
        queries = [t.query(rng, self.encoder, f, self._prompts(kind, shown), shown) for kind, (f, t) in known.items()]
        if rng.random() < UNKNOWN_SHARE:
            queries += self._not_told(rng, known, shown)
        turns = self._between(rng, turns, far)
        spans = torch.cat([torch.full((sum(p.shape[1] for p in t.parts),), 2 * i) for i, t in enumerate(turns)])
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

    def _correct(self, rng: random.Random, turns: list[Turn], told: Turn) -> None:
        """Adds what corrects `told`, which is told with the value that the correction names where there is such a turn."""
        corrections = self.corrections.get(told.facts[0].kind)
        if not corrections:
            return
        correction = rng.choice(corrections)
        old = self.by_fact.get(Fact(told.facts[0].kind, correction.corrects))
        at = turns.index(told)
        turns[at] = rng.choice(old) if old else told
        turns.insert(rng.randint(at + 1, len(turns)), correction)

    def _not_told(self, rng: random.Random, known: dict[str, tuple[Fact, Turn]], shown: bool) -> list[Query]:
        """A question about a kind that is not among the known ones; half of them about something alike."""
        kinds: Sequence[str] = ()
        if rng.random() < 0.5:
            kinds = [k for one in known for k in self.kinds_of_base[by_name(one).base] if k not in known]
        kinds = kinds or [k for k in self.prompts[False] if k not in known]
        return [rng.choice(self._prompts(rng.choice(kinds), shown)).unknown(self.encoder)] if kinds else []

    def _between(self, rng: random.Random, turns: list[Turn], far: bool) -> list[Turn]:
        """The turns, questions about what they tell, and talk among them; when far, mostly after them."""
        placed = [(i + 1.0, turn) for i, turn in enumerate(turns)]
        for i, turn in enumerate(turns):
            asking = [a for f in turn.facts for a in self.asking.get(f.kind, ())]
            if asking and rng.random() < ASKED_SHARE:
                placed.append((rng.uniform(i + 1.0, len(turns) + 1.0), rng.choice(asking)))
        if self.talk:
            n = rng.randint(1, FAR_TURNS) if far else rng.choice((0, 0, 1, 2))
            start = len(turns) + 1.0 if far and rng.random() < 0.7 else 0.0
            placed += [(rng.uniform(start, len(turns) + 2.0), turn) for turn in rng.choices(self.talk, k=n)]
        return [turn for _, turn in sorted(placed, key=lambda item: item[0])]


def size_of_batch(rng: random.Random, most_facts: int, every_kind: bool = True) -> tuple[int, bool, bool]:
    """facts, far and shown of Pool.draw(): what is long in one conversation of a batch makes room in all of it.

    every_kind: False for batches without much talk, and asked with nothing shown again.
    """
    facts = rng.choice([n for n in FACTS if n <= most_facts])
    far, shown = rng.random() < FAR_SHARE, rng.random() < SHOWN_BATCHES
    return facts, far and every_kind, shown and every_kind
