"""`dmem eval locomo` and the others: how they score, what they make of their data, and what they print and keep.

The data is made here, in the same shapes and with the same traps. DMEM_TESTS_LOCOMO names a real locomo10.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hub_server import serving

from deltamem_cli import cli
from deltamem_cli.commands.eval import benchmark_tables
from deltamem_cli.engine import Engine, EngineOptions, Model, Seat
from deltamem_cli.engine.sampling import Sampling
from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.benchmarks import data, hotpotqa, locomo, longmemeval, measure, memoryagentbench, scoring
from deltamem_cli.evaluation.benchmarks.shape import Benchmark, Question, newest_first_out
from deltamem_cli.evaluation.benchmarks.whole_history import Reader
from deltamem_cli.evaluation.cases import ToldTurn
from deltamem_cli.evaluation.errors import EvaluationError
from deltamem_cli.session.prompt import Prompt

Run = Any
BENCHMARKS = (locomo.LOCOMO, memoryagentbench.MEMORYAGENTBENCH, longmemeval.LONGMEMEVAL, hotpotqa.HOTPOTQA)


def words(text: str) -> int:
    return len(text.split())


def turn(speaker: str, text: str, **more: str) -> dict[str, str]:
    return {"speaker": speaker, "dia_id": "D1:1", "text": text, **more}


def talk(name: str, pet: str) -> dict[str, Any]:
    """A conversation with LoCoMo's traps."""
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bo",
            "session_10_date_time": "1 pm on 3 March, 2023",
            "session_10": [turn("Ann", "The tenth."), turn("Bo", "And last.")],
            "session_2_date_time": "1 pm on 2 March, 2023",
            "session_2": [turn("Bo", f"My cat is {pet}.", blip_caption="a cat"), turn("Ann", "Nice.")],
            "session_3_date_time": "1 pm on 2 March, 2023",
            "session_3": [],
            "session_11_date_time": "never held",
        },
        "qa": [
            {"question": "What is Bo's cat called?", "answer": pet, "evidence": ["D2:1"], "category": 4},
            {"question": "When did Bo tell it?", "answer": 2023, "evidence": [], "category": 2},
            {"question": "What do they like?", "answer": "cats, tea", "evidence": ["D2:1; D3"], "category": 1},
            {"question": "Are they friends?", "answer": "Yes; they talk", "evidence": [], "category": 3},
            {"question": "What never was?", "adversarial_answer": "x", "category": 5},
        ],
    }


@pytest.fixture
def locomo_file(tmp_path: Path) -> Path:
    path = tmp_path / "locomo10.json"
    path.write_text(json.dumps([talk("conv-1", "Rex"), talk("conv-2", "Pip")]), encoding="utf-8")
    return path


# scores


@pytest.mark.parametrize(
    ("answer", "wanted", "category", "score"),
    [
        ("The painted sunrise", "painting a sunrise", "single-hop", 1.0),  # stems, without articles
        ("Rex\nand more", "Rex", "single-hop", 1.0),  # the first line counts
        ("\n\nAnswer: Rex", "Rex", "single-hop", 1.0),
        ("Rex and Pip", "Rex", "single-hop", 2 / 3),  # "and" counts as an article
        ("", "Rex", "single-hop", 0.0),
        ("2,022", "2022", "temporal", 1.0),
        ("tea, dogs", "cats, tea", "multi-hop", 0.5),
        ("cats", "cats, tea", "multi-hop", 0.5),
        ("tea, cats", "tea, cats", "open domain", 1.0),  # only multi-hop answers are lists
        ("tea", "tea, cats", "open domain", 2 / 3),
    ],
)
def test_locomo_scores_by_stems_of_the_first_line(answer: str, wanted: str, category: str, score: float) -> None:
    found = locomo.score(answer, Question("q", category, "?", (wanted,)))
    assert found == {"F1": pytest.approx(score)}


def test_hotpotqa_scores_f1_and_exact_match() -> None:
    question = Question("q", "bridge", "?", ("The Eiffel Tower",))
    assert hotpotqa.score("Eiffel tower.\nIn Paris", question) == {"F1": 1.0, "exact": 1.0}
    assert hotpotqa.score("It is the Eiffel Tower", question) == {"F1": pytest.approx(2 / 3), "exact": 0.0}


def test_memoryagentbench_takes_any_alias_and_whole_words() -> None:
    question = Question("q", "retrieval", "?", ("label: 5", "five"))
    assert memoryagentbench.score("It is five.", question) == {"right": 1.0, "published": 1.0}
    # published runs look for letters, so 5 is in 55
    assert memoryagentbench.score("label: 55", question) == {"right": 0.0, "published": 1.0}
    assert memoryagentbench.score("six", question) == {"right": 0.0, "published": 0.0}
    summary = Question("q", "infbench_sum", "?", ("a boy finds gold",))
    assert memoryagentbench.score("boy finds", summary)["right"] == pytest.approx(0.8)


def test_longmemeval_wants_it_said_that_nothing_is_known() -> None:
    never = Question("q_abs", "never told", "?", ())
    assert longmemeval.score("I don't know your dog's name.", never)["right"] == 1.0
    assert longmemeval.score("It is Rex.", never)["right"] == 0.0
    told = Question("q", "multi-session", "?", ("45 minutes",))
    assert longmemeval.score("About 45 minutes each way", told)["right"] == 1.0


def test_f1_is_one_of_bags_of_words() -> None:
    assert scoring.f1(["a", "a", "b"], ["a", "c"]) == pytest.approx(0.4)
    assert scoring.f1([], []) == 0.0


# data


def test_locomo_leaves_out_what_can_not_be_scored_and_keeps_the_order_of_sessions(locomo_file: Path) -> None:
    first, second = locomo.read([locomo_file], "own")
    assert (first.id, second.id) == ("conv-1", "conv-2")
    assert [(q.category, q.answers) for q in first.questions] == [
        ("single-hop", ("Rex",)),
        ("temporal", ("2023",)),
        ("multi-hop", ("cats, tea",)),
        ("open domain", ("Yes",)),  # behind the semicolon stands why
    ]
    assert [[t.said for t in session] for session in first.told] == [
        ["1 pm on 2 March, 2023. Bo: My cat is Rex. (shows a picture: a cat)", "Ann: Nice."],
        ["1 pm on 3 March, 2023. Ann: The tenth.", "Bo: And last."],
    ]
    assert first.questions[0].ask == "What is Bo's cat called? Answer in a few words."


def test_what_is_newest_stays_when_not_all_fits() -> None:
    parts = ["one two three", "four five", "six"]
    assert newest_first_out(parts, "ask?", 100, words) == "one two three\nfour five\nsix\nask?"
    assert newest_first_out(parts, "ask?", 4, words) == "four five\nsix\nask?"
    assert newest_first_out(parts, "ask?", 1, words) == "ask?"


def test_the_published_prompt_has_the_newest_session_first_and_loses_the_newest(locomo_file: Path) -> None:
    history = next(iter(locomo.read([locomo_file], "published")))
    question = history.questions[1]
    assert question.ask.endswith("When did Bo tell it? Use DATE of CONVERSATION to answer with an approximate date.")
    told = 'DATE: 1 pm on 3 March, 2023\nCONVERSATION:\nAnn said, "The tenth."\n\nBo said, "And last."'
    assert history.told[1] == (ToldTurn(told, None),)
    whole = history.whole(question, 10_000, words)
    assert whole.startswith("Below is a conversation between two people: Ann and Bo.")
    assert whole.endswith("\n\n" + question.ask)
    order = [whole.index(said) for said in ("The tenth.", "And last.", "My cat is Rex.", "Nice.")]
    assert order == sorted(order)
    assert " and shared a cat.\n" in whole
    fixed = words(locomo._START) + words(question.ask)
    short = history.whole(question, fixed + 27, words)
    assert "Rex" in short and "And last." in short and "The tenth." not in short


def test_memoryagentbench_reads_parquet_and_cuts_texts_at_sentences(tmp_path: Path) -> None:
    path = tmp_path / "Conflict_Resolution-00000-of-00001.parquet"
    text = "One is here. " * 400
    columns = {
        "context": [text, "left out"],
        "questions": [["Who?", "What?"], ["x"]],
        "answers": [[["Rex", "a dog"], ["", "one"]], [["y"]]],
        "metadata": [{"source": "factconsolidation_sh_6k"}, {"source": "recsys_redial_full"}],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (history,) = memoryagentbench.read([path], "own")
    assert [q.answers for q in history.questions] == [("Rex", "a dog"), ("one",)]
    assert {q.category for q in history.questions} == {"conflicts"}
    parts = [t.said for session in history.told for t in session]
    assert " ".join(parts) == text.strip() and len(history.told) == 1
    assert all(part.endswith(".") and len(part) <= 2000 for part in parts)
    (published,) = memoryagentbench.read([path], "published")
    whole = published.whole(published.questions[0], 200, words)
    assert words(whole) <= 200 and "[... context truncated ...]" in whole and whole.endswith("Question: Who?\nAnswer:")


def test_longmemeval_tells_chats_in_order_of_their_dates(tmp_path: Path) -> None:
    path = tmp_path / "longmemeval_s_cleaned.json"
    entry = {
        "question_id": "q1_abs",
        "question_type": "multi-session",
        "question": "How long?",
        "answer": "You never said.",
        "question_date": "2023/06/01",
        "haystack_dates": ["2023/05/02", "2023/05/01"],
        "haystack_sessions": [
            [{"role": "user", "content": "later", "has_answer": True}, {"role": "assistant", "content": "yes"}],
            [
                {"role": "assistant", "content": "lost"},
                {"role": "user", "content": "first"},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": "well"},
            ],
        ],
    }
    path.write_text(json.dumps([entry]), encoding="utf-8")
    (history,) = longmemeval.read([path], "own")
    assert history.told == (
        (ToldTurn("2023/05/01. first", None), ToldTurn("again", "well")),
        (ToldTurn("2023/05/02. later", "yes"),),
    )
    assert history.questions[0].category == "never told" and not history.questions[0].answers
    (published,) = longmemeval.read([path], "published")
    whole = published.whole(published.questions[0], 10_000, words)
    assert whole.index("Session Date: 2023/05/01") < whole.index("Session Date: 2023/05/02")
    assert "has_answer" not in whole and whole.endswith("Question: How long?\nAnswer:")


@pytest.mark.parametrize("form", ["hub", "authors"])
def test_hotpotqa_reads_both_forms_of_its_data(tmp_path: Path, form: str) -> None:
    common = {"question": "Who?", "answer": "Ann", "type": "comparison", "level": "hard"}
    if form == "hub":
        path = tmp_path / "validation-00000-of-00001.parquet"
        context = {"title": ["A", "B"], "sentences": [["One.", " Two."], ["Three."]]}
        rows = [{"id": "5a", **common, "context": context}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path = tmp_path / "hotpot_dev_distractor_v1.json"
        path.write_text(json.dumps([{"_id": "5a", **common, "context": [["A", ["One.", " Two."]], ["B", ["Three."]]]}]))
    (history,) = hotpotqa.read([path], "own")
    assert [t.said for t in history.told[0]] == ["Passage 1 - A:\nOne. Two.", "Passage 2 - B:\nThree."]
    (published,) = hotpotqa.read([path], "published")
    assert published.whole(published.questions[0], 1000, words) == (
        "Answer the question using only the passages below.\nReply with a short span or yes/no only.\n\n"
        "Passage 1 - A:\nOne. Two.\n\nPassage 2 - B:\nThree.\n\nQuestion: Who?\nAnswer:"
    )


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.name)
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[{"x": 1}]', b"PAR1xxxx", b"\xff\xfe", b"[" * 100_000])
def test_other_files_are_refused_in_a_sentence(benchmark: Benchmark, content: bytes, tmp_path: Path) -> None:
    for suffix in (".json", ".parquet"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        with pytest.raises(EvaluationError) as failure:
            list(benchmark.read([path], "own"))
        assert str(path) in str(failure.value) and "\n" not in str(failure.value)
    with pytest.raises(EvaluationError):
        list(benchmark.read([tmp_path / "missing.json"], "own"))


@pytest.mark.skipif("DMEM_TESTS_LOCOMO" not in os.environ, reason="DMEM_TESTS_LOCOMO does not name locomo10.json")
def test_the_real_locomo_is_read_whole() -> None:
    path = Path(os.environ["DMEM_TESTS_LOCOMO"])
    assert data._digest(path.read_bytes()) == locomo.LOCOMO.source.sha256
    for protocol in ("own", "published"):
        found = list(locomo.read([path], protocol))  # type: ignore[arg-type]
        assert len(found) == 10 and sum(len(h.questions) for h in found) == 1540
        assert min(len(h.questions) for h in found) == 81 and max(len(h.questions) for h in found) == 199


# the command


@pytest.fixture
def run(tmp_path: Path, tiny_model: Any, tiny_adapter: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """run(name, arguments): exit code, stdout and stderr of `dmem eval NAME` on a tiny model with short answers."""
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    model = tiny_model("qwen3")
    own = ["-m", str(model), "--adapter", str(tiny_adapter(model)), "--threads", "1", "--ctx-size", "4096"]
    for benchmark in BENCHMARKS:
        monkeypatch.setitem(benchmark.answer_tokens, "own", 4)  # type: ignore[arg-type]
        monkeypatch.setitem(benchmark.answer_tokens, "published", 4)  # type: ignore[arg-type]

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        code = cli.main(["eval", name, *own, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_table_has_every_condition_and_category(run: Run, locomo_file: Path, tmp_path: Path) -> None:
    code, out, err = run("locomo", "--data", str(locomo_file), "--image", str(tmp_path / "x.svg"))
    assert code == 0, err
    lines = out.splitlines()
    for row in benchmark_tables._ROWS.values():
        assert any(line.startswith(row) for line in lines), row
    for heading in ("all", *locomo.LOCOMO.categories.values(), "tokens", "seconds"):
        assert heading in out
    assert max(map(len, lines)) <= 120
    picture = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert all(name in picture for name in locomo.LOCOMO.categories)


@pytest.mark.parametrize("protocol", ["own", "published"])
def test_json_has_scores_costs_and_every_answer(run: Run, locomo_file: Path, protocol: str) -> None:
    code, out, err = run("locomo", "--data", str(locomo_file.parent), "--json", "--protocol", protocol)
    assert code == 0, err
    found = json.loads(out)
    assert found["complete"] and found["protocol"] == protocol and set(found["scores"]) == set(measure.MODES)
    assert set(found["questions"].values()) == {8}
    assert len(found["answers"]) == 8 * len(measure.MODES)
    for mode in measure.MODES:
        low, high = found["intervals"][mode]["F1"]["all"]
        assert low <= found["scores"][mode]["F1"]["all"] <= high
    # all of the history costs more than the memory, and the last turns stand between
    assert found["tokens"][r.MEMORY] < found["tokens"][r.REPLAY] <= found["tokens"][r.CONTEXT] + 40


def test_the_whole_history_is_answered_as_if_each_question_were_the_only_one(run: Run, locomo_file: Path) -> None:
    _, all_of_them, _ = run("locomo", "--data", str(locomo_file), "--json", "--seed", "3")
    _, one, _ = run("locomo", "--data", str(locomo_file), "--json", "--seed", "3", "--limit", "2")
    several = {(a["question"], a["mode"]): a["answer"] for a in json.loads(all_of_them)["answers"]}
    alone = {(a["question"], a["mode"]): a["answer"] for a in json.loads(one)["answers"]}
    assert len(alone) == 2 * len(measure.MODES)
    for key, answer in alone.items():
        assert key[1] == r.DONOR or several[key] == answer


def test_each_question_behind_a_history_is_asked_from_the_same_state(tiny_model: Any, tiny_adapter: Any) -> None:
    path = tiny_model("qwen3")
    with Model(path) as model, Engine(model, tiny_adapter(path), EngineOptions(ctx_size=1024, threads=1)) as engine:
        seat = Seat.first(engine)
        told = np.random.default_rng(0).normal(size=engine.state_shape).astype(np.float32)

        def left(messages: list[str], state: Any, writes: bool) -> Any:
            """What the last answer leaves in the memory."""
            reader = Reader(seat, Prompt(model), Sampling(temperature=0), 3, False, state, writes)
            assert len(list(reader.ask(messages, "The history. ?"))) == len(messages)
            return seat.state()

        for state in (None, told):
            for writes in (False, True):
                after_another = left(["The history. What?", "The history. Who?"], state, writes)
                alone = left(["The history. Who?"], state, writes)
                assert np.abs(after_another - alone).max() < 1e-4
        assert np.abs(left(["The history. Who?"], told, False) - left(["The history. Who?"], None, False)).max() > 0.1
        # the history is written or not, the question always is
        unwritten, written = (left(["The history. Who?"], None, writes) for writes in (False, True))
        assert np.abs(unwritten - written).max() > 1e-3
        assert np.abs(unwritten).max() > 1e-3


def test_another_conversations_memory_is_of_another(
    run: Run, locomo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []
    real = measure._Run._in_session

    def seen(self: Any, history: Any, mode: str, questions: Any, other: Any) -> Any:
        asked.append((history.id, mode, other and other.id))
        return real(self, history, mode, questions, other)

    monkeypatch.setattr(measure._Run, "_in_session", seen)
    code, _, err = run("locomo", "--data", str(locomo_file), "--conversations", "1", "--limit", "1")
    assert code == 0, err
    donors = [(own, other) for own, mode, other in asked if mode == r.DONOR]
    assert donors == [("conv-1", "conv-2")]  # which is not asked about itself


def test_where_there_is_no_other_conversation_there_is_no_such_row(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([talk("conv-1", "Rex")]), encoding="utf-8")
    code, out, err = run("locomo", "--data", str(path), "--json", "--limit", "1")
    assert code == 0, err
    assert set(json.loads(out)["scores"]) == set(measure.MODES) - {r.DONOR}


def test_a_run_that_was_stopped_asks_only_what_is_missing(
    run: Run, locomo_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "answers.jsonl"
    real, given = measure.Answers.add, []

    def stopping(self: Any, answer: Any) -> None:
        real(self, answer)
        given.append(answer)
        if len(given) == 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(measure.Answers, "add", stopping)
    code, out, _ = run("locomo", "--data", str(locomo_file), "--answers", str(kept), "--json")
    assert code == 130 and not json.loads(out)["complete"]
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 31
    kept.write_text("\n".join([*lines[:-1], lines[-1][:20]]), encoding="utf-8")  # killed within a line
    given.clear()
    monkeypatch.setattr(measure.Answers, "add", lambda self, answer: given.append(answer) or real(self, answer))
    code, out, err = run("locomo", "--data", str(locomo_file), "--answers", str(kept), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["answers"]) == 8 * len(measure.MODES) == 29 + len(given)
    names = [(a["mode"], a["question"]) for a in found["answers"]]
    assert len(names) == len(set(names))
    code, out, err = run("locomo", "--data", str(locomo_file), "--answers", str(kept), "--protocol", "published")
    assert code == 1 and "another model, adapter or setting" in err


def test_data_is_downloaded_from_the_hub_and_its_license_is_told(
    tmp_path: Path, tiny_model: Any, tiny_adapter: Any
) -> None:
    context = {"title": ["A"], "sentences": [["One."]]}
    rows = [
        {"id": f"5{i}", "question": "Who?", "answer": "Ann", "type": "bridge", "context": context} for i in range(2)
    ]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    source, model = hotpotqa.HOTPOTQA.source, tiny_model("qwen3")

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own: the hub's library reads its variables when it is imported."""
        places = {"DMEM_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": hub.url}
        command = [sys.executable, "-m", "deltamem_cli", "eval", "hotpotqa", "--json", "--threads", "1"]
        own = ["-m", str(model), "--adapter", str(tiny_adapter(model)), "--ctx-size", "1024"]
        return subprocess.run(
            [*command, *own],
            check=False,
            env={**os.environ, **places, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    with serving() as hub:
        hub.add(source.repository, {source.files[0]: path.read_bytes()}, license="cc-by-sa-4.0")
        done = run()
        assert done.returncode == 0, done.stderr
        assert "cc-by-sa-4.0" in done.stderr and source.repository in done.stderr
        assert set(json.loads(done.stdout)["questions"].values()) == {2}
        assert (tmp_path / "hub" / "hub" / "datasets--hotpotqa--hotpot_qa").is_dir()
        done = run(DMEM_OFFLINE="1")
        assert done.returncode == 1 and "DMEM_OFFLINE is set" in done.stderr


def test_data_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.json", "does not exist"), (tmp_path, "has no data of LoCoMo")):
        code, _, err = run("locomo", "--data", str(path))
        assert code == 1 and err.startswith(f"{path} {why}") and err.count("\n") == 1


def test_locomo_from_its_authors_is_checked(run: Run, locomo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_download", lambda source: locomo_file.read_bytes())
    code, _, err = run("locomo", "--limit", "1")
    assert code == 1 and "another checksum" in err
    monkeypatch.setattr(data, "_digest", lambda content: locomo.LOCOMO.source.sha256)
    code, _, err = run("locomo", "--limit", "1")
    assert code == 0 and "CC BY-NC 4.0" in err
    monkeypatch.setattr(data, "_download", lambda source: pytest.fail("it is there already"))
    assert run("locomo", "--limit", "1")[0] == 0
