"""For `dmem ask` of the same user: the question as the command line has it, to the model that is loaded already.

What would be another model, another adapter or another way to run them is refused, and the command loads it itself.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from deltamem_cli import models
from deltamem_cli.server.conversations.addressing import Address
from deltamem_cli.server.conversations.asking import Answer, Question
from deltamem_cli.server.conversations.history import History
from deltamem_cli.server.guard import SAME_USER
from deltamem_cli.server.problems import Problem
from deltamem_cli.server.requests.body import read_json
from deltamem_cli.server.requests.service import Service, service
from deltamem_cli.server.same_user.meeting import ASK, configured
from deltamem_cli.session.request import Request, find_profile, settle
from deltamem_cli.session.thinking import Thought
from deltamem_cli.store.database import Store

# How a model is run: of a settled request, what must be as the server has it.
_HARDWARE = (
    "ctx_size",
    "gpu_layers",
    "rpc",
    "tensor_split",
    "threads",
    "cache_type_k",
    "cache_type_v",
    "flash_attention",
    "template",
)

# What JSON has of the kinds of Request's fields; a template's path is never sent.
_KINDS: Mapping[str, type] = {
    "str": str,
    "Path": str,
    "bool": bool,
    "int": int,
    "Mapping[str, Any]": dict,
    "None": type(None),
}


async def ask(http: HttpRequest) -> Response:
    """POST: {text, configured, request}, as meeting.py sends them. Answers with lines of JSON."""
    if not getattr(http.state, SAME_USER, False):
        raise HTTPException(404)
    shared, body = service(http), await read_json(http)
    text, request = _said(body)
    if body.get("configured") != configured():
        raise _other("configuration")
    try:
        settled = await shared.places.run(lambda: _settled(shared, request))
    except OSError:  # of a path that can be none: the command says so in its own words
        raise _other("model") from None
    named = not request.temporary
    answer = Answer(
        shared.places,
        Question(
            History(text, system=settled.system),
            settled.profile,
            Address(None, settled.profile, "append") if named else None,
            settled.options,
            settings={
                "read_only": request.read_only and named,
                "log": request.log,
                "remember_thinking": bool(settled.remember_thinking),
                **({"write": settled.write} if settled.write and named else {}),
            },
        ),
    )
    await answer.begin()
    return StreamingResponse(_lines(answer), media_type="application/x-ndjson")


def _said(body: Mapping[str, Any]) -> tuple[str, Request]:
    """Raises Problem for what this version of dmem does not say."""
    text, said = body.get("text"), body.get("request")
    if not isinstance(text, str) or not isinstance(said, dict):
        raise _other("version of dmem")
    types = {field.name: str(field.type).split(" | ") for field in fields(Request)}
    for name, value in said.items():
        if not any(isinstance(value, _KINDS[kind]) for kind in types.get(name, ())):
            raise _other("version of dmem")
    return text, Request(**said)


async def _lines(answer: Answer) -> AsyncIterator[str]:
    def line(**what: Any) -> str:
        return json.dumps(what) + "\n"

    try:
        async for piece in answer.pieces():
            yield line(thought=piece) if isinstance(piece, Thought) else line(piece=piece)
    except Problem as problem:
        yield line(error=problem.sentence)
        return
    assert answer.finished
    yield line(
        end={
            "interrupted": answer.finished.stats.interrupted,
            "looped": answer.finished.stats.looped,
            "dropped": answer.finished.dropped,
            "writes": answer.finished.writes,
            "context": answer.finished.context,
            "document": answer.finished.document,
        }
    )


def _settled(shared: Service, request: Request) -> Request:
    """Raises Problem when the server runs something else than the request means."""
    places = shared.places
    with Store.read(places.database) as store:
        profile = None if request.temporary else find_profile(store, request)
    settled, own = settle(request, profile), settle(places.request, None)
    found = models.resolve(settled.model or models.STARTER)
    if found.path.resolve() != places.loaded.engine.model.path.resolve():
        raise _other("model")
    if request.memory:
        adapter = models.adapter_file(settled.adapter) if settled.adapter else found.adapter
        running = places.loaded.adapter_path
        if (adapter and adapter.resolve()) != (running and running.resolve()):
            raise _other("adapter")
    for name in _HARDWARE:
        if getattr(settled, name) != getattr(own, name):
            raise _other(name)
    if request.think is not None:
        raise _other("think")
    return settled


def _other(what: str) -> Problem:
    return Problem(409, f"The server runs with another {what}.", code="other")


ROUTES = [Route(ASK, ask, methods=["POST"])]
