"""Tells each history once and asks about it from the stored state as often as there are questions, beside all controls."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltamem_cli.engine.sampling import Sampling
from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.benchmarks import scoring
from deltamem_cli.evaluation.benchmarks.shape import Benchmark, History, Protocol, Question, newest_first_out
from deltamem_cli.evaluation.benchmarks.whole_history import Reader
from deltamem_cli.evaluation.errors import EvaluationError
from deltamem_cli.evaluation.kept_answers import Answered, KeptAnswers
from deltamem_cli.evaluation.respondent import GREEDY, Respondent
from deltamem_cli.evaluation.shares import Share
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import last_state
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.thinking import Thought
from deltamem_cli.store import conversations
from deltamem_cli.store.database import Store

REPLAYED = 512  # tokens of last turns that are shown again
MODES = (r.NONE, r.ZERO, r.DONOR, r.MEMORY, r.REPLAY, r.CONTEXT, r.BOTH)
_SHOWN = (r.REPLAY, r.CONTEXT, r.BOTH)  # the history, or its end, stands before the question
EVERY = "all"  # the column of all categories


@dataclass(frozen=True)
class Answer(Answered):
    """question: its name; asked: its text. seconds: as tokens, from an empty context to the answer's end."""

    asked: str
    scores: dict[str, float]
    seconds: float


class Answers(KeptAnswers[Answer]):
    """What was measured, and the means of its scores."""

    def __init__(self, about: dict[str, Any], path: Path | None = None) -> None:
        """Raises EvaluationError for a file that can't be gone on with."""
        super().__init__(about, Answer, path)

    def share(self, mode: str, category: str, metric: str) -> Share:
        """category: one of the benchmark's, or EVERY"""
        return Share.of(a.scores[metric] for a in self._of(mode) if category in (EVERY, a.category))

    def seconds(self, mode: str) -> float:
        """Mean per answer."""
        found = [a.seconds for a in self._of(mode)]
        return sum(found) / max(1, len(found))

    def _of(self, mode: str) -> list[Answer]:
        return [a for a in self.records if a.mode == mode]

    def document(self, benchmark: Benchmark) -> dict[str, Any]:
        """Everything as one JSON document."""
        columns = (EVERY, *benchmark.categories)
        modes = [m for m in MODES if self._of(m)]

        def each(of: Any) -> dict[str, Any]:
            shares = {(m, x, c): self.share(m, c, x) for m in modes for x in benchmark.metrics for c in columns}
            return {
                m: {x: {c: of(shares[m, x, c]) for c in columns if shares[m, x, c].n} for x in benchmark.metrics}
                for m in modes
            }

        return {
            **self.about,
            "scores": each(lambda s: round(s.value, 4)),
            "intervals": each(lambda s: [round(end, 4) for end in s.interval]),
            "questions": {m: len(self._of(m)) for m in modes},
            "tokens": {m: round(self.tokens(m), 1) for m in modes},
            "seconds": {m: round(self.seconds(m), 3) for m in modes},
            "answers": [asdict(a) for a in self.records],
        }


def sample(
    histories: Iterable[History], most: int | None, limit: int | None, seed: int
) -> tuple[list[History], History | None]:
    """The first `most` histories with `limit` of their questions, drawn at random; and a further history, if there is one,
    to be another conversation. None: all.
    """
    found: list[History] = []
    spare = None
    for history in histories:
        if most is not None and len(found) == most:
            spare = history
            break
        found.append(history)
    names = [(h.id, q.id) for h in found for q in h.questions]
    if limit is not None and limit < len(names):
        names = random.Random(f"{seed}").sample(names, limit)
    kept = set(names)
    chosen = [replace(h, questions=tuple(q for q in h.questions if (h.id, q.id) in kept)) for h in found]
    spare = spare or next((h for h in found if not any(h.id == i for i, _ in kept)), None)
    return [h for h in chosen if h.questions], spare


def measure(
    subject: Respondent,
    benchmark: Benchmark,
    protocol: Protocol,
    chosen: Sequence[History],
    spare: History | None,
    answers: Answers,
    seed: int,
) -> Iterator[str]:
    """Adds to `answers` what they lack. Yields after each answer, old ones too, with the history's name."""
    run = _Run(subject, benchmark, protocol, seed)
    other = chosen[-1] if len(chosen) > 1 else spare
    for history in chosen:
        for mode in MODES:
            missing = [q for q in history.questions if not answers.has(history.id, mode, q.id)]
            for _ in range(len(history.questions) - len(missing)):
                yield history.id
            if missing and (mode != r.DONOR or other is not None):
                for answer in run.ask(history, mode, missing, other):
                    answers.add(answer)
                    yield history.id
        other = history


def questions(chosen: Sequence[History]) -> int:
    """How many answers all modes take together."""
    return len(MODES) * sum(len(h.questions) for h in chosen)


@dataclass
class _Run:
    subject: Respondent
    benchmark: Benchmark
    protocol: Protocol
    seed: int

    def __post_init__(self) -> None:
        self._told: dict[str, str] = {}  # the conversation that each history was told in
        self._options: dict[str, Any] = {**GREEDY, "seed": self.seed, **self.benchmark.options.get(self.protocol, {})}
        self._most = self.benchmark.answer_tokens[self.protocol]

    def ask(self, history: History, mode: str, asked: Sequence[Question], other: History | None) -> Iterator[Answer]:
        replies = self._shown(history, mode, asked) if mode in _SHOWN else self._in_session(history, mode, asked, other)
        for question, (text, tokens, seconds) in zip(asked, replies, strict=True):
            scores = {name: round(value, 4) for name, value in self.benchmark.score(text, question).items()}
            yield Answer(
                history.id, question.category, mode, question.id, text, tokens, question.ask, scores, round(seconds, 3)
            )

    def _cid(self, history: History) -> str:
        if history.id not in self._told:
            cid = None
            for session in history.told:
                cid = self.subject.tell(session, cid=cid, system=history.system)
            if cid is None:
                raise EvaluationError(f"{history.id} tells nothing: leave it out of the data.")
            self._told[history.id] = cid
        return self._told[history.id]

    def _in_session(
        self, history: History, mode: str, asked: Sequence[Question], other: History | None
    ) -> Iterator[tuple[str, int, float]]:
        cid = None
        if mode == r.MEMORY:
            cid = self._cid(history)
        elif mode == r.DONOR and other is not None:
            cid = self._cid(other)
        begin = time.perf_counter()
        with self.subject.session(
            cid, system=history.system, memory=mode != r.NONE, read_only=True, max_tokens=self._most,
            options=self._options,
        ) as session:  # fmt: skip
            opening = time.perf_counter() - begin
            for question in asked:
                begin = time.perf_counter()
                text, tokens = self._answer(session, question)
                yield text, tokens, opening + time.perf_counter() - begin
                session.undo()

    def _answer(self, session: ChatSession, question: Question) -> tuple[str, int]:
        text = ""
        for piece in session.ask(question.ask):
            if not isinstance(piece, Thought):
                text += piece
            if self.benchmark.first_line and scoring.first_line(text) and text.lstrip().count("\n"):
                session.stop()
        return text.strip(), session.context_filled[0]

    def _shown(self, history: History, mode: str, asked: Sequence[Question]) -> Iterator[tuple[str, int, float]]:
        """As published, the memory is empty at first and written along with all of the history; otherwise it is what telling
        left, and what is shown again is not written again, as in a chat.
        """
        subject, along = self.subject, mode == r.BOTH and self.protocol == "published"
        loaded = subject.without_memory if mode == r.CONTEXT else subject.with_memory
        state = None
        if mode != r.CONTEXT and not along:
            with Store.open(subject.database) as store:
                snapshot = last_state(store, conversations.get(store, self._cid(history)), loaded)
            state = snapshot.state if snapshot else None
        model = loaded.engine.model
        reader = Reader(
            loaded.seat, Prompt(model, history.system or None, think=subject.think), Sampling(**self._options),
            self._most, self.benchmark.first_line, state, writes=along,
        )  # fmt: skip

        def count(text: str) -> int:
            return len(model.tokenize(text))

        # all are cut as the longest question has to be: so their histories are the same, and read once
        spare = max(count(q.ask) for q in asked)
        lines = [line for session in history.told for turn in session for line in turn.lines()]

        def message(question: Question) -> str:
            own = count(question.ask)
            if mode == r.REPLAY:
                room = min(REPLAYED, reader.room - spare) + count(f"\n{question.ask}")
                return newest_first_out(lines, f"\n{question.ask}", room, count)
            return history.whole(question, reader.room - spare + own, count)

        another = replace(asked[0], ask="?")
        for reply in reader.ask([message(q) for q in asked], message(another)):
            yield reply.text, reply.tokens, reply.seconds
