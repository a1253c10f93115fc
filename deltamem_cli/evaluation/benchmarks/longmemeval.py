"""LongMemEval (S): 500 questions, each with some forty earlier chats of a user with an assistant before it.

A question whose name ends in `_abs` asks for what was never said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deltamem_cli.evaluation.benchmarks import scoring
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
from deltamem_cli.evaluation.talk_cases import says_unknown

_NEVER = "never told"
# the published prompt, to the letter; what stands before the question and the question
_BEFORE = (
    "I will give you several history chats between you and a user. Please answer the question based on the relevant chat "
    "history.\n\n\nHistory Chats:\n\n{}\n\n"
)
_BEHIND = "Current Date: {}\nQuestion: {}\nAnswer:"


def read(paths: Iterable[Path], protocol: Protocol) -> Iterator[History]:
    """The questions of a file such as longmemeval_s_cleaned.json. Raises EvaluationError for another file."""
    for path in paths:
        with told_in_a_sentence(path, "LongMemEval"):
            found = [_history(entry, protocol) for entry in json_list(path)]
        yield from found


def _history(entry: dict[str, Any], protocol: Protocol) -> History:
    name = text_of(entry["question_id"], "a question_id")
    asked, today = text_of(entry["question"], "a question"), text_of(entry["question_date"], "a date")
    never = name.endswith("_abs")
    sessions = sorted(zip(entry["haystack_dates"], entry["haystack_sessions"], strict=True), key=lambda s: str(s[0]))
    told = tuple(filter(None, (tuple(_turns(str(date), turns)) for date, turns in sessions)))
    lines = [
        f"User: {t.said}" + ("" if t.reply is None else f"\nAssistant: {t.reply}") for session in told for t in session
    ]

    def whole(question: Question, room: int, count: Count) -> str:
        if protocol == "own":
            return newest_first_out(lines, f"\n{question.ask}", room, count)
        history = "".join(
            f"\n### Session {i}:\nSession Date: {date}\nSession Content:\n\n{json.dumps([_bare(t) for t in turns])}\n"
            for i, (date, turns) in enumerate(sessions, 1)
        )
        while history and (tokens := count(_BEFORE.format(history) + question.ask)) > room:
            history = history[
                : min(len(history) - 1, len(history) * room // tokens)
            ]  # what is too much falls off the end
        return _BEFORE.format(history) + question.ask

    own = f"Today is {today}. {asked} Answer in a few words."
    ask = own if protocol == "own" else _BEHIND.format(today, asked)
    answers = () if never else (text_of(entry["answer"], "an answer"),)
    category = _NEVER if never else text_of(entry["question_type"], "a question_type")
    return History(name, told, (Question(name, category, ask, answers),), whole)


def _bare(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key != "has_answer"}


def _turns(date: str, turns: list[dict[str, Any]]) -> Iterator[ToldTurn]:
    """Those of one chat, its date before the first; a reply to nothing is left out."""
    said: str | None = None
    first = f"{date}. "
    for turn in turns:
        text = text_of(turn["content"], "a message")
        if turn["role"] == "user":
            if said is not None:
                yield ToldTurn(said, None)
            said, first = first + text, ""
        elif said is not None:
            yield ToldTurn(said, text)
            said = None
    if said is not None:
        yield ToldTurn(said, None)


def score(answer: str, question: Question) -> dict[str, float]:
    """`right`: the answer stands in what was said, in whole words, or, where nothing was told, that it is not known."""
    if not question.answers:
        unknown = float(says_unknown(answer))
        return {"right": unknown, "F1": unknown}
    wanted = question.answers[0]
    return {
        "right": float(scoring.contains(answer, wanted)),
        "F1": scoring.f1(scoring.plain_words(answer), scoring.plain_words(wanted)),
    }


LONGMEMEVAL = Benchmark(
    name="longmemeval",
    title="LongMemEval",
    source=Source(
        "MIT",
        278_000_000,
        ("longmemeval_s_cleaned.json",),
        repository="xiaowu0162/longmemeval-cleaned",
    ),
    categories={
        "single-session-user": "user",
        "single-session-assistant": "assist.",
        "single-session-preference": "prefer.",
        "multi-session": "multi",
        "temporal-reasoning": "time",
        "knowledge-update": "update",
        _NEVER: "never",
    },
    metrics=("right", "F1"),
    read=read,
    score=score,
    answer_tokens={"own": 50, "published": 500},
    first_line=False,
)
