"""A server's conversations without HTTP: tiny models, one event loop per test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem_cli.server.conversations.addressing import Address
from deltamem_cli.server.conversations.asking import Answer, Finished, Question
from deltamem_cli.server.conversations.history import History, Mode
from deltamem_cli.server.conversations.places import Places
from deltamem_cli.session.loading import load
from deltamem_cli.session.request import Request


@dataclass
class Talk:
    """Asks; remembers for each conversation what a client would send of it."""

    places: Places

    async def ask(
        self,
        conversation: str | None,
        question: str,
        *exchanges: tuple[str, str],
        mode: Mode = "mirror",
        profile: str = "default",
        **more: Any,
    ) -> tuple[str, Finished]:
        answer = self.begin(conversation, question, *exchanges, mode=mode, profile=profile, **more)
        await answer.begin()
        text = "".join([piece async for piece in answer.pieces()])
        assert answer.finished
        return text, answer.finished

    def begin(
        self,
        conversation: str | None,
        question: str,
        *exchanges: tuple[str, str],
        mode: Mode = "mirror",
        profile: str = "default",
        system: str | None = None,
        **more: Any,
    ) -> Answer:
        address = None if conversation is None else Address(conversation, None, mode)
        return Answer(self.places, Question(History(question, exchanges, system), profile, address, **more))


@asynccontextmanager
async def talking(database: Path, settings: dict[str, Any], *, seats: int = 2) -> AsyncIterator[Talk]:
    with ExitStack() as stack:
        request = Request(**{"threads": 1, "ctx_size": 256, **settings})
        places = Places(load(stack, request, seats=seats), request, database)
        try:
            yield Talk(places)
        finally:
            await places.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 120))  # type: ignore[arg-type]
