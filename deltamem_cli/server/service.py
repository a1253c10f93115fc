"""What all interfaces share: the places, the model's name, who may do what, and how a request's body is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request

from deltamem_cli.errors import DeltamemError
from deltamem_cli.server import addressing
from deltamem_cli.server.asking import Answer, Question
from deltamem_cli.server.continuing import Continuation
from deltamem_cli.server.history import History
from deltamem_cli.server.options import encodable, thinking
from deltamem_cli.server.places import Places
from deltamem_cli.server.problems import Problem, invalid, of_error
from deltamem_cli.server.tools import offered
from deltamem_cli.session import tools
from deltamem_cli.session.request import replies
from deltamem_cli.session.thinking import parted
from deltamem_cli.session.tools import Call
from deltamem_cli.store import profiles
from deltamem_cli.store.database import Store

LARGEST_BODY = 10_000_000  # bytes
_BODY_SECONDS = 30.0


@dataclass
class Service:
    """model: the name that clients call it by; aliases: others that mean it too."""

    places: Places
    model: str
    profile: str
    created: int  # seconds since 1970
    aliases: frozenset[str] = frozenset()

    def named(self, name: object) -> str | None:
        """The profile that a model's name tells, if any. Raises Problem for a model that is not served."""
        if not isinstance(name, str):
            raise invalid("model must be a text.", "model")
        model, profile = addressing.model_and_profile(name)
        if model not in (self.model, *self.aliases):
            raise Problem(
                404, f"There is no model {model} here: use {self.model}.", code="model_not_found", param="model"
            )
        return profile


def service(request: Request) -> Service:
    """That of the application that got the request."""
    found: Service = request.app.state.service
    return found


def bound_profile(request: Request) -> str | None:
    """The profile that the request's API key is bound to; None: it may use all."""
    return getattr(request.state, "profile", None)


async def model_names(request: Request) -> list[str]:
    """The model's, and with each profile that the request may use."""
    shared, bound = service(request), bound_profile(request)

    def names() -> list[str]:
        with Store.read(shared.places.database) as store:
            return [profile.name for profile in profiles.all_of(store) if bound in (None, profile.name)]

    return [shared.model, *(f"{shared.model}@{name}" for name in await shared.places.run(names))]


async def read_json(request: Request) -> dict[str, Any]:
    """The body as an object. Raises Problem."""
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > LARGEST_BODY:
        raise _too_large()
    try:
        data = await asyncio.wait_for(_read(request), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Problem(408, f"The request did not come within {_BODY_SECONDS:.0f} seconds.") from None
    except ClientDisconnect:
        raise Problem(499, "The client left.") from None
    try:
        body = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise invalid("The body is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise invalid(f"The body is not JSON ({str(error)[:100]}).") from None
    if not isinstance(body, dict):
        raise invalid("The body must be a JSON object.")
    return body


async def _read(request: Request) -> bytearray:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST_BODY:
            raise _too_large()
    return data


def _too_large() -> Problem:
    return Problem(413, f"The body is larger than {LARGEST_BODY // 1_000_000} MB.")


def text_of(content: object, where: str) -> str:
    """A message's content, a text or parts of which each is one. Raises Problem for pictures and sound."""
    if content is None:
        return ""
    if isinstance(content, str):
        return encodable(content)
    if not isinstance(content, Sequence):
        raise invalid(f"{where} must be a text or a list of parts.", where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal":
            texts.append(str(part.get("refusal", "")))
        else:
            raise invalid(f"{where} has a part of the type {str(kind)[:40]}, and this model reads text alone.", where)
    return encodable("".join(texts))


def history_of(messages: object) -> History:
    """What `messages` say, [{role, content, tool_calls}, …]. Raises Problem."""
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a list of at least one message.", "messages")
    system: list[str] = []
    said: list[tuple[str, str]] = []  # neighbours of one role joined
    roles: list[object] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise invalid(f"{where} must be an object.", where)
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise invalid(
                f"{where} has the role {str(role)[:40]}: use system, user, assistant or tool.", f"{where}.role"
            )
        text, between = text_of(message.get("content"), f"{where}.content"), "\n\n"
        if role == "tool":
            between = "\n" if roles[-1:] == ["tool"] else between
            role, text = "user", tools.results([text])
        elif role == "assistant" and message.get("tool_calls"):
            text = tools.reply(text.rstrip(), _calls(message["tool_calls"], f"{where}.tool_calls"))
        roles.append(message["role"])
        if role in ("system", "developer"):
            system.append(text)
        elif said and said[-1][0] == role:
            said[-1] = (role, f"{said[-1][1]}{between}{text}")
        else:
            said.append((role, text))
    if not said or said[-1][0] != "user":
        raise invalid("The last message must be the user's.", "messages")
    if not said[-1][1].strip():
        raise invalid("The last message is empty.", "messages")
    if said[0][0] == "assistant":
        said.insert(0, ("user", ""))
    texts = [text for _, text in said]
    pairs = tuple(zip(texts[:-1:2], texts[1:-1:2], strict=True))
    has_calls = "tool" in roles or any(message.get("tool_calls") for message in messages)
    return History(texts[-1], pairs, "\n\n".join(system) if system else None, has_calls)


def _calls(calls: object, where: str) -> list[Call]:
    try:
        functions = [each["function"] for each in calls]  # type: ignore[attr-defined]
        return [tools.call(str(each["name"]), each.get("arguments")) for each in functions]
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError):
        raise invalid(f"{where} must be calls of functions, with their arguments as JSON.", where) from None


def ask(
    request: Request,
    body: Mapping[str, Any],
    history: History,
    options: Mapping[str, Any],
    *,
    address: addressing.Address | None = None,
    stop: tuple[str, ...] = (),
    grammar: str | None = None,
    after: int | None = None,
    keep: bool = True,
) -> Answer:
    """Begins an answer. address: where the interface says which conversation is meant, else what the request says.
    after: as Question has it. keep: False for a turn that only reads the memory.

    Raises Problem.
    """
    shared = service(request)
    profile, bound = shared.named(body.get("model", shared.model)), bound_profile(request)
    if address is None:
        address = addressing.find(request.headers, body, profile)
    if bound is not None:
        if address and address.profile not in (None, bound):
            raise Problem(403, f"This key is for the profile {bound}.", code="profile_not_allowed")
        address = address or addressing.Address(None, bound, "goes_on")
        address = addressing.Address(address.conversation, bound, address.mode)
    _check(options)
    metadata = body.get("metadata")
    read_only = not keep or request.headers.get("x-dmem-read-only", "").lower() in ("1", "true", "yes")
    if isinstance(metadata, Mapping):
        read_only = read_only or str(metadata.get("read_only", "")).lower() in ("1", "true", "yes")
    wanted = (address and address.profile) or shared.profile
    offer = offered(body)
    if offer.tools and grammar:
        raise invalid("tools and a format for the reply can't be used together: leave one out.", "tools")
    return Answer(
        shared.places,
        Question(
            history,
            wanted,
            address,
            options,
            (*stop, *offer.stop),
            grammar or offer.grammar,
            {"read_only": read_only},
            think=thinking(body),
            tools=offer.tools if offer.tools or history.has_calls else None,
            after=after,
        ),
    )


def go_on(
    request: Request,
    body: Mapping[str, Any],
    text: str | Sequence[int],
    options: Mapping[str, Any],
    *,
    stop: tuple[str, ...] = (),
    grammar: str | None = None,
) -> Answer:
    """Begins to go on with a text, or its tokens, as it stands: no memory has part in that. Raises Problem."""
    shared = service(request)
    shared.named(body.get("model", shared.model))
    _check(options)
    return Continuation(shared.places, text, Question(History(""), shared.profile, None, options, stop, grammar))


def _check(options: Mapping[str, Any]) -> None:
    try:
        replies(options)
    except DeltamemError as error:
        raise of_error(error) from None


def metadata(answer: Answer) -> dict[str, str]:
    """Which conversation remembers this, if one does."""
    finished = answer.finished
    if answer.conversation is None:
        return {}
    turn = {"turn": str(finished.turn)} if finished and finished.turn is not None else {}
    return {"conversation": answer.conversation, **turn}


def headers(answer: Answer) -> dict[str, str]:
    """The same in the response's head."""
    named = {"X-Dmem-Conversation": answer.conversation} if answer.conversation else {}
    return {"Cache-Control": "no-store", **named}


async def begin(request: Request, answer: Answer) -> None:
    """Returns when the reply has begun; a client that leaves before ends it. Raises Problem."""
    async with watched(request, answer):
        await answer.begin()


async def whole(request: Request, answer: Answer) -> tuple[str, str, list[Call]]:
    """What was thought, answered and called, at the end; a client that leaves ends it. Raises Problem."""
    async with watched(request, answer):
        await answer.begin()
        pieces = [piece async for piece in answer.pieces()]
    calls = [piece for piece in pieces if isinstance(piece, Call)]
    return *parted(piece for piece in pieces if isinstance(piece, str)), calls


@asynccontextmanager
async def watched(request: Request, answer: Answer) -> AsyncIterator[None]:
    """While the block waits for an answer, a client that leaves ends it."""
    leaving = asyncio.create_task(stop_when_left(request, answer))
    try:
        yield
    finally:
        leaving.cancel()


class Stoppable(Protocol):
    """What ends early when it is told to."""

    def stop(self) -> None:
        """From any thread."""


async def stop_when_left(request: Request, running: Stoppable) -> None:
    """Returns when the client has left, having stopped what runs for it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    running.stop()
