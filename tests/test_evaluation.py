"""What counts as recalled, what a number of cases proves, and what is told and asked: without any model."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deltamem_cli.episodes import HELD_OUT, TRAIN
from deltamem_cli.episodes import phrasings as p
from deltamem_cli.episodes.kinds import BY_NAME, kinds_of
from deltamem_cli.episodes.split import part_of_value
from deltamem_cli.errors import DeltamemError
from deltamem_cli.evaluation import cases as made
from deltamem_cli.evaluation import recall_picture, report
from deltamem_cli.evaluation.cases import Case
from deltamem_cli.evaluation.matching import recalls, sentence_is_over
from deltamem_cli.evaluation.report import RecallReport, RecordedAnswer, document
from deltamem_cli.evaluation.shares import Share
from deltamem_cli.pictures.png import png
from deltamem_cli.pictures.svg import svg


@pytest.mark.parametrize(
    "answer, value",
    [
        ("Your name is Ana.", "Ana"),
        ("Ana.", "Ana"),
        ("Ana", "Ana"),
        ("  \n Your cat is Tom", "Tom"),
        ("You said “Ana”, I think.", "Ana"),
        ("Ana's your name.", "Ana"),
        ("You are 12 years old!", "12"),
        ("You get up at 7:05.", "7:05"),
        ("You work for Stone Labs, don't you?", "Stone Labs"),
        ("It is on May  5.", "May 5"),
        ("You live at St. Ives, I think. Yes.", "St. Ives"),
        ("Jose\u0301 is your name.", "Jos\u00e9"),
        ("It costs 3.5 coins and Ana paid.", "Ana"),
    ],
)
def test_a_value_word_for_word_in_the_first_sentence_is_recalled(answer: str, value: str) -> None:
    assert recalls(answer, value)


@pytest.mark.parametrize(
    "answer, value",
    [
        ("", "Ana"),
        ("Your name is ana.", "Ana"),
        ("Your name is Anabel.", "Ana"),
        ("Your name is Joana.", "ana"),
        ("Your name is Ana-Maria.", "Ana"),
        ("Your name is Marie-Ana.", "Ana"),
        ("I know. Your name is Ana.", "Ana"),
        ("I know!\nAna", "Ana"),
        ("I know: yes\nAna", "Ana"),
        ("You get up at 12:30.", "12"),
        ("You get up at 12:30.", "30"),
        ("You get up at 17:05.", "7:05"),
        ("It is 1.12 long.", "12"),
        ("Code 3456.", "345"),
    ],
)
def test_anything_else_is_not(answer: str, value: str) -> None:
    assert not recalls(answer, value)


@pytest.mark.parametrize(
    "answer, value, over",
    [
        ("\n Your number is 3.", "3.5", False),  # 5 may come
        ("Your number is 3.5", "3.5", False),
        ("Your name is Ana", "Ana", False),
        ("Your name is Ana. ", "Ana", True),
        ("“Your name is Ana!” ", "Ana", True),
        ("Your name is Ana\n", "Ana", True),
        ("You live in St. ", "St. Ives", False),
        ("You live in St. Ives. ", "St. Ives", True),
        ("You live in St. ", "Ives", True),
    ],
)
def test_an_answer_is_read_until_its_first_sentence_is_over(answer: str, value: str, over: bool) -> None:
    assert sentence_is_over(answer, value) == over


def test_wilson_intervals_are_those_of_the_literature() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert Share(hits, n).interval == pytest.approx((low, high), abs=5e-5)
    assert Share(20, 20).interval == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert Share(0, 0).interval == (0.0, 1.0) and Share(0, 0).value == 0.0


def test_wilson_intervals_hold_the_truth_in_95_of_100_cases() -> None:
    rng = random.Random(0)
    for truth in (0.02, 0.5, 0.9):
        held = []
        for _ in range(2000):
            low, high = Share.of(rng.random() < truth for _ in range(50)).interval
            held.append(low <= truth <= high)
        assert 0.92 < sum(held) / len(held) < 0.985


# cases


def told(case: Case) -> list[made.ToldTurn]:
    return [exchange for session in case.sessions for exchange in session]


@pytest.mark.parametrize("facts", [1, 3, 6])
def test_as_many_questions_as_wanted_are_asked_and_never_about_a_single_conversation(facts: int) -> None:
    for wanted in (1, 7, 20):
        cases = made.draw_cases(facts, wanted, HELD_OUT, 0)
        assert sum(len(case.questions) for case in cases) == wanted
        assert len(cases) >= 2
        assert all(len(case.questions) <= made.QUESTIONS_PER_CASE for case in cases)
        assert all(len(told(case)) == facts for case in cases)


def test_memory_shares_no_value_and_no_phrasing_with_the_training_and_seen_shares_the_values_alone() -> None:
    for values in (HELD_OUT, TRAIN):
        cases = [case for facts in (1, 3, 6) for case in made.draw_cases(facts, 60, values, 3)]
        for case in [*cases, *made.draw_updates(1, 30, 3)] if values == HELD_OUT else cases:
            for question in case.questions:
                kind = BY_NAME[question.kind]
                assert all(part_of_value(v) == values for v in (question.value, question.old) if v)
                # no text that training can make, whatever value it puts in
                trained = {
                    w.replace("{q}", q)
                    for w in p.of_part(p.ASKED_WRAPPED, TRAIN)
                    for qs in p.asked(kind, TRAIN)
                    for q in qs
                }
                assert question.content not in trained
                said = {
                    w.replace("{s}", s)
                    for ws in (p.WRAPPED, p.CORRECTED)
                    for w in p.of_part(ws, TRAIN)
                    for ss in p.said(kind, TRAIN)
                    for s in ss
                }
                assert not {s.replace("{v}", question.value) for s in said} & {e.said for e in told(case)}
    new = [case for facts in (1, 3, 6) for case in made.draw_cases(facts, 60, HELD_OUT, 3, kinds=HELD_OUT)]
    assert new and not {q.kind for case in new for q in case.questions} & {kind.name for kind in kinds_of(TRAIN)}
    talk = [next(talk) for talk in [made.unrelated_talk("x")] for _ in range(40)]
    assert not {e.said for e in talk} & {question for question, _ in p.talk(TRAIN)}


def test_a_seed_draws_its_own_cases_and_the_same_every_time() -> None:
    assert made.draw_cases(3, 9, HELD_OUT, 1) == made.draw_cases(3, 9, HELD_OUT, 1)
    assert made.draw_cases(3, 9, HELD_OUT, 1) != made.draw_cases(3, 9, HELD_OUT, 2)
    assert made.draw_updates(1, 3, 1) == made.draw_updates(1, 3, 1) != made.draw_updates(1, 3, 2)


def test_an_update_tells_the_new_value_and_only_then() -> None:
    for case in made.draw_updates(1, 20, 0):
        (question,) = case.questions
        assert question.old != question.value
        assert any(question.old in exchange.said for exchange in told(case))
        as_word = re.compile(rf"(?<!\w){re.escape(question.value)}(?!\w)")
        assert not any(as_word.search(exchange.said) for exchange in told(case))
        assert any(question.value in exchange.said for exchange in case.update)


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(value: str, **more: object) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": f"It is {value}."}, {"role": "assistant", "content": "Okay."}],
        "questions": [{"content": "What is it?", "answer": f"It is {value}.", "value": value}],
        **more,
    }


def test_cases_of_a_file_are_its_validation_lines_or_all_where_none_is_marked(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", line("one"), line("two", validation=True, system="Be kind."))
    (only,) = made.read_cases(file)
    assert (only.questions[0].value, only.system, only.facts) == ("two", "Be kind.", 1)
    assert only.sessions == [[made.ToldTurn("It is two.", "Okay.")]]
    assert len(made.read_cases(write_lines(tmp_path / "b.jsonl", line("one"), line("two")))) == 2


def test_a_file_without_values_or_with_a_reply_to_nothing_is_refused(tmp_path: Path) -> None:
    without = line("one") | {"questions": [{"content": "What?", "answer": "It is one."}]}
    with pytest.raises(DeltamemError, match="asks for no value"):
        made.read_cases(write_lines(tmp_path / "a.jsonl", without))
    first = line("one") | {"messages": [{"role": "assistant", "content": "Hello"}]}
    with pytest.raises(DeltamemError, match="follows no message of the user"):
        made.read_cases(write_lines(tmp_path / "b.jsonl", first))


def test_reading_and_drawing_cases_needs_no_torch() -> None:
    code = (
        "import sys; from deltamem_cli.evaluation import cases, runner; import deltamem_cli.episodes.jsonl;"
        "cases.draw_cases(1, 2, 'held-out', 0); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# report


def record(
    test: str, mode: str, recalled: bool, facts: int = 1, distance: int = 0, kind: str = "city"
) -> RecordedAnswer:
    return RecordedAnswer(test, mode, facts, distance, kind, "Where?", "Rome", "In Rome.", recalled, 40 + distance)


def filled() -> RecallReport:
    made = RecallReport()
    for mode in report.MODES:
        for facts in (1, 3):
            made.records += [record("facts", mode, recalled, facts) for recalled in (True, True, False, False)]
    for mode in report.OWN:
        made.records += [record("distance", mode, recalled, 3, 500) for recalled in (True, False, False, False)]
    made.records += [record("before update", "memory", recalled) for recalled in (True, True, True, False)]
    made.records += [record("after update", "memory", recalled) for recalled in (True, False, False)]
    made.stock_perplexity, made.perplexities = 20.0, [20.2, 20.6]
    return made


def test_the_document_has_every_table_with_its_cases_intervals_and_tokens() -> None:
    found = json.loads(json.dumps(document(filled())))
    assert set(found["facts"]) == {"1", "3"}
    for row in found["facts"].values():
        assert row == dict.fromkeys(report.MODES, 0.5)
    assert found["distance"] == {"0": dict.fromkeys(report.OWN, 0.5), "500": dict.fromkeys(report.OWN, 0.25)}
    assert found["relative"] == {"500": 0.5}
    assert found["update"] == {"before": 0.75, "after": 0.3333}
    assert found["perplexity"] == {"stock": 20.0, "memory": [20.2, 20.6], "ratio": 1.02}
    assert found["kinds"]["city"]["memory"] == 0.5
    assert found["cases"]["facts"]["1"]["memory"] == 4 and found["cases"]["update"] == {"before": 4, "after": 3}
    assert found["tokens"]["distance"]["500"]["memory"] == 540
    for table in ("facts", "distance", "kinds"):
        for name, row in found[table].items():
            for mode, value in row.items():
                low, high = found["intervals"][table][name][mode]
                assert 0 <= low <= value <= high <= 1
    assert len(found["answers"]) == len(filled().records) and found["answers"][0]["answer"] == "In Rome."


def test_an_empty_report_is_a_document_too() -> None:
    found = document(RecallReport())
    assert found["facts"] == {} and found["perplexity"]["ratio"] is None and found["relative"] == {}


def test_nothing_is_relative_to_a_memory_that_recalled_nothing() -> None:
    made = RecallReport([record("facts", "memory", False, 3), record("distance", "memory", True, 3, 500)])
    assert made.relative(500) is None


@pytest.mark.parametrize("of", [filled, RecallReport])
def test_the_picture_has_a_mark_and_an_interval_for_every_share_inside_its_frame(of: object) -> None:
    made = of()  # type: ignore[operator]
    drawn = recall_picture.draw(made, 'a <b> & "c"')
    shares = [
        (m, report.share(rs)) for t in (made.facts, made.distances) for row in t.values() for m, rs in row.items()
    ]
    for mode, colour in recall_picture.COLOURS.items():
        own = [share for m, share in shares if m == mode]
        lines = [s for s in drawn.shapes if isinstance(s, recall_picture.Line) and s.colour == colour]
        heights = sorted(abs(s.points[0][1] - s.points[1][1]) for s in lines if s.points[0][0] == s.points[1][0])
        assert heights == pytest.approx(sorted(recall_picture._HEIGHT * (s.interval[1] - s.interval[0]) for s in own))
        marks = [s for s in drawn.shapes if isinstance(s, recall_picture.Rect) and s.colour == colour]
        assert len(marks) == len(own) + bool(own)  # one in the legend
    for shape in drawn.shapes:
        points = shape.points if isinstance(shape, recall_picture.Line) else [(shape.x, shape.y)]
        assert all(0 <= x <= drawn.width and 0 <= y <= drawn.height for x, y in points)
    ElementTree.fromstring(svg(drawn))
    assert png(drawn).startswith(b"\x89PNG")


def test_half_recalled_is_drawn_half_way_up() -> None:
    made = RecallReport([record("facts", "memory", recalled) for recalled in (True, False)])
    marks = [s for s in recall_picture.draw(made, "").shapes if isinstance(s, recall_picture.Rect)]
    middle = recall_picture._TOP + recall_picture._HEIGHT // 2
    assert any(s.y + s.height // 2 == middle for s in marks)
    assert math.isclose(Share(1, 2).value, 0.5)
