"""`dmem eval recall`: what it prints and refuses, on a tiny model; and that the shipped adapter recalls, on the starter."""

from __future__ import annotations

import json
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from deltamem_cli import cli
from deltamem_cli.engine import Engine
from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation import runner as running
from deltamem_cli.evaluation.report import RecallReport
from deltamem_cli.evaluation.respondent import Respondent
from deltamem_cli.evaluation.runner import Runner
from deltamem_cli.session.loading import load
from deltamem_cli.session.request import Request, settle

# Of the questions asked of the starter's memory here. A good way below what the shipped adapter reaches; raise it with a
# better one.
RECALL_FLOOR = 0.4

Run = Any


@pytest.fixture
def run(tmp_path: Path, tiny_model: Any, tiny_adapter: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """run(arguments): exit code, stdout and stderr of `dmem eval recall` on a tiny model."""
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(running, "DISTANCES", (20, 40))
    model = tiny_model("qwen3")

    def call(*arguments: str, adapter: Path | None = None) -> tuple[int, str, str]:
        own = ["-m", str(model), "--adapter", str(adapter or tiny_adapter(model)), "--threads", "1"]
        code = cli.main(["eval", "recall", *own, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_tables_name_every_mode_and_number_of_facts(run: Run) -> None:
    code, out, err = run("--limit", "4", "--facts", "1,2")
    assert code == 0, err
    for mode in r.MODES:
        assert r.NAMES[mode] in out
    facts, distance = (part.splitlines() for part in out.split("Recall after"))
    assert any(line.split()[-5:-3] == ["1", "2"] for line in facts)
    assert any(line.split()[-6:-3] == ["0", "20", "40"] for line in distance)
    for words in ("Update: ", "Plain text: perplexity ", "By kind of fact"):
        assert words in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_json_is_one_document_with_all_that_was_asked_for(run: Run) -> None:
    code, out, err = run("--limit", "3", "--facts", "3", "--seed", "5", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["seed"] == 5 and found["complete"] and found["model"]["name"] and found["adapter"]["fingerprint"]
    assert set(found["facts"]) == {"3"} and set(found["facts"]["3"]) == set(r.MODES)
    assert found["cases"]["facts"]["3"][r.MEMORY] == found["cases"]["facts"]["3"][r.SEEN] == 3
    assert set(found["distance"]) == {"0", "20", "40"}
    assert found["perplexity"]["ratio"] > 0 and found["update"].keys() == {"before", "after"}
    again = json.loads(run("--limit", "3", "--facts", "3", "--seed", "5", "--json")[1])
    assert again == found, "the same seed asks the same and hears the same"


def test_own_cases_are_asked_and_their_facts_counted(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    said = [{"role": "user", "content": "The code is 17."}, {"role": "assistant", "content": "Fine."}]
    asked = [{"content": "Which code?", "answer": "It is 17.", "value": "17"}]
    file.write_text(json.dumps({"messages": said, "questions": asked}) + "\n")
    code, out, err = run("--data", str(file), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["cases"]["facts"] == {"1": dict.fromkeys([r.NONE, r.ZERO, r.MEMORY, r.REPLAY, r.CONTEXT], 1)}
    assert {a["question"] for a in found["answers"]} == {"Which code?"} and found["cases"]["update"]["before"] == 0


def test_ctrl_c_shows_what_was_measured_so_far(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = running.answer, []

    def interrupted(session: Any, question: Any) -> Any:
        asked.append(question)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(session, question)

    monkeypatch.setattr(running, "answer", interrupted)
    code, out, _ = run("--limit", "9", "--facts", "1", "--json")
    found = json.loads(out)
    assert code == 130 and not found["complete"] and len(found["answers"]) == 3
    asked.clear()
    code, out, _ = run("--limit", "9", "--facts", "1")
    assert code == 130 and "Recall by facts told" in out and "Update" not in out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--facts", "0"], "--facts"),
        (["--facts", "1,x"], "--facts"),
        (["--facts", "21"], "--facts"),
        (["--facts", "²"], "--facts"),
        (["--image", "recall.gif"], ".svg"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(run: Run, arguments: list[str], says: str) -> None:
    code, out, err = run(*arguments, adapter=Path("nowhere.gguf"))
    assert code == 2 and out == "" and says in err


def test_a_model_without_adapter_has_no_memory_to_measure(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path))
    assert cli.main(["eval", "recall", "-m", str(tiny_model("qwen3"))]) == 1
    assert "no memory to measure" in capsys.readouterr().err


def test_image_is_written(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "recall.svg"
    code, out, err = run("--limit", "1", "--facts", "1", "--image", str(file), "--json")
    assert code == 0 and str(file) in err
    assert file.read_bytes().startswith(b"<svg") and json.loads(out)


def test_the_shipped_adapter_recalls_and_it_is_the_memory_that_does(home: Path) -> None:
    cases = running.Cases(running.invented(12, 0, (1, 3)).facts)
    report = RecallReport()
    with ExitStack() as stack:
        loaded = load(stack, settle(Request(), None))
        plain = stack.enter_context(Engine(loaded.engine.model, None, loaded.engine.options))
        # what follows, perplexity and distances, is another matter
        steps = Runner(Respondent(loaded, plain, home / "memory.db"), report).steps(cases)
        for name, step in takewhile(lambda named: named[0] != "plain text", steps):
            if not name.endswith((r.REPLAY, r.CONTEXT)):
                step()
    asked = {mode: [one.recalled for one in report.records if one.mode == mode] for mode in r.MODES}
    assert sum(asked[r.MEMORY]) / len(asked[r.MEMORY]) >= RECALL_FLOOR, asked
    assert sum(asked[r.MEMORY]) > max(sum(asked[mode]) for mode in (r.DONOR, r.ZERO, r.NONE)), asked
    assert len(asked[r.DONOR]) == 12 and len(asked[r.ZERO]) == len(asked[r.NONE]) == 6
