"""Ollama's chat and generate: lines of JSON, times in nanoseconds."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deltamem_cli.engine.grammar import ANY_JSON
from deltamem_cli.server.conversations.asking import Answer
from deltamem_cli.server.conversations.history import History
from deltamem_cli.server.problems import Problem, invalid
from deltamem_cli.server.requests import options
from deltamem_cli.server.requests.answers import ask, begin, go_on, headers, watched
from deltamem_cli.server.requests.body import read_json
from deltamem_cli.server.requests.messages import history_of
from deltamem_cli.server.requests.service import service
from deltamem_cli.session.thinking import Thought
from deltamem_cli.session.tools.calls import Call
from deltamem_cli.store.ids import now

Piece = str | Call
_BETWEEN = 0xFF  # no byte of UTF-8


@dataclass
class _Form:
    """How one of the two puts a reply. context: what generate gives back, to be sent with the next prompt."""

    model: str
    is_chat: bool
    exchanges: Sequence[tuple[str, str]] | None = None
    question: str = ""
    start: int = field(default_factory=time.perf_counter_ns)

    def document(self, pieces: Sequence[Piece], **more: Any) -> dict[str, Any]:
        """What was said in `pieces`."""
        text = "".join(piece for piece in pieces if isinstance(piece, str) and not isinstance(piece, Thought))
        thought = "".join(piece for piece in pieces if isinstance(piece, Thought))
        said: dict[str, Any] = {"content" if self.is_chat else "response": text}
        if thought:
            said["thinking"] = thought
        calls = [
            {"function": {"name": piece.name, "arguments": json.loads(piece.arguments)}}
            for piece in pieces
            if isinstance(piece, Call)
        ]
        if calls:
            said["tool_calls"] = calls
        if self.is_chat:
            said = {"message": {"role": "assistant", **said}}
        return {"model": self.model, "created_at": now(), **said, "done": False, **more}

    def end(self, answer: Answer, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What is told when the reply, of which these are all pieces, is over."""
        assert answer.finished
        stats = answer.finished.stats
        total = time.perf_counter_ns() - self.start
        prompt, reply = int(stats.prompt_seconds * 1e9), int(stats.reply_seconds * 1e9)
        told: dict[str, Any] = {
            "done": True,
            "done_reason": answer.finished.reason,
            "total_duration": total,
            "load_duration": max(0, total - prompt - reply),  # what was waited for before
            "prompt_eval_count": stats.context_tokens + stats.prompt_tokens,
            "prompt_eval_duration": prompt,
            "eval_count": stats.reply_tokens,
            "eval_duration": reply,
        }
        if self.exchanges is not None:
            text = "".join(piece for piece in pieces if isinstance(piece, str) and not isinstance(piece, Thought))
            told["context"] = _context([*self.exchanges, (self.question, text)])
        return told


async def chat(request: Request) -> Response:
    """POST /api/chat"""
    body = await read_json(request)
    form = _Form(_model(request, body), is_chat=True)
    messages = body.get("messages")
    if not messages:
        return _loaded(form, body)
    if isinstance(messages, list) and any(isinstance(each, Mapping) and each.get("images") for each in messages):
        raise invalid("This model reads text alone: leave images out.", "images")
    said, stop = _options(request, body)
    answer = ask(request, body, history_of(messages), said, stop=stop, grammar=_grammar(body.get("format")))
    return await _told(request, body, answer, form)


async def generate(request: Request) -> Response:
    """POST /api/generate"""
    body = await read_json(request)
    form = _Form(_model(request, body), is_chat=False)
    prompt, system = body.get("prompt"), body.get("system")
    for name in ("suffix", "template", "images"):
        if body.get(name):
            raise invalid(f"{name} is not supported here: leave it out.", name)
    if not prompt:
        return _loaded(form, body)
    if not isinstance(prompt, str) or not isinstance(system, (str, type(None))):
        raise invalid("prompt and system must be texts.", "prompt")
    (said, stop), grammar = _options(request, body), _grammar(body.get("format"))
    if options.flag(body, "raw"):
        return await _told(request, body, go_on(request, body, prompt, said, stop=stop, grammar=grammar), form)
    form.exchanges, form.question = _exchanges(body.get("context")), prompt
    history = History(prompt, tuple(form.exchanges), system or None)
    answer = ask(request, body, history, said, stop=stop, grammar=grammar)
    return await _told(request, body, answer, form)


async def _told(request: Request, body: Mapping[str, Any], answer: Answer, form: _Form) -> Response:
    if options.flag(body, "stream", True):
        await begin(request, answer)
        lines = _lines(answer, form)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=headers(answer))
    async with watched(request, answer):
        await answer.begin()
        pieces = [piece async for piece in answer.pieces()]
    return JSONResponse(form.document(pieces, **form.end(answer, pieces)), headers=headers(answer))


async def _lines(answer: Answer, form: _Form) -> AsyncIterator[str]:
    pieces: list[Piece] = []
    try:
        async for piece in answer.pieces():
            pieces.append(piece)
            yield _line(form.document([piece]))
    except Problem as problem:
        yield _line({"error": problem.sentence})
        return
    yield _line(form.document([], **form.end(answer, pieces)))


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def _loaded(form: _Form, body: Mapping[str, Any]) -> Response:
    """The answer to a request that says nothing: the model is to be loaded, and it is."""
    reason = "unload" if body.get("keep_alive") in (0, "0", "0s") else "load"
    return JSONResponse(form.document([], done=True, done_reason=reason))


def _model(request: Request, body: Mapping[str, Any]) -> str:
    """The model's name as the request has it. Raises Problem."""
    name = body.get("model")
    if not name:
        raise invalid("model is missing.", "model")
    service(request).named(name)
    return str(name)


def _options(request: Request, body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Of replies, and stop words. Raises Problem."""
    given = body.get("options") or {}
    if not isinstance(given, Mapping):
        raise invalid("options must be an object.", "options")
    n_ctx = service(request).places.loaded.engine.n_ctx_seq
    if isinstance(given.get("num_ctx"), int) and given["num_ctx"] > n_ctx:
        raise invalid(
            f"num_ctx is {given['num_ctx']}, and this server has {n_ctx}: see dmem serve --ctx-size.", "num_ctx"
        )
    named = dict(given)
    for name in ("logprobs", "top_logprobs"):
        named[name] = body.get(name)
    predict = named.pop("num_predict", None)
    named["max_tokens"] = None if isinstance(predict, (int, float)) and predict <= 0 else predict  # no limit
    if named.get("repeat_last_n") == -1:  # all of the context
        named["repeat_last_n"] = n_ctx
    return options.sampling(named), options.stop_words(named.get("stop"))


def _grammar(form: object) -> str | None:
    if not form:
        return None
    if form == "json":
        return ANY_JSON
    if isinstance(form, Mapping):
        return options.schema_grammar(form, "format")
    raise invalid('format must be "json" or a JSON schema.', "format")


def _context(exchanges: Sequence[tuple[str, str]]) -> list[int]:
    """Exchanges as the numbers that clients send back: UTF-8, with a byte between that it does not have."""
    texts = [text.encode() for exchange in exchanges for text in exchange]
    return list(bytes([_BETWEEN]).join(texts))


def _exchanges(context: object) -> list[tuple[str, str]]:
    """The same back. Raises Problem."""
    if not context:
        return []
    try:
        texts = [text.decode() for text in bytes(iter(context)).split(bytes([_BETWEEN]))]  # type: ignore[call-overload]
        return list(zip(texts[::2], texts[1::2], strict=True))
    except (TypeError, ValueError):
        raise invalid("context must be what an earlier answer of this server had.", "context") from None


ROUTES = [
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
]
