"""Tools in a template's words: what is offered, called and told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deltamem_cli.server.problems import Problem
from deltamem_cli.server.requests.tools import offered
from deltamem_cli.session.reply import Reply
from deltamem_cli.session.tools.calls import Call, call, reply
from deltamem_cli.session.tools.form import HERMES
from deltamem_cli.session.tools.grammar import of_calls
from deltamem_cli.session.tools.reading import Reader, neutral

REPLY = 'I look.\n\n<tool_call>\n{"name": "a", "arguments": {"x":1}}\n</tool_call> <tool_call>{"name":"b"}</tool_call>'
CALLS = [Call("a", '{"x": 1}'), Call("b", "{}")]


def read(*pieces: str) -> list[str | Call]:
    reader = Reader()
    return [*(found for piece in pieces for found in reader.add(piece)), *reader.finish()]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_found_however_a_reply_comes_in_pieces(size: int) -> None:
    found = read(*(REPLY[i : i + size] for i in range(0, len(REPLY), size)))
    assert [piece for piece in found if isinstance(piece, Call)] == CALLS
    assert "".join(piece for piece in found if isinstance(piece, str)) == "I look."


def test_text_is_held_back_only_while_it_may_become_a_call() -> None:
    reader = Reader()
    assert reader.add("a <tool") == ["a"]
    assert reader.add("box>") == [" <toolbox>"]


@pytest.mark.parametrize(
    "text", ["<tool_call>{}</tool_call>", "<tool_call>nothing", '<tool_call>{"name": 1}</tool_call>']
)
def test_what_is_no_call_is_text(text: str) -> None:
    assert "".join(map(str, read(text))) == text


def test_a_call_that_nobody_closed_is_one() -> None:
    assert read('<tool_call>\n{"name": "b", "arguments": {}}') == [CALLS[1]]


def test_a_reply_and_what_a_client_makes_of_it_are_spelled_alike() -> None:
    alike = neutral(REPLY, HERMES)
    assert alike == reply("I look.", [call("a", {"x": 1}), call("b", "{}")])
    assert neutral(alike, HERMES) == alike
    assert neutral(" no <tool_ calls \n", HERMES) == " no <tool_ calls \n"


def test_tools_that_define_the_same_name_keep_their_own_definitions() -> None:
    def tool(name: str, value: str) -> dict[str, object]:
        parameters = {"properties": {"x": {"$ref": "#/$defs/X"}}, "required": ["x"], "$defs": {"X": {"const": value}}}
        return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}

    grammar = of_calls(HERMES, offered({"tools": [tool("a", "one"), tool("b", "two")]}).tools)
    assert "one" in grammar
    assert "two" in grammar
    rules = [line.partition(" ::=")[0] for line in grammar.splitlines()]
    assert len(set(rules)) == len(rules)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": "all"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "a"}], "tool_choice": {"name": "b"}}, "tool_choice"),
    ],
)
def test_what_can_t_be_offered_is_refused_by_name(body: dict[str, object], param: str) -> None:
    with pytest.raises(Problem) as raised:
        offered(body)
    assert raised.value.param == param


@pytest.mark.parametrize(("spelled", "text"), [((), ""), (("<tool_call>",), "<tool_call>")])
def test_a_mark_that_is_a_control_token_is_text_where_tools_are_offered(spelled: tuple[str, ...], text: str) -> None:
    model = SimpleNamespace(piece=lambda token: b"", text=lambda tokens, special: "<tool_call>")
    seat = SimpleNamespace(model=model, has_memory=False)
    reply = Reply(seat, begun="", first_span=0, write_answer=True, write_thinking=False, spelled=spelled)  # type: ignore[arg-type]
    reply.take(7)
    assert "".join([*reply.news(), *reply.finish()]) == reply.text == text
