"""Tools as the templates of Hermes, Qwen2.5 and Qwen3 write them: how a call and its result read. Text in, text out.

A call is a reply's text, and its result is what the user says next, so a turn that calls is a turn like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltamem_cli.engine.template import TemplateRefusal

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = (OPEN, CLOSE)

_ONE = re.compile(rf"\s*{OPEN}(.*?)(?:{CLOSE}|\Z)", re.DOTALL)
_PROBE = {"type": "function", "function": {"name": "\u2402f\u2403", "description": "", "parameters": {}}}


@dataclass(frozen=True)
class Call:
    """What a reply asks to be run. arguments: a JSON object."""

    name: str
    arguments: str

    @property
    def text(self) -> str:
        """As the template has it."""
        return f'{OPEN}\n{{"name": {_json(self.name)}, "arguments": {self.arguments}}}\n{CLOSE}'


def call(name: str, arguments: Any) -> Call:
    """arguments: the object, or JSON of it. Raises ValueError or TypeError for what is none."""
    found = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(found, Mapping):
        raise TypeError("the arguments are not an object")
    return Call(name, _json(found))


def results(texts: Sequence[str]) -> str:
    """What is said of calls that were run."""
    return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)


def reply(text: str, calls: Sequence[Call]) -> str:
    """The reply that says `text` and makes calls."""
    return "\n".join(filter(None, [text, *(each.text for each in calls)]))


def canonical(text: str) -> str:
    """The reply with its calls spelled as the template does, whatever white space a model put between."""
    reader = Reader()
    pieces = [*reader.add(text), *reader.finish()]
    calls = [piece for piece in pieces if isinstance(piece, Call)]
    return reply("".join(piece for piece in pieces if isinstance(piece, str)), calls) if calls else text


def are_shown(render: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]) -> bool:
    """Whether a template writes calls and results as this module does. render(messages, tools)."""
    made = call("\u2402c\u2403", {"a": "b"})
    function = {"name": made.name, "arguments": json.loads(made.arguments)}
    user, result = {"role": "user", "content": "\u2402u\u2403"}, "\u2402r\u2403"
    asked = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    told = {"role": "tool", "name": made.name, "content": result}
    plain = [{"role": "assistant", "content": made.text}, {"role": "user", "content": results([result])}]
    try:
        text = render([user, asked, told], [_PROBE])
        return _PROBE["function"]["name"] in text and text == render([user, *plain], [_PROBE])  # type: ignore[index]
    except TemplateRefusal:
        return False


class Reader:
    """Takes a reply piece by piece. A call that may be coming is held back until it is there or is none."""

    def __init__(self) -> None:
        self._held = ""

    def add(self, text: str) -> list[str | Call]:
        """What has come so far."""
        self._held += text
        found: list[str | Call] = []
        while OPEN in self._held and CLOSE in self._held.partition(OPEN)[2]:
            found += self._take()
        if OPEN not in self._held:
            end = len(self._held) - self._possible()
            found += filter(None, [self._held[:end]])
            self._held = self._held[end:]
        return found

    def finish(self) -> list[str | Call]:
        """The rest, when nothing follows: a call that nobody closed is one all the same."""
        found = self._take() if OPEN in self._held else []
        rest, self._held = self._held, ""
        return [*found, *filter(None, [rest])]

    def _take(self) -> list[str | Call]:
        match = _ONE.search(self._held)
        assert match
        before, self._held = self._held[: match.start()], self._held[match.end() :]
        made = _read(match[1])
        return [piece for piece in (before, made or match[0]) if piece]

    def _possible(self) -> int:
        """Length of the end that may belong to a call: white space, and the beginning of its mark."""
        size = next(n for n in range(len(OPEN) - 1, -1, -1) if self._held.endswith(OPEN[:n]))
        before = self._held[: len(self._held) - size]
        return size + len(before) - len(before.rstrip())


def _read(text: str) -> Call | None:
    try:
        said = json.loads(text)
        name = said["name"]
        return call(name, said.get("arguments", {})) if isinstance(name, str) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
