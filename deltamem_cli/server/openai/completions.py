"""OpenAI's older completions, which go on with a text; and what there is of embeddings."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deltamem_cli.server.conversations.asking import Answer
from deltamem_cli.server.openai.chat import event, usage
from deltamem_cli.server.problems import Problem, error_document, invalid
from deltamem_cli.server.requests import options
from deltamem_cli.server.requests.answers import begin, go_on, headers, whole
from deltamem_cli.server.requests.body import read_json
from deltamem_cli.server.requests.service import service
from deltamem_cli.store.ids import new_id

_MOST_TOKENS = 16  # where the request says nothing, as OpenAI has it


async def completions(request: Request) -> Response:
    """POST /v1/completions"""
    body = await read_json(request)
    streamed, tell_usage = options.flag(body, "stream"), options.usage_wanted(body)
    answer = go_on(
        request,
        body,
        _prompt(body.get("prompt")),
        {"max_tokens": _MOST_TOKENS, **options.sampling(body)},
        stop=options.stop_words(body.get("stop")),
        grammar=options.grammar(body.get("response_format")),
    )
    head = {
        "id": f"cmpl-{new_id()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.get("model", service(request).model),
    }
    if streamed:
        await begin(request, answer)
        events = _events(answer, head, tell_usage=tell_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers(answer))
    _, text, _ = await whole(request, answer)
    assert answer.finished
    choices = [_choice(text, answer.finished.reason)]
    return JSONResponse({**head, "choices": choices, "usage": usage(answer.finished)}, headers=headers(answer))


async def _events(answer: Answer, head: Mapping[str, Any], *, tell_usage: bool) -> AsyncIterator[str]:
    try:
        async for piece in answer.pieces():
            yield event({**head, "choices": [_choice(str(piece))]})
    except Problem as problem:
        yield event(error_document(problem))
        return
    assert answer.finished
    yield event({**head, "choices": [_choice("", answer.finished.reason)]})
    if tell_usage:
        yield event({**head, "choices": [], "usage": usage(answer.finished)})
    yield "data: [DONE]\n\n"


def _choice(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}


def _prompt(prompt: object) -> str | Sequence[int]:
    """A text or its tokens; either may be the one thing in a list. Raises Problem."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise invalid("prompt must be one text, or the tokens of one.", "prompt")


async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings"""
    await read_json(request)
    name = service(request).model
    raise Problem(501, f"{name} is a model to talk with and makes no embeddings: ask another server for them.")


ROUTES = [
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
]
