"""Calls of tools and their results as text that is the same for all templates: as Hermes and Qwen write them.

A call is a reply's text, and its result is what the user says next, so a turn that calls is a turn like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_RESULT = r"<tool_response>\n(.*?)\n</tool_response>"
_RESULTS = re.compile(rf"{_RESULT}(?:\n{_RESULT})*", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """What a reply asks to be run. arguments: a JSON object."""

    name: str
    arguments: str

    @property
    def text(self) -> str:
        """As Hermes has it."""
        return f'{OPEN}\n{{"name": {as_json(self.name)}, "arguments": {self.arguments}}}\n{CLOSE}'


def call(name: str, arguments: Any) -> Call:
    """arguments: the object, or JSON of it. Raises ValueError or TypeError for what is none."""
    found = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(found, Mapping):
        raise TypeError("the arguments are not an object")
    return Call(name, as_json(found))


def results(texts: Sequence[str]) -> str:
    """What is said of calls that were run."""
    return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)


def results_in(text: str) -> list[str]:
    """The results that `text` consists of; none where it says anything beside them."""
    return re.findall(_RESULT, text, re.DOTALL) if _RESULTS.fullmatch(text) else []


def reply(text: str, calls: Sequence[Call]) -> str:
    """The reply that says `text` and makes calls."""
    return "\n".join(filter(None, [text, *(each.text for each in calls)]))


def as_json(value: Any) -> str:
    """JSON, with letters as they are."""
    return json.dumps(value, ensure_ascii=False)
