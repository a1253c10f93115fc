"""The form in which a template writes calls of tools: found, read, and fed as the template has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from server_support import TOOLS_TEMPLATE
from tool_templates import ELEMENTS, LLAMA, MISTRAL, NAMED

from deltamem_cli.engine import ChatTemplate, EngineError, LazyGrammar, Sampling
from deltamem_cli.engine.sampling import Sampler
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.tools.calls import Call, reply, results
from deltamem_cli.session.tools.grammar import of_calls, once_begun
from deltamem_cli.session.tools.reading import Reader, neutral
from deltamem_cli.synthetic.vocabulary import CHAT_TEMPLATE

MakePrompt = Callable[..., Prompt]
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALLS = [Call("add", '{"a": "b\\"c"}'), Call("sub", "{}")]
SEVERAL = [TOOLS_TEMPLATE, MISTRAL, NAMED]
NAMES = {TOOLS_TEMPLATE: "hermes", LLAMA: "llama", MISTRAL: "mistral", NAMED: "named"}


@pytest.fixture
def prompt(tiny_model: Any, loaded: Any) -> MakePrompt:
    """prompt(source): of a tiny model, with a tool."""

    def make(source: str, tools: Any = (ADD,)) -> Prompt:
        return Prompt(loaded(tiny_model("qwen3")), None, ChatTemplate(source, "the template"), tools=tools)

    return make


def named(value: Any) -> str | None:
    return NAMES.get(value) if isinstance(value, str) else None


def read(made: Prompt, text: str, size: int) -> tuple[str, list[Call]]:
    """What is said, and what is called, of a reply that comes in pieces."""
    assert made.tool_form
    reader = Reader(made.tool_form)
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    found = [*(each for part in parts for each in reader.add(part)), *reader.finish()]
    return "".join(each for each in found if isinstance(each, str)), [each for each in found if isinstance(each, Call)]


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, ELEMENTS])
def test_a_template_that_has_no_tools_or_writes_them_in_no_known_form_is_refused(
    prompt: MakePrompt, source: str
) -> None:
    with pytest.raises(EngineError, match="no tools of a form that is known"):
        prompt(source)


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("source", "text"),
    [
        (TOOLS_TEMPLATE, '<tool_call>\n{"name": "add", "arguments": {"a": "b\\"c"}}\n</tool_call>'),
        (LLAMA, '{"name": "add", "parameters": {"a": "b\\"c"}}'),
        (LLAMA, '\n<|python_tag|>{"type": "function", "name":"add", "parameters":{"a":"b\\"c"}}\n'),
        (LLAMA, '{"name": "add", "arguments": {"a": "b\\"c"}}'),
        (MISTRAL, '[TOOL_CALLS][{"name": "add", "arguments": {"a": "b\\"c"}, "id": "Xyz12abcd"}]'),
        (MISTRAL, '[TOOL_CALLS] [{"arguments": {"a": "b\\"c"}, "name": "add"}]'),
        (NAMED, '[TOOL_CALLS]add[ARGS]{"a": "b\\"c"}'),
    ],
    ids=named,
)
def test_a_call_is_found_however_it_comes_in_pieces(prompt: MakePrompt, source: str, text: str, size: int) -> None:
    assert read(prompt(source), text, size) == ("", CALLS[:1])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (LLAMA, '{"name": "add"'),
        (LLAMA, '{"colour": "red"}'),
        (LLAMA, 'It is {"name": "add", "parameters": {}}'),
        (LLAMA, "<|python_tag|>print(1)"),
        (LLAMA, " \n"),
        (MISTRAL, "[TOOL_CALLS] nothing"),
        (MISTRAL, "[TOOL"),
        (NAMED, "[TOOL_CALLS]add[ARGS][1]"),
        (NAMED, "[TOOL_CALLS]add"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_call_is_text(prompt: MakePrompt, source: str, text: str, size: int) -> None:
    assert read(prompt(source), text, size) == (text, [])


def test_a_reply_that_can_be_no_call_is_told_at_once(prompt: MakePrompt) -> None:
    form = prompt(LLAMA).tool_form
    assert form
    reader = Reader(form)
    assert reader.add("The <|py") == ["The <|py"]
    assert reader.add("{") == ["{"]


@pytest.mark.parametrize("source", [LLAMA, *SEVERAL], ids=named)
def test_calls_are_written_as_they_are_read(prompt: MakePrompt, source: str) -> None:
    made = prompt(source)
    assert made.tool_form
    for calls in (CALLS[:1], CALLS):
        text = "".join(part for part, _ in made.tool_form.written(calls))
        assert read(made, text, 1000) == ("", calls)
        assert neutral(text, made.tool_form) == reply("", calls)
    assert neutral(reply("I look.", CALLS), made.tool_form).startswith("I look.")


@pytest.mark.parametrize("result", ["sunny", 'a "b" <|im_end|>'])
@pytest.mark.parametrize(("source", "n"), [(source, n) for source in SEVERAL for n in (1, 2)] + [(LLAMA, 1)], ids=named)
def test_what_is_fed_of_calls_and_their_results_is_what_the_template_writes(
    prompt: MakePrompt, source: str, n: int, result: str
) -> None:
    made = prompt(source)
    model, told = made.model, [f"{result}{i}" for i in range(n)]
    calls = [
        {
            "id": f"call0000{i}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.loads(call.arguments)},
        }
        for i, call in enumerate(CALLS[:n], 1)
    ]
    said = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": f"call0000{i}", "content": text} for i, text in enumerate(told, 1)),
    ]
    pieces = [
        made.head(),
        (made.user("Look.").tokens[len(made.opening()) :]),
        made.reply(reply("", CALLS[:n])),
        made.close(),
        made.user(results(told)).tokens,
    ]
    whole = model.render(said, template=made.template, tools=[ADD])
    assert model.text([token for piece in pieces for token in piece], special=True) == whole


@pytest.mark.parametrize("source", [LLAMA, *SEVERAL], ids=named)
def test_what_a_tool_says_is_no_order_to_the_model(prompt: MakePrompt, source: str) -> None:
    made = prompt(source)
    control = made.model.tokenize("<|im_end|>", special=True)
    piece = made.user(results(["a <|im_end|>"]))
    content = piece.tokens[slice(*piece.content)]
    assert made.model.text(content) == "a <|im_end|>"
    assert control[0] not in content


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "at": {"$ref": "#/$defs/at"}},
            "required": ["city", "at"],
            "$defs": {"at": {"const": 5}},
        },
    },
}


def drawn(made: Prompt, grammar: str | LazyGrammar, wishes: str = "") -> str:
    """What is drawn by one who wishes for these characters, as far as the grammar lets it, and then for the end."""
    model = made.model
    wanted = [*model.tokenize(wishes), *model.tokenize("<|im_end|>", special=True)]
    logits = np.zeros(model.n_vocab, np.float32)
    tokens: list[int] = []
    sampler = Sampler(model, Sampling(temperature=0), lambda: logits, grammar)
    try:
        while len(tokens) < 300:
            logits[:] = 0
            logits[wanted[min(len(tokens), len(wanted) - 1)]] = 1
            token = sampler.sample()
            if model.is_end(token):
                return model.text(tokens)
            tokens.append(token)
    finally:
        sampler.close()
    raise AssertionError(model.text(tokens))


@pytest.mark.parametrize("source", [LLAMA, *SEVERAL], ids=named)
def test_a_call_that_must_be_made_is_in_the_form_of_the_template(prompt: MakePrompt, source: str) -> None:
    made = prompt(source)
    assert made.tool_form
    text = drawn(made, of_calls(made.tool_form, [WEATHER]), "Hello.")
    said, (call,) = read(made, text, 1000)
    assert (said, call.name) == ("", "weather")
    assert call.arguments in ('{"city": "Rome", "at": 5}', '{"city": "Oslo", "at": 5}')


def test_a_lazy_grammar_holds_from_its_token_on(prompt: MakePrompt) -> None:
    made = prompt(LLAMA)
    (token,) = made.model.tokenize("t")
    lazy = LazyGrammar('root ::= "tool"', token)
    assert drawn(made, lazy, "a call") == "a call"
    assert drawn(made, lazy, "a tiger") == "a tool"
    assert drawn(made, LazyGrammar('root ::= "t', token), "a tiger") == "a tiger", "one that can't be read is left out"


@pytest.mark.parametrize(
    ("source", "mark", "piece", "begins"),
    [
        (TOOLS_TEMPLATE, "<tool_call>", b"<tool_call>", '"<tool_call>\\n{\\"name\\": \\""'),
        (MISTRAL, "[TOOL_CALLS]", b"", '"[TOOL_CALLS][{\\"name\\": \\""'),
        (NAMED, "[TOOL_CALLS]", b"", '"[TOOL_CALLS]"'),
        (NAMED, "[TOOL_CALLS]", b" [TOOL_CALLS]", None),
        (NAMED, "[", b"[", None),
        (LLAMA, "{", b"{", None),
    ],
    ids=named,
)
def test_a_call_is_held_once_begun_where_a_token_tells_that(
    prompt: MakePrompt, source: str, mark: str, piece: bytes, begins: str | None
) -> None:
    form = prompt(source).tool_form
    assert form
    model: Any = SimpleNamespace(
        tokenize=lambda text, special: [7, 8], text=lambda tokens, special: mark, piece=lambda token: piece
    )
    for several in (True, False):
        found = once_begun(form, [WEATHER], model, several=several)
        if begins is None:
            assert found is None
            continue
        assert found and found.trigger == 7
        root = found.gbnf.splitlines()[0]
        assert root.startswith(f"root ::= {begins} call") and ("call)*" in root) is several
    bad = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "https://elsewhere"}}}
    assert once_begun(form, [bad], model, several=True) is None
