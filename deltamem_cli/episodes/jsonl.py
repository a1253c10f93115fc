"""Reads conversations from a file: JSON lines, each what is told, then what is asked. Knows nothing of models.

    {"system": "…", "sessions": [[{"role": "user", "content": "…"}, …], …],
     "questions": [{"content": "…", "answer": "…", "value": "…"}]}

"messages" with one conversation may stand for "sessions". value is the part of the answer that must be recalled; it may
be left out, and system too. Lines with "validation": true are kept from training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltamem_cli import reading
from deltamem_cli.episodes import Episode, Fact, Question, Utterance
from deltamem_cli.errors import DeltamemError
from deltamem_cli.text import decoded

_MOST = 1 << 30  # bytes


def read_episodes(path: Path) -> tuple[list[Episode], list[Episode]]:
    """Training and validation episodes of a file. Raises DeltamemError naming the first bad line."""
    train: list[Episode] = []
    validation: list[Episode] = []
    try:
        # not splitlines(): JSON may hold U+2028 and the like as they are
        lines = decoded(reading.whole_file(path, _MOST), "strict").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeltamemError(f"{path} cannot be read ({reason}); check the path of --data") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
                (validation if record.get("validation") else train).append(_episode(record))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                what = f"lacks {error}" if isinstance(error, KeyError) else f"is not a conversation ({error})"
                raise DeltamemError(
                    f"Line {number} of {path} {what}; every line needs sessions or messages, and questions"
                ) from None
    if not train:
        raise DeltamemError(f"{path} holds no conversation to train on; add lines with messages and questions")
    return train, validation


def _episode(record: dict[str, Any]) -> Episode:
    sessions = record["sessions"] if "sessions" in record else [record["messages"]]
    questions = [
        Question(q["content"], q["answer"], q.get("value", ""), q.get("kind", "data")) for q in record["questions"]
    ]
    if not questions or not all(sessions):
        raise ValueError("it tells or asks nothing")
    if any(q.value not in q.answer for q in questions):
        raise ValueError("a value is not part of its answer")
    told = [Fact(q.kind, q.value) for q in questions if q.value]

    def message(m: dict[str, str]) -> Utterance:
        of_user = m["role"] == "user"
        return Utterance(m["role"], m["content"], tuple(f for f in told if of_user and f.value in m["content"]))

    return Episode(record.get("system", ""), [[message(m) for m in s] for s in sessions], questions)
