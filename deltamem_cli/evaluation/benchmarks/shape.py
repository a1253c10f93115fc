"""What all public benchmarks have in common: conversations that are told, and questions about them with a score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deltamem_cli import reading
from deltamem_cli.evaluation.cases import ToldTurn
from deltamem_cli.evaluation.errors import EvaluationError

Protocol = Literal["own", "published"]
Count = Callable[[str], int]  # tokens of a text
_MOST = 1 << 30  # bytes of a file


@dataclass(frozen=True)
class Question:
    """ask: as the model is asked; answers: spellings of which each would be right, none where nothing can be known."""

    id: str
    category: str
    ask: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """One conversation, or one pile of documents, and what is asked about it later.

    told: session by session; each begins with an empty context. whole: the message that asks a question with all of the history before it, in at most so many tokens.
    """

    id: str
    told: tuple[tuple[ToldTurn, ...], ...]
    questions: tuple[Question, ...]
    whole: Callable[[Question, int, Count], str]
    system: str = ""


@dataclass(frozen=True)
class Source:
    """Where the data comes from. repository: on the hub, else `url` is its one file's address."""

    license: str
    size: int  # bytes, about
    files: tuple[str, ...]
    repository: str | None = None
    url: str = ""
    sha256: str = ""  # of the one file, where the benchmark's authors have fixed it


@dataclass(frozen=True)
class Benchmark:
    """metrics: names of what score() returns, the first one is the benchmark's own. first_line: nothing behind it counts.

    score: an answer's values by metric, 0 to 1. answer_tokens, options: by protocol, what else is greedy.
    """

    name: str
    title: str
    source: Source
    categories: Mapping[str, str]  # heading of each
    metrics: tuple[str, ...]
    read: Callable[[Iterable[Path], Protocol], Iterable[History]]
    score: Callable[[str, Question], dict[str, float]]
    answer_tokens: Mapping[Protocol, int]
    first_line: bool
    options: Mapping[Protocol, Mapping[str, float]] = field(default_factory=dict)


def newest_first_out(parts: list[str], question: str, room: int, count: Count) -> str:
    """`parts` in order and `question` behind them; where they don't fit into `room` tokens, the oldest are left out."""
    left = room - count(question)
    kept: list[str] = []
    for part in reversed(parts):
        left -= count(part + "\n")
        if left < 0:
            break
        kept.insert(0, part)
    return "\n".join([*kept, question])


@contextmanager
def told_in_a_sentence(path: Path, name: str) -> Iterator[None]:
    """Whatever data of another shape makes the code inside raise, as an EvaluationError. name: of the benchmark."""
    try:
        yield
    except OSError as error:
        why = error.strerror or "it can't be read"
    except KeyError as error:
        why = f"{error} is missing"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) or "it is no JSON"
    else:
        return
    raise EvaluationError(f"{path} is not the data of {name}: {why}. Give --data another file.")


def json_list(path: Path) -> list[Any]:
    """The members of a file's list. Raises OSError, ValueError and TypeError."""
    found = json.loads(reading.whole_file(path, _MOST))
    if not isinstance(found, list):
        raise TypeError("it is no list")
    return found


def text_of(value: Any, what: str) -> str:
    """A text, or a number as one. Raises ValueError."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value).strip()
    raise ValueError(f"{what} is no text")
