"""Tools over HTTP with templates of different forms: what must be called is called, and its result goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server_support import TOOLS_TEMPLATE
from tool_templates import LLAMA, MISTRAL, NAMED

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="Starlette's test client needs httpx")

from starlette.testclient import TestClient

from deltamem_cli.server.app import build
from deltamem_cli.server.conversations.places import Places
from deltamem_cli.server.requests.service import Service
from deltamem_cli.session.loading import load
from deltamem_cli.session.request import Request

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}
OTHER = {"type": "function", "function": {"name": "time"}}
CHAT, HEAD = "/v1/chat/completions", {"X-Dmem-Conversation": "talk"}
FORCED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(params=[TOOLS_TEMPLATE, LLAMA, MISTRAL, NAMED], ids=["hermes", "llama", "mistral", "named"])
def http(request: Any, home: Path, tiny_model: Any, tiny_adapter: Any) -> Iterator[TestClient]:
    from chat_support import as_if_tried

    home.mkdir()
    (home / "template.jinja").write_text(request.param)
    model = tiny_model("qwen3")
    as_if_tried(model)
    asked = Request(
        model=model,
        adapter=tiny_adapter(model),
        threads=1,
        ctx_size=2048,
        options={"max_tokens": 8, "temperature": 0},
        template=home / "template.jinja",
    )
    with ExitStack() as stack:
        places = Places(load(stack, asked, seats=2), asked, home / "memory.db")
        client = stack.enter_context(TestClient(build(Service(places, "tiny", "default", 0))))
        yield client
        client.portal.call(places.close)


def ask(http: TestClient, messages: list[Any], **more: Any) -> dict[str, Any]:
    done = http.post(CHAT, json={"messages": messages, "tools": [TOOL, OTHER], **more}, headers=HEAD)
    assert done.status_code == 200, done.text
    return dict(done.json())


@pytest.mark.parametrize("choice", [FORCED, "required"])
def test_what_must_be_called_is_called_and_its_result_goes_on(http: TestClient, choice: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "Rome?"}]
    tools = [TOOL] if choice == "required" else [TOOL, OTHER]
    made = ask(http, messages, tools=tools, tool_choice=choice, max_tokens=200)["choices"][0]
    (call,) = made["message"]["tool_calls"]
    assert (made["finish_reason"], call["function"]["name"]) == ("tool_calls", "weather")
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    messages += [made["message"], {"role": "tool", "tool_call_id": call["id"], "content": "It is sunny."}]
    went_on = ask(http, messages)
    assert went_on["metadata"]["turn"] == "2", "the call was not taken for something new"
    messages += [went_on["choices"][0]["message"], {"role": "user", "content": "Thanks."}]
    assert ask(http, messages)["metadata"]["turn"] == "3"
    shown = http.get("/v1/memory/show").json()["turns"]
    assert shown[1]["messages"][0]["text"] == "<tool_response>\nIt is sunny.\n</tool_response>"


def test_a_stream_tells_the_call_and_nothing_of_its_form(http: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "Rome?"}], "tools": [TOOL], "tool_choice": FORCED}
    lines = http.post(CHAT, json={**body, "stream": True, "max_tokens": 200}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert [call["function"]["name"] for delta in deltas for call in delta.get("tool_calls", [])] == ["weather"]
    assert "".join(delta.get("content") or "" for delta in deltas) == ""


def test_a_call_that_a_client_sends_as_text_is_the_same_call(http: TestClient) -> None:
    messages: list[Any] = [{"role": "user", "content": "Rome?"}]
    ask(http, messages, tool_choice=FORCED, max_tokens=200)
    text = http.get("/v1/memory/show").json()["turns"][0]["messages"][-1]["text"]
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And now?"}]
    assert ask(http, messages)["metadata"]["turn"] == "2"


def test_calls_that_only_the_client_knows_are_fed(http: TestClient, request: pytest.FixtureRequest) -> None:
    calls = [{"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
    messages = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "x", "content": "sunny"},
    ]
    assert ask(http, messages)["metadata"]["turn"] == "2"
    messages += [{"role": "assistant", "content": "It is."}, {"role": "user", "content": "And now?"}]
    assert ask(http, messages)["metadata"]["turn"] in ("3", "2"), "the reply was another one"
    asked, called = (message["text"] for message in http.get("/v1/memory/show").json()["turns"][0]["messages"])
    assert asked == "Rome?"
    assert "weather" in called and ("<tool_call>" in called) is (request.node.callspec.id == "hermes")


def test_with_none_nothing_is_called_and_with_auto_the_model_decides(http: TestClient) -> None:
    for choice in ("none", "auto"):
        made = ask(http, [{"role": "user", "content": choice}], tool_choice=choice)["choices"][0]["message"]
        assert made["content"] and "tool_calls" not in made


def test_a_schema_that_can_not_be_followed_is_refused_only_where_it_must_be(http: TestClient) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "https://elsewhere"}}}
    body = {"messages": [{"role": "user", "content": "Rome?"}], "tools": [bad]}
    assert http.post(CHAT, json=body).status_code == 200
    refused = http.post(CHAT, json={**body, "tool_choice": "required"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
