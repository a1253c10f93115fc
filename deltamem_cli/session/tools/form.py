"""How a template writes calls, found by rendering some. Knows no tokens.

Known are forms whose arguments are a JSON object: a call is one itself ({"name": …, "arguments": {…}}), alone or in a list,
or its name stands before its arguments ([TOOL_CALLS]name[ARGS]{…}).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltamem_cli.engine.template import TemplateRefusal
from deltamem_cli.session.marks import Marks
from deltamem_cli.session.thinking import Mark
from deltamem_cli.session.tools.calls import Call, as_json, call

ID = "\u2402id\u2403"  # in a form: where a call's id stands
PROBE: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "\u2402f\u2403", "description": "", "parameters": {"type": "object", "properties": {}}},
}
USER = "\u2402u\u2403"
_NAMES, _RESULT = "\u2402c{}\u2403", "\u2402r{}\u2403"

# what an object begins with up to its name, and ends with behind its arguments
_OBJECT = re.compile(r'\{\s*(?:"\w+":\s*"\w+",\s*)?"(\w+)":\s*"$')
_MIDDLE = re.compile(r'",\s*"(\w+)":\s*')
_REST = re.compile(rf'\s*(?:,\s*"\w+":\s*"{ID}"\s*)?\}}')

# render(messages, tools): the text of messages, with the start of the next reply
Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True)
class ToolForm:
    """Calls are written: open, name, middle, arguments, between, name, middle, arguments, …, close.

    between: None where a reply makes one call.
    """

    open: str
    middle: str
    between: str | None
    close: str

    @cached_property
    def is_object(self) -> bool:
        """Whether a call is one JSON object."""
        return bool(_OBJECT.search(self.open) and _MIDDLE.fullmatch(self.middle) and _REST.match(self.close))

    @cached_property
    def mark(self) -> str:
        """What tells that calls follow; empty where the whole reply is one."""
        if not self.is_object:
            return self.open.strip()
        return _OBJECT.sub("", self.open).strip().removesuffix("[").strip()

    @cached_property
    def end(self) -> str:
        """What tells that no call follows; empty where nothing does."""
        return (
            _REST.sub("", self.close, count=1).strip().removeprefix("]").strip()
            if self.is_object
            else self.close.strip()
        )

    def read(self, text: str) -> list[Call]:
        """The calls that stand between mark and end; none where it is something else."""
        try:
            return self._objects(text) if self.is_object else self._named(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []

    def written(self, calls: Sequence[Call]) -> list[tuple[str, bool]]:
        """The text of calls in parts, each with whether it is the form's own, in which control tokens are meant."""
        parts = []
        for i, each in enumerate(calls):
            joint = self.open if not i else self.between or f"{self.close}; {self.open}"
            name = as_json(each.name)[1:-1] if self.is_object else each.name
            parts += [(_with_id(joint, i), True), (name, False), (_with_id(self.middle, i + 1), True)]
            parts.append((each.arguments, False))
        return [*parts, (_with_id(self.close, len(calls)), True)]

    def _objects(self, text: str) -> list[Call]:
        name, arguments = _OBJECT.search(self.open)[1], _MIDDLE.match(self.middle)[1]  # type: ignore[index]
        made = []
        for said in _values(text):
            given: Any = next((said[key] for key in (arguments, "arguments", "parameters") if key in said), {})
            if not isinstance(said[name], str):
                raise TypeError
            made.append(call(said[name], given))
        return made

    def _named(self, text: str) -> list[Call]:
        parts = re.split(_pattern(self.between), text) if self.between else [text]
        pairs = [re.split(_pattern(self.middle), part, maxsplit=1) for part in parts]
        return [call(name.strip(), json.loads(arguments)) for name, arguments in pairs]


HERMES = ToolForm(
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    '}\n</tool_call>\n<tool_call>\n{"name": "',
    "}\n</tool_call>",
)


def messages(n_calls: int, n_results: int) -> list[dict[str, Any]]:
    """A question, a reply that calls, and what came of it, to be rendered."""
    made: list[Any] = []
    for i in range(1, n_calls + 1):
        function = {"name": _NAMES.format(i), "arguments": {f"a{i}": "b"}}
        made.append({"type": "function", "id": _id(i), "function": function})
    told = [
        {"role": "tool", "name": _NAMES.format(min(i, n_calls)), "tool_call_id": _id(i), "content": _RESULT.format(i)}
        for i in range(1, n_results + 1)
    ]
    return [{"role": "user", "content": USER}, {"role": "assistant", "content": "", "tool_calls": made}, *told]


def form_of(render: Render, marks: Marks, thoughts: Sequence[Mark]) -> ToolForm | None:
    """The form in which a template writes calls; None where it writes none, or in a form that is not known."""
    found = _found(render, marks, thoughts, 1)
    if found is None:
        return None
    opened, middle, close = found
    two = _found(render, marks, thoughts, 2)
    several = two and (*two[:2], *two[3:]) == (opened, middle, middle, close)
    form = ToolForm(opened, middle, two[2] if two and several else None, close)
    closed = marks.reply_close.strip()
    if not (form.mark or form.is_object) or ID in form.mark or (closed and closed in opened):
        return None  # no reply could be told from a call, or a call from the end of a reply
    return form


def _found(render: Render, marks: Marks, thoughts: Sequence[Mark], n_calls: int) -> tuple[str, ...] | None:
    """What stands before, between and behind names and arguments of so many calls."""
    try:
        whole = render(messages(n_calls, n_calls), [PROBE])
    except TemplateRefusal:
        return None
    behind = whole.partition(USER)[2]
    if PROBE["function"]["name"] not in whole or not behind.startswith(marks.reply_open):
        return None
    said = behind[len(marks.reply_open) :]
    for mark in thoughts:  # one that is empty
        if said.startswith(mark.open):
            said = said.partition(mark.close)[2]
    shown = r"(.*?)".join(f"{_NAMES.format(i)}(.*?){_arguments(i)}" for i in range(1, n_calls + 1))
    match = re.match(rf"(.*?){shown}(.*?){_RESULT.format(1)}", said, re.DOTALL)
    if not match:
        return None
    *parts, last = match.groups()
    close, closed, _ = last.partition(marks.reply_close)
    if not closed:
        return None
    return tuple(re.sub(r"call0000\d", ID, part) for part in (*parts, close))


def told(whole: str, marks: Marks, n_calls: int, n_results: int) -> list[str] | None:
    """What a template puts before, between and behind results; whole: what it makes of messages(). None: it is not clear."""
    *_, rest = re.split(_arguments(n_calls), whole)
    _, closed, rest = rest.partition(marks.reply_close)
    frames = re.split("|".join(_RESULT.format(i) for i in range(1, n_results + 1)), rest)
    if not closed or len(frames) != n_results + 1 or _NAMES[0] in "".join(frames):
        return None
    frames[-1] = frames[-1].removesuffix(marks.begun)
    return frames


def _arguments(i: int) -> str:
    return rf'\{{\s*"a{i}":\s*"b"\s*\}}'


def _id(i: int) -> str:
    return f"call{i:05}"  # of the length that Mistral's templates want


def _with_id(text: str, i: int) -> str:
    """i: of the call whose id it is; 0: there is none before the first one's middle."""
    return text.replace(ID, _id(max(i, 1)))


def _pattern(text: str | None) -> str:
    return re.escape((text or "").strip()).replace(re.escape(ID), r"[\w.-]+")


def _values(text: str) -> list[Any]:
    """The JSON values that follow each other in `text`, those of lists one by one. Raises ValueError for anything else."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := re.compile(r"[\s,;]*").match(text, at).end()) < len(text):  # type: ignore[union-attr]
        value, at = decoder.raw_decode(text, at)
        found += value if isinstance(value, list) else [value]
    return found
