"""Which cases are told, and in which modes they are asked about; fills a RecallReport."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from deltamem_cli.episodes import HELD_OUT, TRAIN
from deltamem_cli.evaluation import cases as made
from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.cases import Asked, Case
from deltamem_cli.evaluation.matching import recalls
from deltamem_cli.evaluation.perplexity import PLAIN_TEXT
from deltamem_cli.evaluation.report import RecallReport, RecordedAnswer
from deltamem_cli.evaluation.respondent import Answer, Respondent, answer

FACTS = (1, 3, 6)
DISTANCES = (100, 500)  # tokens
EVERYTHING = 1_000_000  # tokens: more than fit
FILLED = 3  # memories with which plain text is read

Task = Callable[[], None]


@dataclass
class Cases:
    """What one run tells and asks. facts: by the number of facts told; others: the same of the modes with own cases."""

    facts: dict[int, list[Case]]
    others: dict[str, dict[int, list[Case]]] = field(default_factory=dict)
    updates: list[Case] = field(default_factory=list)


def invented(limit: int, seed: int, facts: Sequence[int] = FACTS) -> Cases:
    """Cases that ask `limit` questions in each mode, or a few less: as many for each number of facts."""
    each = max(1, limit // len(facts))
    return Cases(
        {n: made.draw_cases(n, each, HELD_OUT, seed) for n in facts},
        {
            r.SEEN: {n: made.draw_cases(n, each, TRAIN, seed) for n in facts},
            r.NEW_KINDS: {n: made.draw_cases(n, each, HELD_OUT, seed, kinds=HELD_OUT) for n in facts},
        },
        made.draw_updates(min(facts), each, seed),
    )


def by_number_of_facts(cases: Sequence[Case], limit: int) -> Cases:
    """Given cases, the first that ask `limit` questions together."""
    chosen: list[Case] = []
    for case in cases:
        if sum(len(c.questions) for c in chosen) < limit:
            chosen.append(case)
    return Cases({n: [c for c in chosen if c.facts == n] for n in sorted({c.facts for c in chosen})})


class Runner:
    """Asks the questions of cases in every mode and adds the answers to a report."""

    def __init__(self, subject: Respondent, report: RecallReport, seed: int = 0) -> None:
        self.subject = subject
        replayed = subject.with_memory.engine.n_ctx_seq // 4  # as a chat does by itself
        # what a session of the conversation itself is given, per mode
        self._own: dict[str, dict[str, Any]] = {
            r.MEMORY: {},
            r.REPLAY: {"replay_tokens": replayed},
            r.CONTEXT: {"memory": False, "replay_tokens": EVERYTHING},
        }
        self.report = report
        self.seed = seed
        self._ids: dict[int, str] = {}  # conversation of each case

    def steps(self, cases: Cases) -> Iterator[tuple[str, Task]]:
        """What there is to do, in order, with a word about each."""
        for facts, row in cases.facts.items():
            name = f"{facts} facts" if facts > 1 else "1 fact"
            yield from self._telling(name, row)
            for index, case in enumerate(row):
                for mode in self._own:
                    yield f"{name}, {mode}", partial(self._ask, r.FACTS, mode, case)
                if donor := _donor(row, index):
                    yield f"{name}, donor", partial(self._ask, r.FACTS, r.DONOR, case, donor=donor)
                for mode in (r.ZERO, r.NONE) if index % 2 == 0 else ():  # whatever was told, it does not reach them
                    yield f"{name}, {mode}", partial(self._ask, r.FACTS, mode, case)
            for mode, own in cases.others.items():
                yield from self._telling(f"{name}, {mode}", own.get(facts, []))
                for case in own.get(facts, []):
                    yield f"{name}, {mode}", partial(self._ask, r.FACTS, mode, case)
        yield "plain text", self._stock
        for case in [case for row in reversed(cases.facts.values()) for case in row][:FILLED]:
            yield "plain text", partial(self._filled, case)
        for case in cases.updates:
            yield "update", partial(self._update, case)
        row = cases.facts[middle(cases.facts)]
        for before, distance in zip((0, *DISTANCES), DISTANCES, strict=False):
            name = f"{distance} tokens later"
            for index, case in enumerate(row):
                yield name, partial(self._talk, case, f"{self.seed} {index} {distance}", distance - before)
                yield name, partial(self._ask, r.DISTANCE, r.MEMORY, case, distance=distance)
                if index % 2 == 0:  # reading it all again costs more than everything else
                    for mode in (r.REPLAY, r.CONTEXT):
                        yield name, partial(self._ask, r.DISTANCE, mode, case, distance=distance)

    def _telling(self, name: str, row: Sequence[Case]) -> Iterator[tuple[str, Task]]:
        for case in row:
            yield f"{name}, telling", partial(self._tell, case)

    def _tell(self, case: Case) -> None:
        cid = None
        for session in case.sessions:
            cid = self.subject.tell(session, cid=cid, system=case.system)
        assert cid is not None  # a case tells something
        self._ids[id(case)] = cid

    def _talk(self, case: Case, seed: str, tokens: int) -> None:
        talk = made.unrelated_talk(seed)
        self.subject.tell(talk, cid=self._ids[id(case)], system=case.system, tokens=tokens)

    def _ask(self, test: str, mode: str, case: Case, *, donor: Case | None = None, distance: int = 0) -> None:
        if mode in (r.ZERO, r.NONE):
            session = self.subject.session(None, system=case.system, memory=mode == r.ZERO)
        else:
            cid = self._ids[id(donor or case)]
            session = self.subject.session(cid, system=case.system, **self._own.get(mode, {}))
        with session as opened:
            for question in case.questions:
                self._record(test, mode, case, question, answer(opened, question), distance)

    def _update(self, case: Case) -> None:
        self._tell(case)
        cid = self._ids[id(case)]
        question = case.questions[0]
        with self.subject.session(cid) as opened:
            old = replace(question, value=question.old)
            recalled = self._record(r.BEFORE, r.MEMORY, case, old, answer(opened, old))
        if recalled:
            self.subject.tell(case.update, cid=cid)
            with self.subject.session(cid) as opened:
                self._record(r.AFTER, r.MEMORY, case, question, answer(opened, question))

    def _record(self, test: str, mode: str, case: Case, asked: Asked, said: Answer, distance: int = 0) -> bool:
        found = recalls(said.text, asked.value)
        kind, question, value = asked.kind, asked.content, asked.value
        self.report.records.append(
            RecordedAnswer(test, mode, case.facts, distance, kind, question, value, said.text, found, said.tokens)
        )
        return found

    def _stock(self) -> None:
        self.report.stock_perplexity = self.subject.perplexity(PLAIN_TEXT)

    def _filled(self, case: Case) -> None:
        self.report.perplexities.append(self.subject.perplexity(PLAIN_TEXT, self._ids[id(case)]))


def middle(numbers: Iterable[int]) -> int:
    """The number of facts that distances are measured with."""
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]


def _donor(row: Sequence[Case], index: int) -> Case | None:
    """The next case that tells none of the values that this one asks for."""
    others = [*row[index + 1 :], *row[:index]]
    return next((c for c in others if not any(c.tells(q.value) for q in row[index].questions)), None)
