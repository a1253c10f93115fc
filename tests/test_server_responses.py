"""OpenAI's responses as its own client uses them: a conversation that the server keeps, gone on from at any turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from server_support import Server
from test_server_openai import WEATHER

Create = Callable[..., Any]


@pytest.fixture
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def create(client: Any, server: Server) -> Create:
    """create(input, **more): a response."""

    def one(input: Any, **more: Any) -> Any:
        return client.responses.create(model=server.model, input=input, **more)

    return one


def test_a_response_goes_on_from_the_one_before_it_and_can_be_read_again(create: Create, client: Any) -> None:
    first = create("My dog is called Rex.", metadata={"mine": "kept"}, instructions="Be brief.")
    second = create("What is it called?", previous_response_id=first.id)
    assert first.conversation.id == second.conversation.id
    assert (first.metadata["turn"], second.metadata["turn"], first.metadata["mine"]) == ("1", "2", "kept")
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens - 20
    again = client.responses.retrieve(first.id)
    assert (again.id, again.output_text) == (first.id, first.output_text)


def test_going_on_from_a_response_that_others_follow_branches_and_loses_nothing(create: Create, server: Server) -> None:
    first = create("One.")
    second = create("Two.", previous_response_id=first.id)
    kept = server.state(first.conversation.id)
    beside = create("Other.", previous_response_id=first.id)
    assert beside.conversation.id != first.conversation.id
    assert beside.metadata["turn"] == "2"
    assert server.state(first.conversation.id) == kept
    assert server.state(beside.conversation.id, 1) == server.state(first.conversation.id, 1) != kept
    assert create("Three.", previous_response_id=second.id).conversation.id == first.conversation.id


def test_a_response_that_is_deleted_is_forgotten(create: Create, client: Any, server: Server) -> None:
    first = create("One.")
    kept = server.state(first.conversation.id)
    second = create("Two.", previous_response_id=first.id)
    client.responses.delete(second.id)
    assert server.state(first.conversation.id) == kept
    for gone in (second.id, "resp_nobody_1", "what"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(gone)
    third = create("Three.", previous_response_id=first.id)
    client.responses.delete(first.id)  # the later turn is replayed without it
    assert client.responses.retrieve(third.id).output_text == third.output_text
    assert server.state(first.conversation.id) != kept


def test_what_is_not_to_be_stored_is_not(create: Create, server: Server) -> None:
    first = create("One.")
    kept = server.state(first.conversation.id)
    create("Two.", previous_response_id=first.id, store=False)
    assert server.state(first.conversation.id) == kept
    assert create("Two.", previous_response_id=first.id).metadata["turn"] == "2"
    with server.store() as store:
        before = store.row("SELECT count(*) AS n FROM turns")
        assert create("Nobody is to know.", store=False).conversation is None
        assert store.row("SELECT count(*) AS n FROM turns") == before


def test_a_conversation_is_named_by_the_client_or_the_server(create: Create, client: Any) -> None:
    named = client.conversations.create()
    turns = [create("Who are you?", conversation=named.id) for _ in range(2)]
    turns += [create("Who are you?", conversation=turns[0].conversation.id)]
    # whatever is sent is new: this would pass for a request for a title from a client that sends all of a chat
    turns += [create(f"Why {turns[-1].output_text} to Who are you?, I wonder.", conversation=named.id)]
    assert [turn.metadata["turn"] for turn in turns] == ["1", "2", "3", "4"]


def test_a_stream_tells_of_every_item_in_the_order_that_the_client_expects(create: Create) -> None:
    whole = create("Count.", store=False)
    events = list(create("Count.", store=False, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if not event.type.endswith("delta")]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", f"response.{whole.status}",
    ]  # fmt: skip
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response
    assert deltas == last.output_text == whole.output_text
    assert last.usage == whole.usage


def test_a_reply_that_was_cut_is_incomplete(create: Create) -> None:
    for stream in (False, True):
        said = create("Tell me more.", store=False, max_output_tokens=2, stream=stream)
        said = list(said)[-1].response if stream else said
        assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert said.usage.output_tokens == 2


def test_the_client_s_own_reader_of_streams_takes_it(client: Any, server: Server) -> None:
    with client.responses.stream(model=server.model, input="Count.", store=False) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text


def test_a_call_and_its_result_go_on_with_or_without_the_server_s_record(create: Create, server: Server) -> None:
    tool = {"type": "function", **WEATHER["function"]}
    forced = {"tools": [tool], "tool_choice": "required", "max_output_tokens": 100}
    made = create("Weather in Rome?", **forced)
    (call,) = made.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    went_on = create([result], previous_response_id=made.id, tools=[tool])
    assert went_on.metadata["turn"] == "2"
    sent = [{"role": "user", "content": "Weather in Rome?"}, call.model_dump(), result]
    told = create(sent, tools=[tool], extra_headers={"X-Session-Id": "weather"})
    assert told.output_text == went_on.output_text
    # what the server drew and what a client tells of it are spelled alike, so the memories are the same
    events = list(create("Weather in Rome?", **forced, stream=True))
    kinds = [event.type for event in events if "function_call" in event.type]
    assert kinds == ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
    assert events[-1].response.output[0].arguments == call.arguments


def test_a_schema_holds_the_text(create: Create) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    text = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    said = create("Is it?", text=text, max_output_tokens=60, store=False)
    assert json.loads(said.output_text)["ok"] in (True, False)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_nothing_3"}, "previous_response_id"),
        ({"previous_response_id": "chatcmpl-1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "messages[0].content"),
    ],
)
def test_what_can_t_be_done_is_refused_by_name(create: Create, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(**{"input": "a", **more})
    assert raised.value.param == param
