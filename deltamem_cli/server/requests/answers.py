"""Begins the answer that a request asks for, and follows it while the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from starlette.requests import Request

from deltamem_cli.errors import DeltamemError
from deltamem_cli.server.conversations import addressing
from deltamem_cli.server.conversations.asking import Answer, Question
from deltamem_cli.server.conversations.continuing import Continuation
from deltamem_cli.server.conversations.history import History
from deltamem_cli.server.problems import Problem, invalid, of_error
from deltamem_cli.server.requests.options import thinking
from deltamem_cli.server.requests.service import bound_profile, service
from deltamem_cli.server.requests.tools import offered
from deltamem_cli.session.request import replies
from deltamem_cli.session.thinking import parted
from deltamem_cli.session.tools.calls import Call
from deltamem_cli.store import profiles

_YES = ("1", "true", "yes")


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
    if request.headers.get("x-dmem-temporary", "").lower() in _YES:  # also where the key alone means a memory
        address = None
    _check(options)
    metadata = body.get("metadata")
    read_only = not keep or request.headers.get("x-dmem-read-only", "").lower() in _YES
    if isinstance(metadata, Mapping):
        read_only = read_only or str(metadata.get("read_only", "")).lower() in _YES
    wanted = profiles.check_name((address and address.profile) or shared.profile)
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
            stop,
            grammar,
            {"read_only": read_only},
            think=thinking(body),
            tools=offer.tools if offer.tools or history.has_calls else None,
            after=after,
            forced=offer.forced,
            one_call=offer.one_call,
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
