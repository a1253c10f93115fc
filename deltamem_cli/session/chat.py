"""Turns of a chat: asked, answered, committed with the state they left, taken back. Knows engine and store, no terminal."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.engine import Engine, EngineError
from deltamem_cli.errors import DeltamemError
from deltamem_cli.session import recent
from deltamem_cli.session.exchange import Exchange, Progress, Stop
from deltamem_cli.session.forgetting import Forgotten, forget
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.recent import Beginning
from deltamem_cli.session.records import Settings, TurnStats
from deltamem_cli.session.replay import put_state
from deltamem_cli.session.window import Window
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.ids import new_id
from deltamem_cli.store.records import Conversation, Identity, Message, NewTurn, Profile, Snapshot, TurnContext

_LARGEST_NORM = 1e12  # of trained adapters it is below a thousand


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
        self._stop = Stop(engine)
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
        """Whether the memory keeps what is said."""
        return self.engine.has_memory and not self.settings.read_only

    def ask(
        self,
        text: str,
        *,
        progress: Progress | None = None,
        instead_of: int | None = None,
        reply: Sequence[int] | None = None,
    ) -> Generator[str, None, None]:
        """Streams the reply to `text`, what is thought as Thoughts; at its end, or when stopped by stop() or by closing the iterator, commits.

        progress: called with tokens done and to do while a long message is read. reply: tokens to take for the model's.
        Raises engine.Cancelled when stopped before the reply began, and StoreError when the turn could not be saved;
        then everything is as it was before.
        """
        mark, context = self._mark(), self._turn_context()
        exchange = self._exchange(progress, reply)
        try:
            with suppress(GeneratorExit):  # closed: what was shown is kept
                yield from exchange.ask(text)
            self._commit(mark, context, exchange.messages, instead_of)
            self._asked[self._number] = text
        except BaseException:
            self._go_back(mark)
            raise

    def remember(self, text: str, *, progress: Progress | None = None) -> None:
        """Writes `text` into the memory as a message that nobody answers, and commits it as a turn.

        Raises engine.Cancelled when stopped; then everything is as it was before.
        """
        mark, context = self._mark(), self._turn_context()
        exchange = self._exchange(progress)
        try:
            exchange.tell(text)
            self._commit(mark, context, exchange.messages, None, kind="remember")
        except BaseException:
            self._go_back(mark)
            raise

    def stop(self) -> None:
        """Stops the running ask() or remember() as soon as possible; may be called from a signal handler."""
        self._stop.now()

    def undo(self, count: int = 1) -> list[int]:
        """Takes back the last `count` turns; the state is then, byte for byte, the one from before them.

        Returns their numbers. A session that does not write can take back its own turns only: others are stored.
        """
        if not self.settings.read_only:
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
        self._cut(gone[0])
        return gone

    def regenerate(self, *, progress: Progress | None = None) -> Generator[str, None, None]:
        """Asks the last question again, from the state before it; the new turn takes the old one's place."""
        last = self._number
        text = self._question(last)
        visible = self._visible()
        if not self.settings.read_only:
            put_state(self.engine, states.before(self.store, self.conversation.id, last))
        self._cut(last)
        self._number = last - 1
        replaced = False
        try:
            yield from self.ask(text, progress=progress, instead_of=last)
            replaced = True
        finally:
            if not replaced and self._number < last:  # the old turn still stands
                self._number = last
                if not self.settings.read_only:
                    put_state(self.engine, states.latest(self.store, self.conversation.id))
                self._begin(visible)

    def forget(self, numbers: Collection[int], *, progress: Progress | None = None) -> Forgotten:
        """Takes turns out of transcript and memory, see forgetting.py; the visible turns that stay stay visible.

        Raises engine.Cancelled when stopped; then everything is as it was before.
        """
        if self.settings.read_only:
            raise DeltamemError(
                "This chat is read-only, so nothing can be forgotten in it: open it without --read-only."
            )
        visible = [(number, tokens) for number, tokens in self._visible() if number not in numbers]
        self._stop.wanted, self._stop.reading = False, True
        try:
            return forget(
                self.store,
                self.conversation.id,
                self.engine,
                numbers,
                model=self.model,
                adapter=self.adapter,
                progress=progress,
                stopped=lambda: self._stop.wanted,
            )
        except BaseException:
            visible = self._visible()
            raise
        finally:
            self._stop.reading = False
            self._number = turns.last_number(self.store, self.conversation.id)
            put_state(self.engine, states.latest(self.store, self.conversation.id))
            self._begin(visible)

    def clear(self) -> None:
        """Empties what the model sees; the memory stays."""
        self._begin([])

    def set_system(self, system: str | None) -> None:
        """Another system prompt from the next turn on; the visible turns stay visible."""
        self._set_prompt(Prompt(self.engine.model, system, self.prompt.template, self.prompt.think))

    def set_think(self, think: bool | None) -> None:
        """Whether the model is to think, from the next turn on; None: as its template has it."""
        self._set_prompt(Prompt(self.engine.model, self.prompt.system, self.prompt.template, think))

    def _set_prompt(self, prompt: Prompt) -> None:
        old, self.prompt = self.prompt, prompt
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

    def _exchange(self, progress: Progress | None, given: Sequence[int] | None = None) -> Exchange:
        self._stop.wanted = False
        exchange = Exchange(self.window, self.prompt, self.settings, self._number + 1, self._stop, progress, given)
        self.stats = exchange.stats
        return exchange

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
            _check_size(state)
            stats.changed = float(np.linalg.norm(state.astype(np.float64) - mark.state))
            stats.written_tokens = sum(
                len(message.tokens) if message.spans is None else sum(span >= 0 for span in message.spans)
                for message in messages
            )
            snapshot = Snapshot(state, self.engine.layers, self.model, self.adapter)
        self._asked.pop(mark.turn, None)
        if self.settings.read_only:
            if mark.state is not None:
                self.engine.set_state(mark.state)
            self._number += 1
            return
        turn = NewTurn(
            model=self.model,
            adapter=self.adapter,
            messages=messages if self.settings.log else [],
            snapshot=snapshot,
            kind=kind,
            settings={**asdict(self.settings.sampling), **self._how()},
            context=context,
            interrupted=stats.interrupted,
            prompt_tokens=stats.prompt_tokens,
            reply_tokens=stats.reply_tokens,
            written_tokens=stats.written_tokens,
            timings={"prompt": stats.prompt_seconds, "reply": stats.reply_seconds},
        )
        self._number = turns.commit(self.store, self.conversation, turn, instead_of=instead_of).number

    def _how(self) -> dict[str, int | str]:
        """What of the engine decides the numbers, for a replay that is to come to the same."""
        names = ("ctx_size", "cache_type_k", "cache_type_v", "flash_attention")
        return {name: value for name, value in self.engine.chosen().items() if name in names}

    # the window's beginning

    def _cut(self, number: int) -> None:
        """Takes `number` and later turns out of the window; the turn that takes the number was not shown before itself."""
        self.window.cut(number)
        self._context["replayed"] = [shown for shown in self._context.get("replayed", []) if shown < number]

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
        self.beginning = Beginning(head, replayed, self.prompt.opening())
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
        if self.settings.read_only:  # another terminal may have stored others by these numbers
            return visible
        stored = {turn.number: recent.tokens(turn) for turn in turns.all_of(self.store, self.conversation.id)}
        return [(number, stored.get(number) or tokens) for number, tokens in visible]

    def _question(self, number: int) -> str:
        if number in self._asked:
            return self._asked[number]
        last = turns.get(self.store, self.conversation.id, number) if number and not self.settings.read_only else None
        if last is None or last.kind != "chat" or not last.messages:
            raise DeltamemError("There is no question of which the reply could be made again: ask one first.")
        return last.messages[0].text


def _check_size(state: NDArray[np.float32]) -> None:
    """Raises EngineError for a state that no adapter at work comes to; it would soon be infinite, and stay so."""
    with np.errstate(invalid="ignore"):
        norm = float(np.linalg.norm(state.astype(np.float64)))
    if not norm <= _LARGEST_NORM:
        raise EngineError(
            f"The memory has grown beyond measure (its norm is {norm:.3g}), so this turn was not saved: check the adapter "
            "with dmem doctor, take turns back with dmem memory undo, or begin anew with dmem memory reset."
        )
