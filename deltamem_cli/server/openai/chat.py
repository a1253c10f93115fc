"""OpenAI's chat completions and its list of models."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deltamem_cli.server.conversations.asking import Answer, Finished
from deltamem_cli.server.problems import Problem, error_document
from deltamem_cli.server.requests import options
from deltamem_cli.server.requests.answers import ask, begin, headers, metadata, whole
from deltamem_cli.server.requests.body import read_json
from deltamem_cli.server.requests.messages import history_of
from deltamem_cli.server.requests.service import model_names, service
from deltamem_cli.session.thinking import Thought
from deltamem_cli.session.tools.calls import Call
from deltamem_cli.store.ids import new_id


async def models(request: Request) -> Response:
    """The model, and for each profile the same with its memory."""
    shared = service(request)
    described = [
        {"id": name, "object": "model", "created": shared.created, "owned_by": "dmem"}
        for name in await model_names(request)
    ]
    wanted = request.path_params.get("model")
    if wanted is None:
        return JSONResponse({"object": "list", "data": described})
    shared.named(wanted)
    return JSONResponse(described[0] | {"id": wanted})


async def chat_completions(request: Request) -> Response:
    """POST /v1/chat/completions"""
    body = await read_json(request)
    streamed, tell_usage = options.flag(body, "stream"), options.usage_wanted(body)
    answer = ask(
        request,
        body,
        history_of(body.get("messages")),
        options.sampling(body),
        stop=options.stop_words(body.get("stop")),
        grammar=options.grammar(body.get("response_format")),
    )
    head = {
        "id": f"chatcmpl-{new_id()}",
        "created": int(time.time()),
        "model": body.get("model", service(request).model),
    }
    if streamed:
        await begin(request, answer)
        events = _events(answer, head, tell_usage=tell_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers(answer))
    thought, answered, calls = await whole(request, answer)
    assert answer.finished
    message: dict[str, Any] = {"role": "assistant", "content": answered or (None if calls else ""), "refusal": None}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [_called(call) for call in calls]
    reason = "tool_calls" if calls else answer.finished.reason
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    document = {**head, "object": "chat.completion", "choices": [choice], "usage": usage(answer.finished)}
    return JSONResponse(document | {"metadata": metadata(answer)}, headers=headers(answer))


async def _events(answer: Answer, head: Mapping[str, Any], *, tell_usage: bool) -> AsyncIterator[str]:
    def chunk(delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

    n_calls = 0
    yield chunk({"role": "assistant", "content": ""})
    try:
        async for piece in answer.pieces():
            if isinstance(piece, Call):
                yield chunk({"tool_calls": [{"index": n_calls, **_called(piece)}]})
                n_calls += 1
            else:
                yield chunk({"reasoning_content" if isinstance(piece, Thought) else "content": piece})
    except Problem as problem:
        yield event(error_document(problem))
        return
    assert answer.finished
    yield chunk({}, "tool_calls" if n_calls else answer.finished.reason, metadata=metadata(answer))
    if tell_usage:
        yield event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage(answer.finished)})
    yield "data: [DONE]\n\n"


def _called(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{new_id()}", "type": "function", "function": function}


def event(document: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def usage(finished: Finished) -> dict[str, Any]:
    """Tokens as OpenAI counts them."""
    stats = finished.stats
    prompt = stats.context_tokens + stats.prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": stats.reply_tokens,
        "total_tokens": prompt + stats.reply_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.context_tokens},
        "completion_tokens_details": {"reasoning_tokens": stats.thinking_tokens},
    }


ROUTES = [
    Route("/v1/models", models),
    Route("/v1/models/{model:path}", models),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
]
