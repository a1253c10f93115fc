"""Turns of a chat: asked, answered, committed with the state they left, taken back. Knows engine and store, no terminal."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.engine import Cancelled, Engine
from deltamem_cli.errors import DeltamemError
from deltamem_cli.session import recent
from deltamem_cli.session import spans as span_ids
from deltamem_cli.session.forgetting import Forgotten, Progress, forget
from deltamem_cli.session.prompt import Piece, Prompt
from deltamem_cli.session.recent import Beginning
from deltamem_cli.session.records import Settings, TurnStats
from deltamem_cli.session.replay import put_state
from deltamem_cli.session.reply import Reply
from deltamem_cli.session.window import Window
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.ids import new_id
from deltamem_cli.store.records import Conversation, Identity, Message, NewTurn, Profile, Snapshot, TurnContext


@dataclass
class _Mark:
    """Where a turn began, to go back to."""

    state: NDArray[np.float32] | None
    turn: int
    dropped: int  # turns that had left the window
    visible: list[tuple[int, list[int]]]  # turns in the window, and what of them


class ChatSession:
    """One conversation being held. Commits each turn with its state; transcript, state and window always agree."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        profile: Profile,
        conversation: Conversation,
        *,
        model: Identity,
        adapter: Identity | None,
        prompt: Prompt,
        settings: Settings,
    ) -> None:
        """The engine holds the conversation's state already (see opening.py).

        Call start() before anything that feeds. Raises EngineError for a system prompt that does not fit.
        """
        self.store = store
        self.engine = engine
        self.profile = profile
        self.conversation = conversation
        self.model, self.adapter = model, adapter
        self.prompt = prompt
        self.settings = settings
        self.window = Window(engine)
        self.stats = TurnStats()
        self._stop = False
        self._reading = False  # a message, as opposed to replying
        self._number = self._stored = turns.last_number(store, conversation.id)
        self._asked: dict[int, str] = {}  # questions of this session, for turns whose text is not stored
        self._context: TurnContext = {}
        budget = settings.replay_tokens
        self._prepare(
            recent.turns_that_fit(store, conversation.id, model, engine.n_ctx_seq // 4 if budget is None else budget)
        )

    def start(self, progress: Progress | None = None) -> None:
        """Feeds what the model sees at the start; in any thread, as long as nothing else is asked of the session."""
        self.beginning.feed(self.window, progress)

    # turns

    @property
    def n_turns(self) -> int:
        """Number of the last turn."""
        return self._number

    @property
    def writes(self) -> bool:
        return self.settings.write and self.engine.has_memory

    def ask(
        self, text: str, *, progress: Progress | None = None, instead_of: int | None = None
    ) -> Generator[str, None, None]:
        """Streams the reply to `text`; at its end, or when stopped by stop() or by closing the iterator, commits.

        progress: called with tokens done and to do while a long message is read.
        Raises engine.Cancelled when stopped before the reply began, and StoreError when the turn could not be saved;
        then everything is as it was before.
        """
        mark = self._mark()
        self._stop = False
        self.stats = stats = TurnStats()
        number = self._number + 1
        context = self._turn_context()
        reply = Reply(self.engine)
        try:
            with self._pass():
                piece, spans = self._user(text)
                start = time.perf_counter()
                self._feed(number, piece.tokens, spans, progress, stoppable=True)
                stats.prompt_tokens, stats.prompt_seconds = len(piece.tokens), time.perf_counter() - start
                start = time.perf_counter()
                span = span_ids.next_id(spans)
                try:
                    for token in self._reply(number, reply, spans is not None, span):
                        if text_piece := reply.add(token):
                            yield text_piece
                        if self._stop:
                            stats.interrupted = True
                            break
                    if rest := reply.finish():
                        yield rest
                except GeneratorExit:
                    stats.interrupted = True
                stats.reply_tokens, stats.reply_seconds = len(reply.tokens), time.perf_counter() - start
                closing = self.prompt.close()
                closing_spans = None if spans is None else [reply.span(self.engine.granularity, span)] * len(closing)
                self._feed(number, closing, closing_spans)
            messages = [
                Message("user", text, piece.tokens, spans),
                Message(
                    "assistant",
                    reply.text,
                    [*reply.tokens, *closing],
                    None if spans is None else [*reply.spans, *(closing_spans or [])],
                ),
            ]
            self._commit(mark, context, messages, instead_of)
            self._asked[self._number] = text
        except BaseException:
            self._go_back(mark)
            raise

    def remember(self, text: str, *, progress: Progress | None = None) -> None:
        """Writes `text` into the memory as a message that nobody answers, and commits it as a turn.

        Raises engine.Cancelled when stopped; then everything is as it was before.
        """
        mark = self._mark()
        self._stop = False
        self.stats = stats = TurnStats()
        context = self._turn_context()
        try:
            piece = self.prompt.said(text)
            spans = span_ids.of_message(self.engine.model, piece, self.engine.granularity)
            with self._pass():
                start = time.perf_counter()
                self._feed(self._number + 1, piece.tokens, spans, progress, stoppable=True)
                stats.prompt_tokens, stats.prompt_seconds = len(piece.tokens), time.perf_counter() - start
            self._commit(mark, context, [Message("user", text, piece.tokens, spans)], None, kind="remember")
        except BaseException:
            self._go_back(mark)
            raise

    def stop(self) -> None:
        """Stops the running ask() or remember() as soon as possible; may be called from a signal handler."""
        self._stop = True
        if self._reading:  # a reply ends with a whole token, so that memory and window hold what was shown
            self.engine.cancel()

    def undo(self, count: int = 1) -> list[int]:
        """Takes back the last `count` turns; the state is then, byte for byte, the one from before them.

        Returns their numbers. A session that does not write can take back its own turns only: others are stored.
        """
        if self.settings.write:
            gone = [turn.number for turn in turns.undo(self.store, self.conversation.id, count)]
            self._number = turns.last_number(self.store, self.conversation.id)
            put_state(self.engine, states.latest(self.store, self.conversation.id))
        else:
            if not 0 < count <= self._number - self._stored:
                raise DeltamemError(
                    f"Cannot take back {count} of {self._number - self._stored} turns: this chat is read-only, so it can "
                    "take back only what was said in it."
                )
            gone = list(range(self._number - count + 1, self._number + 1))
            self._number -= count
        self.window.cut(gone[0])
        return gone

    def regenerate(self, *, progress: Progress | None = None) -> Generator[str, None, None]:
        """Asks the last question again, from the state before it; the new turn takes the old one's place."""
        last = self._number
        text = self._question(last)
        visible = self._visible()
        if self.settings.write:
            put_state(self.engine, states.before(self.store, self.conversation.id, last))
        self.window.cut(last)
        self._number = last - 1
        replaced = False
        try:
            yield from self.ask(text, progress=progress, instead_of=last)
            replaced = True
        finally:
            if not replaced and self._number < last:  # the old turn still stands
                self._number = last
                if self.settings.write:
                    put_state(self.engine, states.latest(self.store, self.conversation.id))
                self._begin(visible)

    def forget(self, numbers: Collection[int], *, progress: Progress | None = None) -> Forgotten:
        """Takes turns out of transcript and memory, see forgetting.py; the visible turns that stay stay visible.

        Raises engine.Cancelled when stopped; then everything is as it was before.
        """
        if not self.settings.write:
            raise DeltamemError(
                "This chat is read-only, so nothing can be forgotten in it: open it without --read-only."
            )
        visible = [(number, tokens) for number, tokens in self._visible() if number not in numbers]
        self._stop, self._reading = False, True
        try:
            return forget(
                self.store,
                self.conversation.id,
                self.engine,
                numbers,
                model=self.model,
                adapter=self.adapter,
                progress=progress,
                stopped=lambda: self._stop,
            )
        except BaseException:
            visible = self._visible()
            raise
        finally:
            self._reading = False
            self._number = turns.last_number(self.store, self.conversation.id)
            put_state(self.engine, states.latest(self.store, self.conversation.id))
            self._begin(visible)

    def clear(self) -> None:
        """Empties what the model sees; the memory stays."""
        self._begin([])

    def set_system(self, system: str | None) -> None:
        """Another system prompt from the next turn on; the visible turns stay visible."""
        old = self.prompt
        self.prompt = Prompt(self.engine.model, system, self.prompt.template)
        try:
            self._begin(self._visible())
        except BaseException:  # too long, or the template has no place for one
            self.prompt = old
            raise

    @property
    def context_filled(self) -> tuple[int, int]:
        """Tokens that the model sees, and how many it can see."""
        return self.window.n_past, self.engine.n_ctx_seq

    def take_dropped(self) -> list[int]:
        """Turns that left the window since the last call; the memory keeps what they wrote."""
        dropped = sorted(self.window.dropped)
        self.window.dropped.clear()
        return dropped

    # inside

    def _user(self, text: str) -> tuple[Piece, list[int] | None]:
        piece = self.prompt.user(text, first=not self.window.stretches)
        granularity = self.engine.granularity if self.engine.has_memory else "token"
        return piece, span_ids.of_message(self.engine.model, piece, granularity)

    def _feed(
        self,
        turn: int,
        tokens: Sequence[int],
        spans: list[int] | None,
        progress: Progress | None = None,
        *,
        stoppable: bool = False,
    ) -> None:
        def report(done: int) -> None:
            if progress:
                progress(done, len(tokens))
            if stoppable and self._stop and done < len(tokens):
                raise Cancelled(done)

        self._reading = stoppable
        try:
            self.window.feed(turn, tokens, write=self.writes, spans=spans, progress=report)
        finally:
            self._reading = False

    def _reply(self, turn: int, reply: Reply, has_spans: bool, span: int) -> Iterator[int]:
        granularity = self.engine.granularity
        return self.window.reply(
            turn,
            self.settings.sampling,
            write=self.writes,
            span=(lambda: reply.span(granularity, span)) if has_spans else None,
            max_tokens=self.settings.max_tokens or self.engine.n_ctx_seq,  # a small model may find no end
        )

    def _pass(self) -> AbstractContextManager[None]:
        """With message and sentence writes the whole turn reads one state and is written at its end."""
        return self.engine.one_pass() if self.engine.granularity != "token" else nullcontext()

    def _mark(self) -> _Mark:
        state = self.engine.state() if self.engine.has_memory else None
        visible = [(number, self.window.tokens(number)) for number in self.window.turns]
        return _Mark(state, self._number + 1, len(self.window.dropped), visible)

    def _go_back(self, mark: _Mark) -> None:
        """Everything as it was before a turn that failed."""
        if mark.state is not None:
            self.engine.set_state(mark.state)
        if len(self.window.dropped) == mark.dropped:
            self.window.cut(mark.turn)
        else:
            self._begin(self._whole(mark.visible))

    def _commit(
        self, mark: _Mark, context: TurnContext, messages: list[Message], instead_of: int | None, kind: str = "chat"
    ) -> None:
        stats = self.stats
        snapshot = None
        if mark.state is not None and self.writes and self.adapter:
            state = self.engine.state()
            stats.changed = float(np.linalg.norm(state - mark.state))
            stats.written_tokens = sum(
                len(message.tokens) if message.spans is None else sum(span >= 0 for span in message.spans)
                for message in messages
            )
            snapshot = Snapshot(state, self.engine.layers, self.model, self.adapter)
        self._asked.pop(mark.turn, None)
        if not self.settings.write:
            self._number += 1
            return
        turn = NewTurn(
            model=self.model,
            adapter=self.adapter,
            messages=messages if self.settings.log else [],
            snapshot=snapshot,
            kind=kind,
            settings={**asdict(self.settings.sampling), "ctx_size": self.engine.n_ctx_seq},
            context=context,
            interrupted=stats.interrupted,
            prompt_tokens=stats.prompt_tokens,
            reply_tokens=stats.reply_tokens,
            written_tokens=stats.written_tokens,
            timings={"prompt": stats.prompt_seconds, "reply": stats.reply_seconds},
        )
        self._number = turns.commit(self.store, self.conversation, turn, instead_of=instead_of).number

    # the window's beginning

    def _turn_context(self) -> TurnContext:
        visible = self.window.turns
        return {
            **self._context,
            "window_first": visible[0] if visible else self._number + 1,
            "n_past": self.window.n_past,
        }

    def _begin(self, replayed: Sequence[tuple[int, Sequence[int]]]) -> None:
        """A fresh window with `replayed` turns: (number, tokens) each."""
        self._prepare(replayed)
        self.start()

    def _prepare(self, replayed: Sequence[tuple[int, Sequence[int]]]) -> None:
        head = self.prompt.head()
        self.window.check_head(head)
        self.beginning = Beginning(head, replayed)
        self._context = {
            **self.beginning.context,
            "run": new_id(),
            "run_first": self._number + 1,
            "system": self.prompt.system,
        }

    def _visible(self) -> list[tuple[int, list[int]]]:
        return self._whole([(number, self.window.tokens(number)) for number in self.window.turns])

    def _whole(self, visible: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
        """The same turns with all their tokens where they are stored, as a replay feeds them."""
        stored = {turn.number: recent.tokens(turn) for turn in turns.all_of(self.store, self.conversation.id)}
        return [(number, stored.get(number) or tokens) for number, tokens in visible]

    def _question(self, number: int) -> str:
        if number in self._asked:
            return self._asked[number]
        last = turns.get(self.store, self.conversation.id, number) if number and self.settings.write else None
        if last is None or last.kind != "chat" or not last.messages:
            raise DeltamemError("There is no question of which the reply could be made again: ask one first.")
        return last.messages[0].text
