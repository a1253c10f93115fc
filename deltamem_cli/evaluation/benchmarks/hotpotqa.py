"""HotpotQA (distractor): 7,405 questions that take two of ten passages to answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deltamem_cli.evaluation.benchmarks import scoring
from deltamem_cli.evaluation.benchmarks.parquet import rows
from deltamem_cli.evaluation.benchmarks.shape import (
    Benchmark,
    Count,
    History,
    Protocol,
    Question,
    Source,
    json_list,
    newest_first_out,
    text_of,
    told_in_a_sentence,
)
from deltamem_cli.evaluation.cases import ToldTurn

# the published prompt, to the letter; what stands before the passages and what stands behind them
_BEFORE = "Answer the question using only the passages below.\nReply with a short span or yes/no only.\n\n"
_BEHIND = "Question: {}\nAnswer:"


def read(paths: Iterable[Path], protocol: Protocol) -> Iterator[History]:
    """The questions of the hub's parquet file or of the authors' JSON. Raises EvaluationError for another file."""
    for path in paths:
        with told_in_a_sentence(path, "HotpotQA"):
            for row in json_list(path) if path.suffix == ".json" else rows(path):
                yield _history(row, protocol)


def _history(row: dict[str, Any], protocol: Protocol) -> History:
    name = text_of(row["id"] if "id" in row else row["_id"], "an id")
    context = row["context"]
    pairs = context if isinstance(context, list) else zip(context["title"], context["sentences"], strict=True)
    passages = [
        f"Passage {i} - {title}:\n{' '.join(s.strip() for s in sentences if s.strip())}"
        for i, (title, sentences) in enumerate(pairs, 1)
    ]
    asked = text_of(row["question"], "a question")
    ask = _BEHIND.format(asked) if protocol == "published" else f"{asked} Answer in a few words."
    question = Question(name, text_of(row.get("type", "bridge"), "a type"), ask, (text_of(row["answer"], "an answer"),))

    def whole(question: Question, room: int, count: Count) -> str:
        if protocol == "published":
            return newest_first_out([_BEFORE + "\n\n".join(passages) + "\n"], question.ask, room, count)
        return newest_first_out(passages, f"\n{question.ask}", room, count)

    return History(name, (tuple(ToldTurn(passage, None) for passage in passages),), (question,), whole)


def score(answer: str, question: Question) -> dict[str, float]:
    """Token F1 and exact match of the first line."""
    said, wanted = (scoring.plain_words(text) for text in (scoring.first_line(answer), question.answers[0]))
    return {"F1": scoring.f1(said, wanted), "exact": float(said == wanted)}


HOTPOTQA = Benchmark(
    name="hotpotqa",
    title="HotpotQA",
    source=Source(
        "CC BY-SA 4.0",
        27_000_000,
        ("distractor/validation-00000-of-00001.parquet",),
        repository="hotpotqa/hotpot_qa",
    ),
    categories={"bridge": "bridge", "comparison": "compare"},
    metrics=("F1", "exact"),
    read=read,
    score=score,
    answer_tokens={"own": 32, "published": 32},
    first_line=True,
)
