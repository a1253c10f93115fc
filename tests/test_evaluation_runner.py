"""The modes of the evaluation differ in what they should differ in, and in nothing else: on a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltamem_cli import config
from deltamem_cli.engine import Engine
from deltamem_cli.episodes.kinds import HELD_OUT_KINDS
from deltamem_cli.evaluation import cases as made
from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation import runner as running
from deltamem_cli.evaluation.cases import Asked, Case, ToldTurn
from deltamem_cli.evaluation.perplexity import perplexity
from deltamem_cli.evaluation.report import RecallReport
from deltamem_cli.evaluation.respondent import Answer, Respondent
from deltamem_cli.evaluation.runner import Cases, Runner
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import load
from deltamem_cli.session.request import Request, settle
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store

Q = Asked("Where?", "Rome", "city")
ROW = [
    Case(1, [[ToldTurn("I live in Rome.", "Fine."), ToldTurn("How are you?", "Well, thank you.")]], [Q, Q]),
    Case(
        1, [[ToldTurn("I live in Oslo.", "Okay.")], [ToldTurn("It is cold.", None)]], [Asked("Where?", "Oslo", "city")]
    ),
]
UPDATE = Case(
    1,
    [[ToldTurn("I live in Rome.", "Fine.")]],
    [Asked("Where?", "Bonn", "city", "Rome")],
    update=[ToldTurn("Now Bonn.", "Okay.")],
)


@pytest.fixture
def subject(
    tmp_path: Path, tiny_model: Any, tiny_adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Respondent]:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    model = tiny_model("qwen3")
    with ExitStack() as stack:
        loaded = load(stack, Request(model=model, adapter=tiny_adapter(model), ctx_size=1024, threads=1))
        plain = stack.enter_context(Engine(loaded.engine.model, None, loaded.engine.options))
        yield Respondent(loaded, plain, tmp_path / "memory.db")


@dataclass
class Seen:
    """What was there when a question was asked."""

    state: bytes | None
    visible: list[int]  # turns
    shown: list[int]  # their tokens
    n_head: int


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Filled by every question; the answer is always Rome."""
    found: list[Seen] = []

    def look(session: ChatSession, question: Asked) -> Answer:
        state = session.seat.state().tobytes() if session.engine.has_memory else None
        visible = session.window.turns
        shown = [token for turn in visible for token in session.window.tokens(turn)]
        found.append(Seen(state, visible, shown, len(session.window.head)))
        return Answer("It is Rome.", session.window.n_past)

    monkeypatch.setattr(running, "answer", look)
    return found


def run(subject: Respondent, cases: Cases) -> tuple[RecallReport, Runner]:
    report = RecallReport()
    runner = Runner(subject, report)
    for _, step in runner.steps(cases):
        step()
    return report, runner


def by_mode(report: RecallReport, seen: list[Seen], test: str = r.FACTS) -> dict[str, list[Seen]]:
    assert len(report.records) == len(seen)
    found: dict[str, list[Seen]] = {}
    for record, moment in zip(report.records, seen, strict=True):
        if record.test == test:
            found.setdefault(record.mode, []).append(moment)
    return found


def told(subject: Respondent, cid: str) -> tuple[bytes, list[int]]:
    """The state that a conversation was left with, before any talk, and the tokens that wrote it."""
    with Store.open(subject.database) as store:
        said = [turn for turn in turns.all_of(store, cid) if turn.number <= 2]
        snapshot = states.after(store, cid, said[-1].number)
        assert snapshot is not None
        return snapshot.state.tobytes(), [
            token for turn in said for message in turn.messages for token in message.tokens
        ]


def test_each_mode_has_the_state_and_the_context_that_it_is_named_for(subject: Respondent, seen: list[Seen]) -> None:
    report, runner = run(subject, Cases({1: ROW}, {r.SEEN: {1: ROW[:1]}, r.NEW_KINDS: {1: ROW[1:], 2: []}}))
    modes = by_mode(report, seen)
    rome, oslo = (told(subject, runner._ids[id(case)]) for case in ROW)
    # two questions about Rome, one about Oslo
    assert [s.state for s in modes[r.MEMORY]] == [rome[0], rome[0], oslo[0]]
    assert [s.state for s in modes[r.REPLAY]] == [rome[0], rome[0], oslo[0]]
    assert [s.state for s in modes[r.DONOR]] == [oslo[0], oslo[0], rome[0]]
    assert all(s.state is not None and not any(s.state) for s in modes[r.ZERO]) and len(modes[r.ZERO]) == 2
    assert [s.state for s in modes[r.NONE]] == [None] * 2 and [s.state for s in modes[r.CONTEXT]] == [None] * 3
    assert rome[0] != oslo[0] and any(rome[0]) and any(oslo[0])
    for mode in (r.MEMORY, r.DONOR, r.ZERO, r.NONE, r.SEEN, r.NEW_KINDS):
        assert all(s.visible == [] for s in modes[mode]), f"{mode} sees earlier turns"
    for mode in (r.REPLAY, r.CONTEXT):
        # a remembered text is never shown again
        assert [s.visible for s in modes[mode]] == [[1, 2], [1, 2], [1]]
        assert modes[mode][0].shown == rome[1]


def test_only_the_conversation_itself_changes_with_distance(
    subject: Respondent, seen: list[Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "DISTANCES", (400, 500))
    report, runner = run(subject, Cases({1: ROW}))
    later = by_mode(report, seen, r.DISTANCE)
    assert [record.distance for record in report.records if record.test == r.DISTANCE and record.mode == r.MEMORY] == [
        400, 400, 400, 500, 500, 500,
    ]  # fmt: skip
    own, _ = told(subject, runner._ids[id(ROW[0])])
    first, second = later[r.MEMORY][0], later[r.MEMORY][3]
    assert len({own, first.state, second.state}) == 3 and first.visible == second.visible == []
    near, far = later[r.CONTEXT][0], later[r.CONTEXT][-1]
    assert near.visible[0] == far.visible[0] == 1, "the whole transcript is shown"
    with Store.open(subject.database) as store:
        said = turns.all_of(store, runner._ids[id(ROW[0])])
    talk = [sum(len(m.tokens) for m in turn.messages) for turn in said if turn.number > 2]
    assert 500 <= sum(talk) < 500 + 2 * max(talk) < 900
    replayed = later[r.REPLAY][-1]
    assert replayed.visible[-1] == far.visible[-1] and 0 < len(replayed.shown) <= 1024 // 4


def test_telling_starts_with_an_empty_context_and_writes_no_head(subject: Respondent) -> None:
    exchanges = [ToldTurn("I live in Rome.", "Fine.")]
    cid = subject.tell(exchanges)
    subject.tell(exchanges, cid=cid)
    with Store.open(subject.database) as store:
        first, second = turns.all_of(store, cid)
        state = states.after(store, cid, 1)
    assert [m.text for m in first.messages] == ["I live in Rome.", "Fine."]
    assert second.context["replayed"] == [] and second.context["n_past"] == len(second.context["head"])
    # the same tokens, fed by hand behind a head that is not written
    seat = subject.with_memory.seat
    seat.clear_state()
    seat.clear_context()
    if head := first.context["head"]:
        seat.feed(head, write=False)
    seat.feed([token for message in first.messages for token in message.tokens])
    assert state is not None and np.allclose(seat.state(), state.state, atol=1e-5)


def test_questions_do_not_disturb_each_other(subject: Respondent) -> None:
    cid = subject.tell(ROW[0].sessions[0])
    with subject.session(cid) as session:
        before, n_past = session.seat.state().tobytes(), session.window.n_past
        first = running.answer(session, Q)
        assert session.seat.state().tobytes() == before and session.window.n_past == n_past
        assert running.answer(session, Q) == first
    with subject.session(cid) as session:
        assert session.seat.state().tobytes() == before
        assert running.answer(session, Q) == first
    assert first.tokens > n_past


def test_an_update_is_asked_about_where_the_old_value_was_recalled(subject: Respondent, seen: list[Seen]) -> None:
    lost = Case(1, UPDATE.sessions, [Asked("Where?", "Bonn", "city", "Lima")], update=UPDATE.update)
    report, _ = run(subject, Cases({1: ROW}, updates=[UPDATE, lost]))
    found = [(x.test, x.value, x.recalled) for x in report.records if x.test in (r.BEFORE, r.AFTER)]
    assert found == [(r.BEFORE, "Rome", True), (r.AFTER, "Bonn", False), (r.BEFORE, "Lima", False)]
    before, after = (by_mode(report, seen, test)[r.MEMORY] for test in (r.BEFORE, r.AFTER))
    assert before[0].state == before[1].state != after[0].state


def test_plain_text_is_read_with_filled_memories_and_with_none(subject: Respondent) -> None:
    cid = subject.tell(ROW[0].sessions[0])
    stock, memory = subject.perplexity("The old mill."), subject.with_memory.seat
    own = memory.state()
    memory.clear_state()
    filled = subject.perplexity("The old mill.", cid)
    memory.set_state(own)
    tokens = memory.model.tokenize("The old mill.")
    assert filled == perplexity(memory, tokens) != stock
    memory.clear_state()
    assert filled != perplexity(memory, tokens)
    seat = subject.without_memory.seat
    assert stock == perplexity(seat, tokens)
    total = 0.0
    for i in range(1, len(tokens)):
        seat.clear_context()
        logits = seat.feed(tokens[:i]).astype(np.float64)
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[i]]
    assert stock == pytest.approx(np.exp(total / (len(tokens) - 1)), rel=1e-3)


def test_a_donor_tells_none_of_the_values_that_are_asked_for(subject: Respondent, seen: list[Seen]) -> None:
    same = [Case(1, ROW[0].sessions, [Q]), Case(1, ROW[0].sessions, [Q])]
    report, _ = run(subject, Cases({1: same}))
    assert r.DONOR not in report.facts[1]


def test_given_cases_are_taken_until_there_are_as_many_questions_as_wanted() -> None:
    many = [Case(facts, ROW[0].sessions, [Q] * facts) for facts in (2, 1, 1, 3)]
    chosen = running.by_number_of_facts(many, 3)
    assert {facts: len(row) for facts, row in chosen.facts.items()} == {1: 1, 2: 1}
    assert not chosen.others and not chosen.updates


def test_invented_cases_ask_in_each_mode_what_the_limit_says() -> None:
    cases = running.invented(20, 0)
    assert list(cases.others) == [r.SEEN, r.NEW_KINDS]
    for rows in (cases.facts, *cases.others.values()):
        assert {facts: sum(len(case.questions) for case in row) for facts, row in rows.items()} == {1: 6, 3: 6, 6: 6}
    assert len(cases.updates) == 6
    assert cases.facts[1] == made.draw_cases(1, 6, "held-out", 0)
    assert cases.others[r.SEEN][1] == made.draw_cases(1, 6, "train", 0)
    new = cases.others[r.NEW_KINDS]
    assert new[1] == made.draw_cases(1, 6, "held-out", 0, kinds="held-out")
    assert {q.kind for row in new.values() for case in row for q in case.questions} <= set(HELD_OUT_KINDS)
    # there are fewer kinds than that
    assert running.invented(20, 0, (20,)).others[r.NEW_KINDS] == {20: []}


def test_a_template_configured_for_one_model_is_not_used_to_measure_another(
    tmp_path: Path, subject: Respondent, tiny_model: Any
) -> None:
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}OTHER {{ m.content }}{% endfor %}")
    config.set_value("model", "other.gguf")
    config.set_value("template", str(template))
    named = settle(Request(model=tiny_model("qwen3")), None)
    for request, is_used in ((named, False), (settle(Request(), None), True)):
        measured = Respondent(subject.with_memory, subject.without_memory.engine, tmp_path / "x.db", request=request)
        with measured.session() as session:
            assert (str(template) in session.prompt.used.name) == is_used
