"""Ollama's interface as its own Python client uses it, against the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest

ollama = pytest.importorskip("ollama")

from server_support import Server
from test_server_openai import WEATHER


@pytest.fixture
def client(server: Server) -> Any:
    return ollama.Client(host=server.url)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_stream_says_what_the_whole_reply_says_with_times_in_nanoseconds(client: Any, server: Server) -> None:
    whole = client.chat(model=server.model, messages=[user("Tell me more.")])
    chunks = list(client.chat(model=f"{server.model}:latest", messages=[user("Tell me more.")], stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == whole.message.content != ""
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for last in (whole, chunks[-1]):
        assert last.eval_count == 8
        assert last.done_reason == "length"
        assert last.total_duration >= last.prompt_eval_duration + last.eval_duration > 10_000
        assert last.prompt_eval_count > 10


def test_options_have_their_effect(client: Any, server: Server) -> None:
    def said(**options: Any) -> str:
        told = client.chat(model=server.model, messages=[user("Tell me more.")], options=options)
        return str(told.message.content)

    hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert said(seed=1, **hot) == said(seed=1, **hot) != said(seed=2, **hot)
    cold = said(temperature=0)
    assert said(temperature=0, num_predict=-1).startswith(cold) != said(temperature=0, num_predict=2).startswith(cold)
    assert said(temperature=0, stop=[cold[1:]]) == cold[:1]
    assert said(temperature=0, num_ctx=512, num_thread=4, repeat_last_n=-1) == cold


def test_thinking_is_switched_off_in_the_words_of_each_interface(client: Any, server: Server) -> None:
    def said(**more: Any) -> str:
        return str(client.chat(model=server.model, messages=[user("Tell me more.")], **more).message.content)

    def openai(**more: Any) -> str:
        body = {"model": server.model, "messages": [user("Tell me more.")], **more}
        return str(server.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"])

    off = said(think=False)
    assert said() == said(think=True) != off
    assert openai(reasoning_effort="none") == openai(chat_template_kwargs={"enable_thinking": False}) == off
    told = server.ask("/v1/responses", {"input": "Tell me more.", "reasoning": {"effort": "none"}, "store": False})
    assert told["output"][0]["content"][0]["text"] == off


def test_generate_goes_on_by_its_context(client: Any, server: Server) -> None:
    first = client.generate(model=server.model, prompt="One.")
    second = client.generate(model=server.model, prompt="Two.", context=first.context)
    chat = [user("One."), {"role": "assistant", "content": first.response}, user("Two.")]
    assert second.response == client.chat(model=server.model, messages=chat).message.content
    assert second.prompt_eval_count > first.prompt_eval_count


def test_a_raw_prompt_goes_on_without_the_template(client: Any, server: Server) -> None:
    raw = client.generate(model=server.model, prompt="One.", raw=True)
    assert raw.prompt_eval_count == 4
    assert raw.context is None


def test_a_format_holds_the_reply(client: Any, server: Server) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    told = client.chat(model=server.model, messages=[user("Is it?")], format=schema, options={"num_predict": 50})
    assert json.loads(told.message.content)["ok"] in (True, False)


def test_a_call_and_its_result_are_turns_of_the_profile_that_the_model_s_name_tells(
    client: Any, server: Server
) -> None:
    model = f"{server.model}@caller"
    messages: list[Any] = [user("Weather in Rome?")]
    first = client.chat(model=model, messages=messages, tools=[WEATHER])
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]}
    result = {"role": "tool", "tool_name": "weather", "content": "sunny"}
    client.chat(model=model, messages=[*messages, called, result], tools=[WEATHER])
    with server.store() as store:
        texts = [row["text"] for row in store.rows("SELECT text FROM messages ORDER BY id DESC LIMIT 4")][::-1]
    assert first.message.content is not None
    assert texts[:3] == [
        "Weather in Rome?",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        "<tool_response>\nsunny\n</tool_response>",
    ]


def test_the_models_are_described(client: Any, server: Server) -> None:
    client.chat(model=f"{server.model}@described", messages=[user("Hello.")])
    names = [model.model for model in client.list().models]
    assert {f"{server.model}:latest", f"{server.model}@described:latest"} <= set(names)
    shown = client.show(f"{server.model}:latest")
    assert shown.details.family == "qwen3"
    assert shown.modelinfo["qwen3.block_count"] == 2
    assert shown.capabilities == ["completion", "tools", "thinking"]
    (loaded,) = client.ps().models
    assert loaded.context_length == 512


def test_it_looks_like_ollama_to_who_asks_whether_it_is(server: Server) -> None:
    assert server.text("/") == "Ollama is running"
    assert server.text("/", method="HEAD") == ""
    assert server.ask("/api/version")["version"]
    assert server.ask("/api/generate", {"model": server.model})["done_reason"] == "load"
    assert server.ask("/api/chat", {"model": server.model, "messages": [], "keep_alive": 0})["done_reason"] == "unload"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("chat", {"model": "other", "messages": [user("a")]}, 404, "no model other"),
        ("chat", {"messages": [user("a")]}, 400, "model is missing"),
        ("chat", {"messages": [{**user("a"), "images": ["x"]}]}, 400, "images"),
        ("chat", {"messages": [user("a")], "options": {"num_ctx": 100_000}}, 400, "num_ctx"),
        ("chat", {"messages": [user("a")], "options": {"mirostat": 2}}, 400, "mirostat"),
        ("chat", {"messages": [user("a")], "think": "deeply"}, 400, "think"),
        ("chat", {"messages": [user("a")], "format": 5}, 400, "format"),
        ("generate", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        ("generate", {"prompt": "a", "context": 10**9}, 400, "context"),
        ("pull", {"model": "x"}, 501, "pull"),
        ("embed", {"model": "x", "input": "a"}, 501, "embed"),
    ],
)
def test_what_can_t_be_done_is_refused_in_its_own_form(
    server: Server, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    if said != "model is missing":
        body = {"model": server.model, **body}
    assert said in server.ask(f"/api/{path}", body, code=status)["error"]
