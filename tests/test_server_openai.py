"""OpenAI's interfaces as its own client uses them, against the real server."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from chat_support import files
from server_support import Server

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def chat(client: Any, server: Server) -> Any:
    """chat(messages, **more): a chat completion."""
    return partial(client.chat.completions.create, model=server.model)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_the_models_are_the_model_and_its_profiles(client: Any, chat: Any) -> None:
    chat(messages=[user("hello")], extra_headers={"X-Dmem-Profile": "work"})
    names = [model.id for model in client.models.list()]
    assert names == [names[0], f"{names[0]}@work"]
    assert client.models.retrieve(f"{names[0]}@work").id == f"{names[0]}@work"


def test_a_stream_says_what_the_whole_reply_says(chat: Any) -> None:
    whole = chat(messages=[user("Count.")])
    chunks = list(chat(messages=[user("Count.")], stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_call_that_must_be_made_keeps_to_the_tool_s_schema_and_its_result_goes_on(chat: Any) -> None:
    head = {"X-Dmem-Conversation": "forced call"}
    messages = [user("What is the weather in Rome?")]
    forced = {
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 100,
    }
    made = chat(messages=messages, extra_headers=head, **forced).choices[0]
    (call,) = made.message.tool_calls
    assert (made.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert call.function.arguments in ('{"city": "Rome"}', '{"city": "Oslo"}')
    alone = chat(messages=messages, parallel_tool_calls=False, **forced).choices[0].message
    assert [each.function for each in alone.tool_calls] == [call.function]  # nothing may follow it, so it is not closed
    told = [*messages, made.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    went_on = chat(messages=told, tools=[WEATHER], extra_headers=head)
    assert went_on.metadata["turn"] == "2"  # the call was not taken for something new
    chunks = list(chat(messages=told, stream=True, extra_headers=head, **forced))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls] == ["weather"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_text_is_gone_on_with_as_it_stands_and_nothing_is_kept(client: Any, server: Server) -> None:
    go_on = partial(client.completions.create, model=server.model, prompt="Once upon a time", max_tokens=6)
    before = files(server.home)
    whole = go_on()
    assert whole.usage.prompt_tokens == len("Once upon a time") - 1  # a token each, but "on"
    chunks = list(go_on(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text != ""
    assert whole.choices[0].finish_reason == "length"
    stop = whole.choices[0].text[-1]
    stopped = go_on(stop=stop).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole.choices[0].text.partition(stop)[0], "stop")
    assert files(server.home) == before


@pytest.mark.parametrize(
    ("more", "param"), [({"echo": True}, "echo"), ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": [10**6]}, "prompt")]
)
def test_what_a_completion_can_t_do_is_refused_by_name(client: Any, server: Server, more: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{"model": server.model, "prompt": "a", **more})
    assert raised.value.param == param


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_said(client: Any, server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="511 fit") as raised:
        client.completions.create(model=server.model, prompt="x" * 600, stream=True)
    assert raised.value.code == "context_length_exceeded"


def test_there_are_no_embeddings(client: Any, server: Server) -> None:
    with pytest.raises(openai.APIStatusError, match="no embeddings") as raised:
        client.embeddings.create(model=server.model, input="hello")
    assert raised.value.status_code == 501
