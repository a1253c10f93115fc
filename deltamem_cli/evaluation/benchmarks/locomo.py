"""LoCoMo: ten long conversations of two people over months, 1,540 questions of four categories.

Facts of the data: category 5 asks for what never happened, mostly without an answer, and is left out as published runs
leave it out; some answers are numbers; a conversation can have dates of sessions that it does not have.
"""

from __future__ import annotations

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

_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open domain", 4: "single-hop"}
_OPEN, _LIST = "open domain", "multi-hop"

# the published prompts, to the letter
_SYSTEM = (
    "You are a helpful, respectful and honest assistant whose job is to understand the following conversation and answer "
    "questions based on the conversation. If you don't know the answer to a question, please don't share false information."
)
_START = (
    "Below is a conversation between two people: {} and {}. The conversation takes place over multiple days and the date of "
    "each conversation is wriiten at the beginning of the conversation.\n\n"
)
_ASK = (
    "Based on the above conversations, write a short answer for the following question in a few words. Do not write "
    "complete and lengthy sentences. Answer with exact words from the conversations whenever possible.\n\nQuestion: {}"
)
_DATE_HINT = " Use DATE of CONVERSATION to answer with an approximate date."

Sessions = list[tuple[str, list[dict[str, Any]]]]  # date and turns of each, in order


def read(paths: Iterable[Path], protocol: Protocol) -> Iterator[History]:
    """The conversations of a file such as locomo10.json. Raises EvaluationError for another file."""
    for path in paths:
        with told_in_a_sentence(path, "LoCoMo"):
            found = [_history(sample, protocol) for sample in json_list(path)]
        yield from found


def _history(sample: dict[str, Any], protocol: Protocol) -> History:
    name, talk = text_of(sample["sample_id"], "a sample_id"), sample["conversation"]
    speakers = text_of(talk["speaker_a"], "a speaker"), text_of(talk["speaker_b"], "a speaker")
    numbers = sorted(int(key.split("_")[1]) for key in talk if key.startswith("session_") and key.count("_") == 1)
    sessions = [(text_of(talk[f"session_{n}_date_time"], "a date"), talk[f"session_{n}"]) for n in numbers]
    sessions = [(date, turns) for date, turns in sessions if turns]
    asked = [(i, q, int(q["category"])) for i, q in enumerate(sample["qa"])]
    questions = tuple(_question(f"{name}/{i}", q, c, protocol) for i, q, c in asked if c in _CATEGORIES)
    if protocol == "published":
        told = tuple((ToldTurn(_as_message(date, turns), None),) for date, turns in sessions)
        start = _START.format(*speakers)

        def whole(question: Question, room: int, count: Count) -> str:
            return start + _oldest_first_in(sessions, start, question.ask, room, count) + "\n\n" + question.ask

        return History(name, told, questions, whole, _SYSTEM)
    lines = [line for date, turns in sessions for line in _said(date, turns)]
    return History(
        name,
        tuple(tuple(ToldTurn(line, None) for line in _said(date, turns)) for date, turns in sessions),
        questions,
        lambda question, room, count: newest_first_out(lines, f"\n{question.ask}", room, count),
    )


def _question(name: str, asked: dict[str, Any], category: int, protocol: Protocol) -> Question:
    answer = text_of(asked["answer"], "an answer")
    if category == 3:  # behind the semicolon stands why
        answer = answer.split(";")[0].strip()
    ask = text_of(asked["question"], "a question")
    if protocol == "published":
        ask = _ASK.format(ask + (_DATE_HINT if category == 2 else ""))
    else:
        ask += " Answer in a few words."
    return Question(name, _CATEGORIES[category], ask, (answer,))


def _said(date: str, turns: list[dict[str, Any]]) -> Iterator[str]:
    """What is told of a session, turn by turn; its date stands before the first."""
    for index, turn in enumerate(turns):
        shown = f" (shows a picture: {turn['blip_caption']})" if turn.get("blip_caption") else ""
        yield (f"{date}. " if not index else "") + f"{turn['speaker']}: {turn['text']}{shown}"


def _published_turn(turn: dict[str, Any]) -> str:
    shown = f" and shared {turn['blip_caption']}." if turn.get("blip_caption") else ""
    return f'{turn["speaker"]} said, "{turn["text"]}"\n{shown}\n'


def _as_message(date: str, turns: list[dict[str, Any]]) -> str:
    return f"DATE: {date}\nCONVERSATION:\n" + "".join(map(_published_turn, turns)).rstrip()


def _oldest_first_in(sessions: Sessions, start: str, question: str, room: int, count: Count) -> str:
    """The published order: the newest session stands first, and what does not fit is left out from the newest on, of the
    session in which it ends from its beginning on.
    """
    used = count(start) + count(question)
    text = ""
    for date, turns in sessions:
        header = f"DATE: {date}\nCONVERSATION:\n"
        for turn in map(_published_turn, reversed(turns)):
            if used + count(header + turn) >= room:
                return f"\n{header}{text}"
            text = turn + text
            used += count(turn)
        text = f"\n{header}{text}"
    return text


def score(answer: str, question: Question) -> dict[str, float]:
    """Token F1 on stems of the first line; of a list, the mean over its members of the best one's."""
    said = scoring.first_line(answer.replace('\\"', "'")).lower()
    for mark in ("(a)", "(b)", "a)", "b)", "answer:"):
        said = said.replace(mark, "")
    wanted = question.answers[0]
    if question.category != _LIST:
        return {"F1": scoring.f1(scoring.stems(said), scoring.stems(wanted))}
    parts = [scoring.stems(part) for part in said.split(",") if part.strip()]
    each = [scoring.stems(part) for part in wanted.split(",") if part.strip()]
    best = [max((scoring.f1(part, one) for part in parts), default=0.0) for one in each]
    return {"F1": sum(best) / len(best) if best else 0.0}


LOCOMO = Benchmark(
    name="locomo",
    title="LoCoMo",
    source=Source(
        "CC BY-NC 4.0",
        2_805_274,
        ("locomo10.json",),
        url="https://raw.githubusercontent.com/snap-research/locomo/main/data/locomo10.json",
        sha256="79fa87e90f04081343b8c8debecb80a9a6842b76a7aa537dc9fdf651ea698ff4",
    ),
    categories={"single-hop": "single", "multi-hop": "multi", "temporal": "time", _OPEN: "open"},
    metrics=("F1",),
    read=read,
    score=score,
    answer_tokens={"own": 50, "published": 50},
    first_line=True,
    options={"published": {"temperature": 0.4, "top_p": 0.9, "top_k": 10, "min_p": 0}},
)
