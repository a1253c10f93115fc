"""The conversations that are open: each in a seat of the engine while it is warm, else stored. For one event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from deltamem_cli.engine import EngineError, Seat
from deltamem_cli.errors import DeltamemError
from deltamem_cli.server.conversations.addressing import Address
from deltamem_cli.server.conversations.batching import Batcher
from deltamem_cli.server.conversations.history import History, Said
from deltamem_cli.server.problems import Problem
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import Loaded
from deltamem_cli.session.opening import begin
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.request import Request, chosen_template, settle
from deltamem_cli.session.settings import Settings
from deltamem_cli.session.tools.form import HERMES, ToolForm
from deltamem_cli.session.tools.reading import neutral
from deltamem_cli.session.wiping import BEFOREHAND, wipe
from deltamem_cli.store import bundle, conversations, locks, profiles, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import THINKING, Conversation, Profile, Turn

_OTHERS = 6  # threads beside those of turns: some wait for other programs
MOST_WAITING = 256  # requests; more are told to come again later
T = TypeVar("T")


@dataclass
class Place:
    """A seat and the conversation in it.

    settings, options, system, think: what it is held with where a request says nothing else. said: the turns of its chats.
    """

    key: str
    seat: Seat
    store: Store
    session: ChatSession
    settings: Settings
    options: Mapping[str, Any]  # of Sampling, and max_tokens
    system: str | None
    think: bool | None
    form: ToolForm  # of calls in its replies
    said: list[Said] = field(default_factory=list)
    version: tuple[object, ...] = ()  # of what is stored, as far as this knows
    stale: bool = False  # it holds what is not stored, so nobody else may have it
    busy: bool = True
    used: int = 0

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing of it is kept."""
        return self.store.path is None

    def note(self, chat: int | None, undo: int | None) -> Said:
        """Takes in the turn that was just committed. chat: the turn that its chat began with; None: this one. undo: the
        first of those that it took back.
        """
        turn = turns.get(self.store, self.session.conversation.id, self.session.n_turns)
        self.version = turns.version(self.store, turn.conversation)
        self.said = [said for said in self.said if undo is None or said.number < undo]
        self.said.append(_said(turn, self.form, chat or turn.number))
        return self.said[-1]


class Ticket:
    """A request's wait in line, which it may give up."""

    def __init__(self) -> None:
        self.waiting: asyncio.Future[Seat] | None = None

    def give_up(self) -> None:
        """Ends the wait, if there is one, with a Problem."""
        if self.waiting and not self.waiting.done():
            self.waiting.set_exception(Problem(499, "The client left."))


class Places:
    """As many conversations as the engine has seats; who comes when all are busy waits in line.

    All methods are for the event loop; what takes time runs in threads.
    """

    def __init__(self, loaded: Loaded, request: Request, database: Path) -> None:
        """request: what every conversation begins with, settled for none of them."""
        self.loaded, self.request, self.database = loaded, request, database
        engine = loaded.engine
        self.batcher = Batcher(engine)
        self.n_seats = engine.options.seats
        self._free = deque([loaded.seat, *(Seat(engine) for _ in range(self.n_seats - 1))])
        self._open: dict[str, Place] = {}
        self._line: deque[asyncio.Future[Seat]] = deque()
        self._keys: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._moment = 0
        self._threads = ThreadPoolExecutor(self.n_seats + _OTHERS, thread_name_prefix="turn")
        self.ending = False
        self.tasks: set[asyncio.Task[None]] = set()  # turns on their way

    async def run(self, work: Callable[[], T]) -> T:
        """Runs what takes time in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @asynccontextmanager
    async def conversation(
        self, conversation: Conversation, profile: Profile, ticket: Ticket | None = None
    ) -> AsyncIterator[Place]:
        """Its place, held against all other requests and programs for as long as the block runs. Raises DeltamemError."""
        async with self._keys.setdefault(conversation.id, asyncio.Lock()):
            place = await self._warm(conversation.id)
            if place is None:
                seat = await self._take_seat(ticket)
                place = await self._opened(seat, conversation.id, lambda: self._sit_down(seat, conversation, profile))
            try:
                yield place
            finally:
                await asyncio.shield(self._leave(place))

    @asynccontextmanager
    async def nobody(self, history: History, ticket: Ticket | None = None) -> AsyncIterator[Place]:
        """A place of which nothing is kept; one whose window begins as `history` does, if there is such."""
        place = max(
            (place for place in self._open.values() if place.is_anonymous and not place.busy),
            key=lambda place: _common(place, history),
            default=None,
        )
        if place is not None and _common(place, history):
            place.busy = True
        else:
            seat = await self._take_seat(ticket)
            self._moment += 1
            key = f"nobody-{self._moment}"
            place = await self._opened(seat, key, lambda: self._sit_down_unknown(seat, key))
        try:
            yield place
        finally:
            await asyncio.shield(self._leave(place))

    @asynccontextmanager
    async def bare(self, ticket: Ticket | None = None) -> AsyncIterator[Seat]:
        """A seat without any conversation."""
        seat = await self._take_seat(ticket)
        try:
            yield seat
        finally:
            self.batcher.leave(seat.sequence)
            self._give(seat)

    def find(self, address: Address, profile_name: str) -> tuple[Conversation, Profile]:
        """Which conversation is meant; in a thread. Raises DeltamemError."""
        with Store.open(self.database) as store:
            profile = profiles.find(store, profile_name)
            profile = profile or Profile(id=0, name=profiles.check_name(profile_name))
            if address.conversation is None:
                found = conversations.latest(store, profile)
            else:
                found = conversations.find(store, address.conversation.lower())
                if found and address.profile not in (None, found.profile):
                    found = None
            if found is None:
                id_, found = derived(store, address, profile.name)
            return (found, profiles.get(store, found.profile)) if found else (_new(profile, id_), profile)

    def branch(self, conversation: Conversation, profile: Profile, at: int) -> Conversation:
        """A copy that ends with turn `at`; in a thread. Raises NotFound."""
        with Store.open(self.database) as store:
            return bundle.branch(store, conversation, profile, at=at)

    @cached_property
    def tool_form(self) -> ToolForm:
        """How the model's template has calls; in a thread, when it is first asked for."""
        try:
            found = Prompt(self.loaded.engine.model, None, chosen_template(self.request)).tool_form
        except EngineError:  # a template that shows no messages: said to who asks something
            found = None
        return found or HERMES

    def stop_all(self) -> None:
        """Every reply that is being drawn ends now and is committed as interrupted; nothing new begins."""
        self.ending = True
        for place in self._open.values():
            if place.busy:
                place.session.stop()
        for waiting in self._line:
            if not waiting.done():
                waiting.set_exception(Problem(503, "The server is ending: ask again.", code="server_ending"))

    async def tidy(self) -> None:
        """Wipes what turns that were taken back have left in the database."""
        await self.run(lambda: _wipe(self.database))

    @asynccontextmanager
    async def alone(self, conversation: str) -> AsyncIterator[None]:
        """Nothing of the conversation is warm, and no request takes it up, for as long as the block runs."""
        async with self._keys.setdefault(conversation, asyncio.Lock()):
            if place := self._open.get(conversation):
                self._give(await self._close(place))
            yield

    async def close(self) -> None:
        """Lets go of everything; the engine is the caller's to close."""
        self.stop_all()
        if self.tasks:
            await asyncio.wait(self.tasks)
        for place in list(self._open.values()):
            await self._close(place)
        await self.run(self.batcher.close)
        self._threads.shutdown()

    @property
    def warm(self) -> list[Place]:
        """The places that are taken."""
        return list(self._open.values())

    @property
    def n_waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    # seats

    async def _warm(self, conversation: str) -> Place | None:
        """The conversation's place, held again, if it has one that nobody else has changed since."""
        place = self._open.get(conversation)
        if place is None:
            return None
        place.busy = True
        try:
            if await self.run(lambda: _take_up(place)):
                return place
            place.stale = True
        except BaseException:
            await self._leave(place)
            raise
        await self._leave(place)
        return None

    async def _take_seat(self, ticket: Ticket | None) -> Seat:
        if self.ending:
            raise Problem(503, "The server is ending: ask again.", code="server_ending")
        if self._free:
            return self._free.popleft()
        idle = [place for place in self._open.values() if not place.busy]
        if idle:
            return await self._close(min(idle, key=lambda place: place.used))
        if len(self._line) >= MOST_WAITING:
            raise Problem(503, f"{MOST_WAITING} requests are waiting already: ask again later.", code="overloaded")
        waiting: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self._line.append(waiting)
        if ticket:
            ticket.waiting = waiting
        try:
            return await waiting
        except BaseException:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._give(waiting.result())  # given in the moment in which it was given up
            raise
        finally:
            if waiting in self._line:
                self._line.remove(waiting)

    def _give(self, seat: Seat) -> None:
        while self._line:
            waiting = self._line.popleft()
            if not waiting.done():
                waiting.set_result(seat)
                return
        self._free.append(seat)

    async def _opened(self, seat: Seat, key: str, sit_down: Callable[[], Place]) -> Place:
        try:
            place = await self.run(sit_down)
        except BaseException:
            self._give(seat)
            raise
        self._open[key] = place
        return place

    async def _leave(self, place: Place) -> None:
        self.batcher.leave(place.seat.sequence)
        await self.run(lambda: locks.let_go(place.store, place.session.conversation.id))
        self._moment += 1
        place.busy, place.used = False, self._moment
        if self._line or place.stale:
            self._give(await self._close(place))

    async def _close(self, place: Place) -> Seat:
        place.busy = True
        self._open.pop(place.key, None)
        await self.run(place.store.close)
        return place.seat

    # in threads

    def _sit_down(self, seat: Seat, conversation: Conversation, profile: Profile) -> Place:
        store = Store.open(self.database)
        try:
            locks.hold(store, conversation.id, brief=True)
            request = replace(self.request, profile=profile.name)
            place = self._seated(conversation.id, seat, store, request, profile, conversation)
            place.said = [
                _said(turn, place.form) for turn in turns.all_of(store, conversation.id) if turn.kind == "chat"
            ]
            place.version = turns.version(store, conversation.id)
            return place
        except BaseException:
            store.close()
            raise

    def _sit_down_unknown(self, seat: Seat, key: str) -> Place:
        store = Store.memory()
        profile = profiles.create(store, self.request.profile)
        request = replace(self.request, write="none", log=True)
        return self._seated(key, seat, store, request, profile, conversations.new(profile))

    def _seated(
        self, key: str, seat: Seat, store: Store, request: Request, profile: Profile, conversation: Conversation
    ) -> Place:
        session = begin(store, request, replace(self.loaded, seat=seat), profile, conversation, start=False)
        options = {**self.loaded.options, **settle(request, profile).options}
        prompt = session.prompt
        return Place(key, seat, store, session, session.settings, options, prompt.system, prompt.think, self.tool_form)


def derived(store: Store, address: Address, profile: str) -> tuple[str, Conversation | None]:
    """The id that a client's name for a conversation of `profile` comes to, and the conversation if there is one.

    One of another profile, which took it along when it was renamed, is meant only where none was named.
    """
    may_move = address.profile is None and address.conversation is not None
    for id_ in address.derived_ids(profile):
        found = conversations.find(store, id_)
        if found is None or may_move or found.profile == profile:
            break
    return id_, found


def _wipe(database: Path) -> None:
    with suppress(DeltamemError), Store.open(database) as store:
        wipe(store, lambda sentence: None, patience=BEFOREHAND)  # what fails is done the next time, or by a command


def _take_up(place: Place) -> bool:
    """Holds the conversation again. False when others have changed it or its profile's settings, or put another database
    there, in between.
    """
    if not place.store.is_there:
        return False
    conversation, profile = place.session.conversation, place.session.profile
    locks.hold(place.store, conversation.id, brief=True)
    now = profiles.find(place.store, conversation.profile) or Profile(id=0, name=conversation.profile)
    is_as_it_was = all(getattr(now, name) == getattr(profile, name) for name in (*profiles.SETTINGS, "options"))
    return is_as_it_was and turns.version(place.store, conversation.id) == place.version


def _new(profile: Profile, id_: str) -> Conversation:
    return replace(conversations.new(profile), id=id_)


def _said(turn: Turn, form: ToolForm, chat: int | None = None) -> Said:
    texts = {message.role: message.text for message in turn.messages if message.role != THINKING}
    answer = texts.get("assistant")
    return Said(turn.number, texts.get("user"), answer and neutral(answer, form), chat)


def _common(place: Place, history: History) -> int:
    """How many exchanges at the front are the same."""
    plans = zip(place.said, history.exchanges, strict=False)
    return sum(1 for _ in takewhile(lambda pair: (pair[0].user, pair[0].assistant) == pair[1], plans))
