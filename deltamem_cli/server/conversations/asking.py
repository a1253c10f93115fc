"""One question of a client on its way: finds its place, does what its history asks for, draws the reply in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deltamem_cli.engine import Cancelled, LazyGrammar
from deltamem_cli.errors import DeltamemError
from deltamem_cli.server.conversations.addressing import Address
from deltamem_cli.server.conversations.history import History, Plan, plan
from deltamem_cli.server.conversations.places import Place, Places, Ticket
from deltamem_cli.server.problems import Problem, invalid, of_error
from deltamem_cli.session import documents
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.request import replies
from deltamem_cli.session.settings import TurnStats
from deltamem_cli.session.thinking import Thought, parted
from deltamem_cli.session.tools.calls import Call
from deltamem_cli.session.tools.grammar import of_calls, once_begun
from deltamem_cli.session.tools.reading import Reader, neutral
from deltamem_cli.store import turns

MOST_NEW = 1_000_000  # characters: reading them takes minutes, in which a seat is nobody else's


@dataclass(frozen=True)
class Question:
    """address: None where no memory is meant. options: of Sampling, and max_tokens, in place of the conversation's own.

    settings: of Settings, in place of its own. Where read_only is among them nothing of the turn is kept. grammar: GBNF.
    think: whether the model is to think; None: as the conversation has it. tools: as Prompt takes them. after: the turn
    that is gone on from; where others follow it, a branch goes on from there. forced: tools of which one must be called.
    """

    history: History
    profile: str
    address: Address | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    think: bool | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    after: int | None = None
    forced: Sequence[Mapping[str, Any]] = ()
    one_call: bool = False  # of a tool, and no second one

    @property
    def read_only(self) -> bool:
        """Whether nothing of the turn is kept."""
        return bool(self.settings.get("read_only"))


@dataclass(frozen=True)
class Finished:
    """conversation, turn: None where nothing was kept. reason: stop or length, as OpenAI has them. dropped: whether turns
    have left the window. writes, context: as ChatSession.writes and context_filled. document: as documents.asked() has it.
    """

    stats: TurnStats
    reason: str
    conversation: str | None = None
    turn: int | None = None
    dropped: bool = False
    writes: bool = False
    context: tuple[int, int] = (0, 0)
    document: Mapping[str, Any] = field(default_factory=dict)


class Answer:
    """A reply that has begun, or is about to. The turn goes on by itself; who leaves early says so with stop()."""

    def __init__(self, places: Places, question: Question) -> None:
        self._places, self._question = places, question
        self._queue: asyncio.Queue[str | Finished | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._session: ChatSession | None = None
        self._stopped = False
        self._ticket = Ticket()
        self._first: str | None = None
        self.conversation: str | None = None
        self.turn: int | None = None  # that it is going to be
        self.finished: Finished | None = None
        task = asyncio.create_task(self._run())
        places.tasks.add(task)
        task.add_done_callback(places.tasks.discard)

    async def begin(self) -> None:
        """Returns when the reply has begun. Raises Problem when it never will; then nothing was changed."""
        self._first = await self._next()

    async def pieces(self) -> AsyncIterator[str | Call]:
        """The reply as it grows, what is thought as Thoughts, and Calls where tools are offered. Raises Problem."""
        reader = Reader(self._places.tool_form) if self._question.tools else None
        try:
            while self._first is not None:
                piece, self._first = self._first, None
                for each in [piece] if reader is None or isinstance(piece, Thought) else reader.add(piece):
                    yield each
                self._first = await self._next()
            for each in reader.finish() if reader else ():
                yield each
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends the reply; what was said of it is committed as interrupted."""
        if self.finished is None:
            self._stopped = True
            self._ticket.give_up()
            if self._session:
                self._session.stop()

    async def _next(self) -> str | None:
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Finished):
            self.finished = event
            return None
        return event

    # the turn

    async def _run(self) -> None:
        try:
            self._queue.put_nowait(await self._held())
        except Problem as problem:
            self._queue.put_nowait(problem)
        except DeltamemError as error:
            self._queue.put_nowait(of_error(error))
        except Exception as error:  # noqa: BLE001 (who waits must hear of it)
            self._queue.put_nowait(Problem(500, f"Unexpected error ({type(error).__name__}: {error})."))

    async def _held(self) -> Finished:
        places, question, address = self._places, self._question, self._question.address
        question = replace(question, history=await places.run(self._neutral_history))
        if address is not None:
            conversation, profile = await places.run(lambda: places.find(address, question.profile))
            after = question.after
            async with places.conversation(conversation, profile, self._ticket) as place:
                is_last = after in (None, place.session.n_turns)
                todo = plan(question.history, place.said, address.mode) if is_last else None
                if todo is not None:
                    place.stale = question.read_only
                    return await self._in(place, todo)
            if after is not None and not is_last:
                if question.read_only:
                    raise Problem(400, "Turns follow this response, and going on beside them has to be stored.")
                conversation = await places.run(lambda: places.branch(conversation, profile, after))
                async with places.conversation(conversation, profile, self._ticket) as place:
                    return await self._in(place, Plan(feed=question.history.exchanges))
        async with places.nobody(question.history, self._ticket) as place:
            return await self._in(place, plan(question.history, place.said, "mirror") or Plan(show=[]))

    def _neutral_history(self) -> History:
        """In a thread: with calls that the client sends as the text of a reply as calls."""
        history, form = self._question.history, self._places.tool_form
        return replace(history, exchanges=tuple((asked, neutral(said, form)) for asked, said in history.exchanges))

    async def _in(self, place: Place, todo: Plan) -> Finished:
        size = len(self._question.history.question) + sum(len(text) for exchange in todo.feed for text in exchange)
        if size > MOST_NEW:
            raise Problem(
                413,
                f"What is new has {size:,} characters, and at most {MOST_NEW:,} are read at once: send it in parts.",
            )
        self._session = place.session
        if not place.is_anonymous:
            self.conversation = place.key
        return await self._places.run(lambda: self._turn(place, todo))

    def _turn(self, place: Place, todo: Plan) -> Finished:
        """In a thread."""
        self._check()
        question, session = self._question, place.session
        self._say(place)
        session.settings = replace(
            place.settings,
            **replies({**place.options, **question.options}),
            stop=self._stop_words(),
            grammar=question.grammar or self._call_grammar(),
            **({} if place.is_anonymous else question.settings),
        )
        if todo.show is not None:
            session.show(todo.show)
        chat, undo = todo.chat, todo.undo
        for asked, answered in todo.feed:
            for _ in session.ask(asked, reply=session.prompt.reply(answered), undo=undo):
                pass
            if not session.settings.read_only:  # then there is nothing stored of it
                chat = place.note(chat, undo).chat
            undo = None
            self._check()
        if not place.is_anonymous and not session.settings.read_only:
            last = session.n_turns if undo is None else turns.last_number(place.store, place.key, below=undo)
            self.turn = last + 1
        reply = session.ask(question.history.question, undo=undo)
        pieces = []
        for piece in reply:
            pieces.append(piece)
            self._tell([piece])
            if self._is_unwanted:
                reply.close()
        turn = None if session.settings.read_only else place.note(chat, undo).number
        kept = not place.is_anonymous
        thought, answered = parted(pieces)
        return Finished(
            session.stats,
            "length" if session.stats.cut else "stop",
            place.key if kept else None,
            turn if kept else None,
            bool(session.take_dropped()),
            session.writes,
            session.context_filled,
            documents.asked(
                session,
                self._places.loaded,
                thought=thought,
                answered=answered,
                temporary=not kept,
                load_seconds=0,
            ),
        )

    def _say(self, place: Place) -> None:
        """What the model is told beside the turns. Raises EngineError for what its template has no place for."""
        question, session = self._question, place.session
        system, think, tools = question.history.system, question.think, question.tools
        if think is False and not session.prompt.used.can_switch_thinking:
            think = None
        wanted = {
            "system": place.system if system is None else system or None,
            "think": place.think if think is None else think,
            "tools": tools,
        }
        if any(getattr(session.prompt, name) != value for name, value in wanted.items()):
            session.set_prompt(session.prompt.changed(**wanted))

    def _stop_words(self) -> tuple[str, ...]:
        question, end = self._question, self._places.tool_form.end
        return (*question.stop, end) if question.tools and question.one_call and end else question.stop

    def _call_grammar(self) -> str | LazyGrammar | None:
        """What holds a call that must be made, or one that the model begins. Raises Problem."""
        question, form = self._question, self._places.tool_form
        if not question.tools:
            return None
        if not question.forced:
            model = self._places.loaded.engine.model
            return once_begun(form, question.tools, model, several=not question.one_call)
        try:
            return of_calls(form, question.forced)
        except ValueError as error:
            raise invalid(f"A tool's schema can't be followed ({str(error)[:200]}).", "tools") from None

    def _tell(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    @property
    def _is_unwanted(self) -> bool:
        return self._stopped or self._places.ending

    def _check(self) -> None:
        if self._is_unwanted:
            raise Cancelled(0)
