"""MemoryAgentBench: long texts (documents, books, lists of facts and of examples) and many questions about each.

Recommending films is left out: scoring it needs a table of films that does not come with the data.
"""

from __future__ import annotations

import re
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
    newest_first_out,
    text_of,
    told_in_a_sentence,
)
from deltamem_cli.evaluation.cases import ToldTurn

_SPLITS = {
    "Accurate_Retrieval": "retrieval",
    "Test_Time_Learning": "learning",
    "Long_Range_Understanding": "range",
    "Conflict_Resolution": "conflicts",
}
_SUMMARY = "infbench_sum"  # of a book: measured by F1, as published
_LEFT_OUT = "recsys_"
_MESSAGE = 2_000  # characters of a text that are told at once
_SESSION = 4  # of these in a session
_CLIPPED = 120_000  # characters, of published runs
_GAP = "\n\n[... context truncated ...]\n\n"
# the published prompt, to the letter
_ASK = (
    "Use only the memory context below to answer the question.\n"
    "Reply with a short entity, phrase, number, or sentence only.\n"
    "If the answer is not supported by the context, reply exactly: I don't know.\n\n"
    "{context}\n\n"
    "Question: {question}\n"
    "Answer:"
)


def read(paths: Iterable[Path], protocol: Protocol) -> Iterator[History]:
    """The texts of the benchmark's parquet files, each named after its split. Raises EvaluationError for other files."""
    for path in paths:
        category = next((name for split, name in _SPLITS.items() if path.name.startswith(split)), path.stem)
        with told_in_a_sentence(path, "MemoryAgentBench"):
            for index, row in enumerate(rows(path)):
                source = text_of((row["metadata"] or {}).get("source", ""), "a source")
                if not source.startswith(_LEFT_OUT):
                    yield _history(f"{category}/{index}", category, source, row, protocol)


def _history(name: str, category: str, source: str, row: dict[str, Any], protocol: Protocol) -> History:
    context = text_of(row["context"], "a context")
    parts = list(pieces(context, _MESSAGE))
    questions = []
    for index, (asked, answers) in enumerate(zip(row["questions"], row["answers"], strict=True)):
        spellings = tuple(text_of(a, "an answer") for a in (answers if isinstance(answers, list) else [answers]))
        asked = text_of(asked, "a question")
        ask = asked if protocol == "published" else f"{asked} Answer in a few words."
        kind = _SUMMARY if source.startswith(_SUMMARY) else category
        questions.append(Question(f"{name}/{index}", kind, ask, tuple(s for s in spellings if s)))

    def whole(question: Question, room: int, count: Count) -> str:
        if protocol == "own":
            return newest_first_out(parts, f"\n{question.ask}", room, count)
        size = min(len(context), _CLIPPED)
        while True:  # until it fits: by the share of its tokens that is too much
            text = _ASK.format(context=clipped(context, size), question=question.ask)
            tokens = count(text)
            if tokens <= room or size <= len(_GAP):
                return text
            size = min(size - 1, size * room // tokens)

    told = [ToldTurn(part, None) for part in parts]
    sessions = tuple(tuple(told[at : at + _SESSION]) for at in range(0, len(told), _SESSION))
    return History(name, sessions, tuple(questions), whole)


def clipped(text: str, size: int) -> str:
    """The first third and the last two thirds of `size` characters, as published runs shorten a text."""
    if len(text) <= size:
        return text
    first = max(1, (size - len(_GAP)) // 3)
    return text[:first].rstrip() + _GAP + text[-max(1, size - len(_GAP) - first) :].lstrip()


def pieces(text: str, size: int) -> Iterator[str]:
    """`text` in pieces of at most `size` characters that end where lines or sentences do, if any does."""
    at = 0
    while at < len(text):
        end = min(len(text), at + size)
        if end < len(text):
            ends = [m.end() for m in re.finditer(r"\n|[.!?]\s", text[at:end])]
            end = at + ends[-1] if ends else end
        if piece := text[at:end].strip():
            yield piece
        at = end


def score(answer: str, question: Question) -> dict[str, float]:
    """Whether an alias stands in the answer: `right` in whole words, `published` as published runs do, in letters. For
    summaries of books both are F1.
    """
    if question.category == _SUMMARY:
        said = scoring.plain_words(answer)
        best = max((scoring.f1(said, scoring.plain_words(a)) for a in question.answers), default=0.0)
        return {"right": best, "published": best}
    return {
        "right": float(any(scoring.contains(answer, a) for a in question.answers)),
        "published": float(any(scoring.contains_letters(answer, a) for a in question.answers)),
    }


MEMORYAGENTBENCH = Benchmark(
    name="memoryagentbench",
    title="MemoryAgentBench",
    source=Source(
        "MIT",
        90_000_000,
        tuple(f"data/{split}-00000-of-00001.parquet" for split in _SPLITS),
        repository="ai-hyz/MemoryAgentBench",
    ),
    categories={**{name: name for name in _SPLITS.values()}, _SUMMARY: "summary"},
    metrics=("right", "published"),
    read=read,
    score=score,
    answer_tokens={"own": 50, "published": 4096},
    first_line=False,
)
