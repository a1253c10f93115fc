"""An error in the middle of a stream, as each interface tells of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("starlette")

from deltamem_cli.server.ollama import chat as ollama
from deltamem_cli.server.openai import chat, completions, responses
from deltamem_cli.server.openai.response_items import Items
from deltamem_cli.server.problems import Problem
from deltamem_cli.session.thinking import Thought
from deltamem_cli.session.tools.calls import Call


class Broken:
    """An answer that ends with an error after its first piece."""

    conversation = turn = finished = None

    async def pieces(self) -> AsyncIterator[str]:
        yield "said"
        raise Problem(507, "The disk is full.", code="not_saved")


def sent(stream: AsyncIterator[str]) -> list[Any]:
    """Every document of the stream."""

    async def every() -> list[str]:
        return [line async for part in stream for line in part.splitlines()]

    lines = (line.removeprefix("data: ") for line in asyncio.run(every()) if line and not line.startswith("event:"))
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("module", [chat, completions])
def test_a_stream_of_completions_ends_with_an_error_document(module: Any) -> None:
    *_, last = sent(module._events(Broken(), {"id": "1"}, tell_usage=True))
    assert last == {
        "error": {"message": "The disk is full.", "type": "server_error", "param": None, "code": "not_saved"}
    }


def test_a_stream_of_a_response_tells_the_error_and_that_the_response_failed() -> None:
    *_, error, failed = sent(responses._events(Broken(), {"id": "1"}))
    assert (error["type"], error["message"], error["code"]) == ("error", "The disk is full.", "not_saved")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["message"] == "The disk is full."
    assert failed["sequence_number"] == error["sequence_number"] + 1


def test_lines_of_ollama_end_with_an_error() -> None:
    assert sent(ollama._lines(Broken(), ollama._Form("m", is_chat=True)))[-1] == {"error": "The disk is full."}


def test_a_response_s_items_follow_each_other_each_from_its_beginning_to_its_end() -> None:
    items = Items()
    lines = [
        line for piece in (Thought("I "), Thought("see."), "Yes", ".", Call("f", "{}")) for line in items.add(piece)
    ]
    events = [json.loads(line.partition("data: ")[2]) for line in [*lines, *items.finish()]]
    assert [item["type"] for item in items.done] == ["reasoning", "message", "function_call"]
    assert [item["status"] for item in items.done] == ["completed"] * 3
    assert [item["content"][0]["text"] for item in items.done[:2]] == ["I see.", "Yes."]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added = [event["item"]["type"] for event in events if event["type"] == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call"]
    assert [event["output_index"] for event in events] == sorted(event["output_index"] for event in events)
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
    assert deltas == ["I ", "see."]
