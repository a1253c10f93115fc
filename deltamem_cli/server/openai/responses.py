"""OpenAI's responses. A response is a turn of a conversation, and its id says which."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deltamem_cli.server.conversations import addressing
from deltamem_cli.server.conversations.addressing import Address
from deltamem_cli.server.conversations.asking import Answer
from deltamem_cli.server.memory import changes
from deltamem_cli.server.memory.stored import read as read_conversation
from deltamem_cli.server.openai.response_items import Items
from deltamem_cli.server.problems import Problem, invalid
from deltamem_cli.server.requests import options
from deltamem_cli.server.requests.answers import ask, headers, watched
from deltamem_cli.server.requests.body import read_json
from deltamem_cli.server.requests.messages import history_of
from deltamem_cli.server.requests.service import bound_profile, service
from deltamem_cli.session.thinking import Thought
from deltamem_cli.session.tools.reading import pieces
from deltamem_cli.store import conversations, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import NotFound
from deltamem_cli.store.ids import new_id
from deltamem_cli.store.records import THINKING, Turn

_ID = re.compile(r"resp_([0-9a-z]{1,64})_([1-9][0-9]{0,8})")

# What a response repeats of its request, with what it says where that says nothing.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


async def responses(request: Request) -> Response:
    """POST /v1/responses"""
    body = await read_json(request)
    for name, neutral in (("prompt", None), ("background", False), ("max_tool_calls", None)):
        if body.get(name) not in (None, neutral):
            raise invalid(f"{name} is not supported here: leave it out.", name)
    streamed, keep = options.flag(body, "stream"), options.flag(body, "store", True)
    text = body.get("text") or {}
    if not isinstance(text, Mapping):
        raise invalid("text must be an object.", "text")
    address, after = _address(request, body, keep)
    answer = ask(
        request,
        body,
        history_of(_messages(body)),
        options.sampling(body),
        address=address,
        grammar=options.grammar(text.get("format"), "text.format"),
        after=after,
        keep=keep,
    )
    try:
        async with watched(request, answer):
            await answer.begin()
    except Problem as problem:
        raise (
            _unknown(str(body["previous_response_id"])) if after and problem.code == "not_found" else problem
        ) from None
    kept = answer.conversation and answer.turn is not None
    head = {
        "id": f"resp_{answer.conversation}_{answer.turn}" if kept else f"resp_{new_id()}",
        "object": "response",
        "created_at": int(time.time()),
        "model": body.get("model", service(request).model),
        **{name: body.get(name, otherwise) for name, otherwise in _REPEATED.items()},
        "metadata": {**_named(answer), **(body.get("metadata") or {})},
        "conversation": {"id": answer.conversation} if answer.conversation else None,
    }
    if streamed:
        return StreamingResponse(_events(answer, head), media_type="text/event-stream", headers=headers(answer))
    items = Items()
    async with watched(request, answer):
        async for piece in answer.pieces():
            list(items.add(piece))
    list(items.finish())
    return JSONResponse(_whole(answer, head, items), headers=headers(answer))


def _named(answer: Answer) -> dict[str, str]:
    turn = {"turn": str(answer.turn)} if answer.turn is not None else {}
    return {"conversation": answer.conversation, **turn} if answer.conversation else {}


async def _events(answer: Answer, head: Mapping[str, Any]) -> AsyncIterator[str]:
    items = Items()
    begun = _document(head, "in_progress", [])
    yield items.event("response.created", response=begun)
    yield items.event("response.in_progress", response=begun)
    try:
        async for piece in answer.pieces():
            for event in items.add(piece):
                yield event
    except Problem as problem:
        yield items.event("error", code=problem.code, message=problem.sentence, param=problem.param)
        error = {"code": "server_error", "message": problem.sentence}
        yield items.event("response.failed", response=_document(head, "failed", items.done, error=error))
        return
    for event in items.finish():
        yield event
    whole = _whole(answer, head, items)
    yield items.event(f"response.{whole['status']}", response=whole)


def _whole(answer: Answer, head: Mapping[str, Any], items: Items) -> dict[str, Any]:
    finished = answer.finished
    assert finished
    stats = finished.stats
    usage = _usage(stats.context_tokens, stats.prompt_tokens, stats.reply_tokens, stats.thinking_tokens)
    if finished.reason == "length":
        why = {"reason": "max_output_tokens"}
        return _document(head, "incomplete", items.done, incomplete_details=why, usage=usage)
    return _document(head, "completed", items.done, usage=usage)


def _document(head: Mapping[str, Any], status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    rest = {"error": None, "incomplete_details": None, "background": False, "usage": None}
    return {**head, **rest, "status": status, "output": output, **more}


def _usage(context: int, prompt: int, reply: int, thinking: int) -> dict[str, Any]:
    return {
        "input_tokens": context + prompt,
        "input_tokens_details": {"cached_tokens": context, "cache_write_tokens": 0},
        "output_tokens": reply,
        "output_tokens_details": {"reasoning_tokens": thinking},
        "total_tokens": context + prompt + reply,
    }


def _address(request: Request, body: Mapping[str, Any], keep: bool) -> tuple[Address | None, int | None]:
    """The conversation, and the turn that is gone on from where the request names one. Raises Problem."""
    profile = service(request).named(body.get("model", service(request).model))
    previous = body.get("previous_response_id")
    if previous is not None:
        if body.get("conversation") is not None:
            raise invalid("previous_response_id and conversation both say what to go on with: leave one out.")
        found = _ID.fullmatch(previous) if isinstance(previous, str) else None
        if not found:
            raise _unknown(str(previous))
        return Address(found[1], profile, "append"), int(found[2])
    if body.get("conversation") is not None:  # the server's own record, to which only what is new is sent
        address = addressing.find({}, {"conversation": body["conversation"]}, profile)
        return address and replace(address, mode="append"), None
    address = addressing.find(request.headers, body, profile)
    if address is None and keep:
        address = Address(new_id(), None, "append")
    return address, None


def _unknown(previous: str) -> Problem:
    sentence = f"There is no response {previous[:100]} here."
    return Problem(400, sentence, code="previous_response_not_found", param="previous_response_id")


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Instructions and input as messages of chat completions. Raises Problem."""
    instructions, given = body.get("instructions"), body.get("input")
    if not isinstance(instructions, (str, type(None))):
        raise invalid("instructions must be a text.", "instructions")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions is not None else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input must be a text or a list of items.", "input")
    for i, item in enumerate(given):
        where = f"input[{i}]"
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append({"function": item})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
        elif kind != "reasoning":  # what was thought is no part of what a model sees later
            raise invalid(f"{where} is of the type {str(kind)[:40]}, which is not supported here.", where)
    return messages


async def stored(request: Request) -> Response:
    """GET /v1/responses/{id}"""
    shared, name, bound = service(request), request.path_params["id"], bound_profile(request)
    found = _ID.fullmatch(name)

    def read() -> Turn:
        if not found:
            raise NotFound(name)
        with Store.read(shared.places.database) as store:
            conversation = conversations.find(store, found[1])
            if conversation is None or bound not in (None, conversation.profile):
                raise NotFound(name)
            return turns.get(store, conversation.id, int(found[2]))

    try:
        turn = await shared.places.run(read)
    except NotFound:
        raise Problem(404, f"There is no response {name[:100]} here.", code="not_found") from None
    head = {
        "id": name,
        "object": "response",
        "created_at": int(datetime.fromisoformat(turn.created.replace("Z", "+00:00")).timestamp()),
        "model": shared.model,
        **_REPEATED,
        "metadata": {"conversation": turn.conversation, "turn": str(turn.number)},
        "conversation": {"id": turn.conversation},
    }
    items, form = Items(), await shared.places.run(lambda: shared.places.tool_form)
    for message in turn.messages:
        if message.role == THINKING:
            list(items.add(Thought(message.text)))
        elif message.role == "assistant":
            for piece in pieces(message.text, form):
                list(items.add(piece))
    list(items.finish())
    usage = _usage(turn.context.get("n_past", 0), turn.prompt_tokens, turn.reply_tokens, 0)
    return JSONResponse(_document(head, "completed", items.done, usage=usage), headers={"Cache-Control": "no-store"})


async def deleted(request: Request) -> Response:
    """DELETE /v1/responses/{id}: forgets the turn, as if it had never been."""
    name = request.path_params["id"]
    found = _ID.fullmatch(name)
    try:
        if not found:
            raise NotFound(name)
        number = int(found[2])
        said = {"conversation": found[1], "profile": None, "turns": [number], "dry_run": False}
        # not one that takes the number while this waits
        turn = await read_conversation(request, said, lambda store, one: turns.get(store, one.id, number))
        await changes.forget(request, {**said, "expect": [turn.created]})
    except (NotFound, Problem) as error:
        if isinstance(error, Problem) and error.code != "not_found":
            raise
        raise Problem(404, f"There is no response {name[:100]} here.", code="not_found") from None
    return JSONResponse({"id": name, "object": "response", "deleted": True})


async def begin_conversation(request: Request) -> Response:
    """POST /v1/conversations: a name for one that begins with its first response."""
    body = await read_json(request)
    if body.get("items"):
        raise invalid("items are not supported here: send them as the input of the first response.", "items")
    named = {"id": f"conv_{new_id()}", "object": "conversation", "created_at": int(time.time())}
    return JSONResponse({**named, "metadata": body.get("metadata") or {}})


ROUTES = [
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/responses/{id}", stored, methods=["GET"]),
    Route("/v1/responses/{id}", deleted, methods=["DELETE"]),
    Route("/v1/conversations", begin_conversation, methods=["POST"]),
]
