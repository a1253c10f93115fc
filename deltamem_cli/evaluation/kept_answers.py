"""Answers kept in a file line by line, so that a run goes on where it was stopped; a kill costs one at most."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from deltamem_cli import reading
from deltamem_cli.evaluation.errors import EvaluationError

_MOST = 1 << 30  # bytes of answers


@dataclass(frozen=True)
class Answered:
    """What all kinds of answers say. tokens: all that was processed for it, from an empty context on."""

    conversation: str
    category: str
    mode: str
    question: str
    answer: str
    tokens: int


A = TypeVar("A", bound=Answered)


@dataclass
class KeptAnswers(Generic[A]):
    """about: what they are of; those of a file are refused unless it says the same. kind: the dataclass of one."""

    about: dict[str, Any]
    kind: type[A]
    path: Path | None = None
    records: list[A] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None:
            self.records += self._read(self.path)
        self._have = {_key(record) for record in self.records}

    def _read(self, path: Path) -> list[A]:
        """Those of a file, whose first line says what they are about; the file is made when it is not there.

        Raises EvaluationError for the answers of something else, and for what is no such file.
        """
        try:
            reading.check_regular(path)
            lines = reading.whole_file(path, _MOST).decode().splitlines() if path.exists() else []
            if not lines:
                path.write_text(json.dumps(self.about) + "\n", encoding="utf-8")
                return []
            # the last line may be half of one, when it was being written at a kill
            whole = [json.loads(line) for i, line in enumerate(lines) if i + 1 < len(lines) or line.endswith("}")]
            said, answers = whole[0], [self.kind(**line) for line in whole[1:]]
        except OSError as error:
            raise EvaluationError(f"{path} can't be used ({error.strerror}): give --answers another file.") from None
        except (ValueError, TypeError, IndexError):
            raise EvaluationError(f"{path} has no answers from this evaluation: give --answers another file.") from None
        if said != self.about:
            raise EvaluationError(
                f"{path} has the answers of another model, adapter or setting: give --answers another file."
            )
        if len(whole) < len(lines):
            path.write_text("".join(json.dumps(line) + "\n" for line in whole), encoding="utf-8")
        return answers

    def add(self, answer: A) -> None:
        """Keeps an answer, in the file too if there is one."""
        self.records.append(answer)
        self._have.add(_key(answer))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(answer), ensure_ascii=True) + "\n")

    def has(self, conversation: str, mode: str, question: str) -> bool:
        """Whether this question was answered in this mode already."""
        return (conversation, mode, question) in self._have

    def tokens(self, mode: str) -> float:
        """Mean per answer."""
        found = [a.tokens for a in self.records if a.mode == mode]
        return sum(found) / max(1, len(found))


def _key(answer: Answered) -> tuple[str, str, str]:
    return answer.conversation, answer.mode, answer.question
