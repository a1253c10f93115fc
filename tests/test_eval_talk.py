"""`dmem eval talk`: its hand-written conversations, which answers are right, and what it prints and keeps on a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deltamem_cli import cli
from deltamem_cli.commands.eval.talk_tables import _HEADINGS, _ROWS
from deltamem_cli.evaluation import talk
from deltamem_cli.evaluation.talk_cases import CATEGORIES, NEVER, Asked, conversations, first_sentences, is_right

Run = Any


def test_there_are_two_hundred_conversations_of_every_category() -> None:
    every = conversations()
    found = Counter(c.category for c in every)
    assert len(every) >= 200 and set(found) == set(CATEGORIES) and min(found.values()) >= 10
    assert len({c.id for c in every}) == len(every)


def test_a_value_is_told_and_not_in_its_question() -> None:
    for c in conversations():
        told = " ".join(c.told)
        for q in c.asked:
            assert bool(q.value) == (c.category != NEVER)
            assert not is_right(q.ask, q) or not q.value, c.id
            assert not q.value or any(v.casefold() in told.casefold() for v in q.value), c.id
            assert all(o.casefold() in told.casefold() for o in q.old[:1]), c.id


def test_no_conversation_stands_in_the_training_data() -> None:
    from deltamem_cli.episodes import spoken

    said = {t.casefold() for kind in spoken._read() for t in kind["said"]}
    for c in conversations():
        assert not {m.casefold() for m in c.told} & said, c.id


@pytest.mark.parametrize(
    ("answer", "value", "old", "right"),
    [
        ("Your dog is called Rex.", ["Rex"], [], True),
        ("That is rex!", ["Rex"], [], True),
        ("You have a dog. It's a good one. Its name is Rex.", ["Rex"], [], False),
        ("It is at 7:30 p.m.", ["7:30", "half past seven"], [], True),
        ("It is at 17:30.", ["7:30"], [], False),
        ("Anastasia is your sister.", ["Ana"], [], False),
        ("You moved to Porto, not Lisbon.", ["Porto"], ["Lisbon"], True),
        ("Lisbon, or Porto.", ["Porto"], ["Lisbon"], False),
        ("I don't know your brother's name.", [], [], True),
        ("You haven’t told me where you live.", [], [], True),
        ("I'm not sure what your shift is.", [], [], True),
        ("Your brother is called Tom.", [], [], False),
        ("", [], [], False),
        ("", ["Rex"], [], False),
    ],
)
def test_an_answer_is_right_when_its_first_sentences_say_so(
    answer: str, value: list[str], old: list[str], right: bool
) -> None:
    assert is_right(answer, Asked("?", tuple(value), tuple(old))) == right


def test_sentences_end_at_marks_before_a_space_and_at_lines() -> None:
    assert first_sentences("One 3.5 is. Two! Three?") == "One 3.5 is. Two!"
    assert first_sentences("One\nTwo\nThree").split() == ["One", "Two"]
    assert first_sentences("Only one") == "Only one"


def test_a_part_has_as_large_a_share_of_each_category() -> None:
    few = Counter(c.category for c in conversations(40))
    assert set(few) == set(CATEGORIES) and 36 <= sum(few.values()) <= 44
    assert few["plain"] > few["after_talk"]


@pytest.fixture
def run(tmp_path: Path, tiny_model: Any, tiny_adapter: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """run(arguments): exit code, stdout and stderr of `dmem eval talk` about a few conversations, on a tiny model."""
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(talk, "REPLY_TOKENS", 4)
    monkeypatch.setattr(talk, "ANSWER_TOKENS", 4)
    model = tiny_model("qwen3")
    own = ["-m", str(model), "--adapter", str(tiny_adapter(model)), "--threads", "1", "--limit", "10"]

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["eval", "talk", *own, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_table_names_every_control_and_category(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--image", str(tmp_path / "talk.svg"))
    assert code == 0, err
    lines = [line.strip() for line in out.splitlines()]
    rows = {mode: [line for line in lines if line.startswith(_ROWS[mode])] for mode in talk.MODES}
    assert all(rows.values()) and max(map(len, lines)) <= 110
    assert all(heading in out for heading in _HEADINGS.values())
    picture = (tmp_path / "talk.svg").read_text(encoding="utf-8")
    assert all(name in picture for name in CATEGORIES.values())


def test_json_has_shares_intervals_and_every_answer(run: Run) -> None:
    code, out, err = run("--json", "--write", "user")
    assert code == 0, err
    found = json.loads(out)
    assert found["complete"] and found["write"] == "user" and set(found["right"]) == set(talk.MODES)
    asked = sum(len(c.asked) for c in conversations(10))
    assert len(found["answers"]) == len(talk.MODES) * asked
    for mode in talk.MODES:
        low, high = found["intervals"][mode]["told"]
        assert low <= found["right"][mode]["told"] <= high


def test_a_run_that_was_stopped_goes_on_with_the_answers_that_it_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "answers.jsonl"
    real, told = talk._tell, []

    def stopped(subject: Any, conversation: Any) -> str:
        told.append(conversation.id)
        if len(told) == 4:
            raise KeyboardInterrupt
        return real(subject, conversation)

    monkeypatch.setattr(talk, "_tell", stopped)
    code, out, _ = run("--answers", str(kept), "--json")
    assert code == 130 and not json.loads(out)["complete"]
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 2
    kept.write_text("\n".join([*lines, lines[-1][:20]]), encoding="utf-8")  # killed within a line
    told.clear()
    monkeypatch.setattr(talk, "_tell", lambda s, c: told.append(c.id) or real(s, c))
    code, out, err = run("--answers", str(kept), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert conversations(10)[0].id not in told
    assert len(found["answers"]) == len({(a["conversation"], a["mode"], a["question"]) for a in found["answers"]})
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 1 + len(found["answers"])


def test_answers_of_another_setting_are_refused(run: Run, tmp_path: Path) -> None:
    kept = tmp_path / "answers.jsonl"
    kept.write_text("{}\n", encoding="utf-8")
    code, _, err = run("--answers", str(kept))
    assert code == 1 and "another model, adapter or setting" in err
    kept.write_text("no answers\n", encoding="utf-8")
    code, _, err = run("--answers", str(kept))
    assert code == 1 and "has no answers" in err
    assert kept.read_text(encoding="utf-8") == "no answers\n"
