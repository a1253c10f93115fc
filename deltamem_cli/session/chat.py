"""Turns of a chat: asked, answered, committed with the state they left, taken back. Knows engine and store, no terminal.

Each operation makes the view that is to be, commits to the store, and takes that view for the one that stands: that is
the moment at which it has happened. Bringing the model to it comes last, and can be done again whenever it fails.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.engine import Cancelled, EngineError, Seat
from deltamem_cli.errors import DeltamemError
from deltamem_cli.session import beginning
from deltamem_cli.session.forgetting import Forgotten, forget
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.running_turn import Progress, RunningTurn, Stop
from deltamem_cli.session.settings import Settings, TurnStats
from deltamem_cli.session.view import Applied, View, put_state
from deltamem_cli.session.window import Window
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Conversation, Identity, Message, NewTurn, Profile, Snapshot, TurnContext
from deltamem_cli.store.reset import reset

Replacing = Mapping[str, int | None]  # what turns.commit() takes of it
_LARGEST_NORM = 1e12  # of trained adapters it is below a thousand


class ChatSession:
    """One conversation being held. Commits each turn with its state; transcript, state and window always agree."""

    def __init__(
        self,
        store: Store,
        seat: Seat,
        profile: Profile,
        conversation: Conversation,
        *,
        model: Identity,
        adapter: Identity | None,
        prompt: Prompt,
        settings: Settings,
        state: NDArray[np.float32] | None,
    ) -> None:
        """state: that of the conversation's last turn; None: nothing is remembered yet.

        Call start() before anything else. Raises EngineError for a system prompt that does not fit.
        """
        self.store = store
        self.seat, self.engine = seat, seat.engine
        self.profile = profile
        self.conversation = conversation
        self.model, self.adapter = model, adapter
        self.settings = settings
        self.window = Window(seat)
        self.stats = TurnStats()
        self._stop = Stop(seat)
        self._asked: dict[int, str] = {}  # questions of this session, for turns whose text is not stored
        self._applied = Applied(self.window)
        budget = seat.n_ctx_seq // 4 if settings.replay_tokens is None else settings.replay_tokens
        replayed = beginning.turns_that_fit(store, conversation.id, model, budget)
        last = turns.last_number(store, conversation.id)
        self._stored = last
        self._view = self._checked(View(prompt, [], [], replayed, state, last).with_prompt(prompt))

    def start(self, progress: Progress | None = None) -> None:
        """Brings the model to what stands, if it is not there; in any thread, as long as nothing else is asked of the
        session. Raises engine.Cancelled when stopped; it can be done again.
        """
        self._stop.wanted = False
        self._apply(self._view, progress)

    @property
    def is_started(self) -> bool:
        """Whether there is nothing for start() to do."""
        return self._applied.view is self._view

    @property
    def prompt(self) -> Prompt:
        """What the view renders messages with."""
        return self._view.prompt

    @property
    def view(self) -> View:
        """What stands now."""
        return self._view

    # turns

    @property
    def n_turns(self) -> int:
        """Number of the last turn."""
        return self._view.last

    @property
    def writes(self) -> bool:
        """Whether the memory keeps what is said."""
        return self.engine.has_memory and not self.settings.read_only and self.settings.write != "none"

    def ask(
        self,
        text: str,
        *,
        progress: Progress | None = None,
        reply: Sequence[int] | None = None,
        undo: int | None = None,
    ) -> Generator[str, None, None]:
        """Streams the reply to `text`, what is thought as Thoughts; at its end, or when stopped by stop() or by closing the iterator, commits.

        progress: called with tokens done and to do while a long message is read. reply: tokens to take for the model's.
        undo: number of the first stored turn of those that are taken back in the moment in which this one is committed.
        Raises engine.Cancelled when stopped before the reply began, and StoreError when the turn could not be saved;
        then everything is as it was before.
        """
        before = self._view
        if undo is not None:
            before = before.before(undo, self._state(states.before(self.store, self.conversation.id, undo)))
            before = replace(before, last=turns.last_number(self.store, self.conversation.id, below=undo))
        yield from self._ask(before, text, progress, reply, undo=undo)

    def remember(self, text: str, *, progress: Progress | None = None) -> None:
        """Writes `text` into the memory as a message that nobody answers, and commits it as a turn.

        Raises engine.Cancelled when stopped; then everything is as it was before.
        """
        running = self._running_turn(self._view, progress)
        try:
            before = self._apply(self._view, progress)
            context = self._turn_context(before)
            running.tell(text)
            self._commit(before, context, running.messages, {}, kind="remember")
        except BaseException as error:
            self._fall_back(error)
            raise

    def stop(self) -> None:
        """Stops what runs as soon as possible; may be called from a signal handler.

        What has happened by then stands, and only bringing the model to it is left to the next turn.
        """
        self._stop.now()

    def undo(self, count: int = 1, *, progress: Progress | None = None) -> list[int]:
        """Takes back the last `count` turns; the state is then, byte for byte, the one from before them.

        Returns their numbers. A session that does not write can take back its own turns only: others are stored.
        """
        last = self._view.last
        if not self.settings.read_only:
            with self.store.transaction():
                gone = [turn.number for turn in turns.undo(self.store, self.conversation.id, count)]
                state = self._state(states.latest(self.store, self.conversation.id))
                last = turns.last_number(self.store, self.conversation.id)
        else:
            if not 0 < count <= last - self._stored:
                raise DeltamemError(
                    f"Can't undo {count} of {last - self._stored} turns: this chat is read-only, so it can "
                    "undo only what was said in it."
                )
            gone, state = list(range(last - count + 1, last + 1)), self._view.state
            last -= count
        self._view = replace(self._view.before(gone[0], state), last=last)
        self._settle(progress)
        return gone

    def regenerate(self, *, progress: Progress | None = None) -> Generator[str, None, None]:
        """Asks the last question again, from the state before it; the new turn takes the old one's place.

        Raises as ask() does; then the old turn still stands.
        """
        last = self._view.last
        state = self._view.state
        if not self.settings.read_only:
            state = self._state(states.before(self.store, self.conversation.id, last))
        yield from self._ask(self._view.before(last, state), self._question(last), progress, instead_of=last)

    def forget(self, numbers: Collection[int], *, progress: Progress | None = None) -> Forgotten:
        """Takes turns out of transcript and memory, see forgetting.py; the visible turns that stay stay visible.

        Raises engine.Cancelled when stopped; then everything is as it was before.
        """
        if self.settings.read_only:
            raise DeltamemError("This chat is read-only, so it can't forget anything: open it without --read-only.")
        self._stop.wanted, self._stop.reading = False, True
        self._applied.view = None  # its replay takes the seat
        try:
            forgotten = forget(
                self.store,
                self.conversation.id,
                self.seat,
                numbers,
                model=self.model,
                adapter=self.adapter,
                progress=progress,
                stopped=lambda: self._stop.wanted,
            )
        except BaseException as error:
            self._fall_back(error)
            raise
        finally:
            self._stop.reading = False
        self._view = replace(
            self._view,
            turns=[shown for shown in self._view.turns if shown[0] not in numbers],
            state=self._state(states.latest(self.store, self.conversation.id)),
            last=turns.last_number(self.store, self.conversation.id),
        )
        self._settle(progress)
        return forgotten

    def reset(self) -> None:
        """Clears the conversation's memory and what the model sees; the transcript stays."""
        reset(self.store, [self.conversation], transcript=False)
        self._view = replace(self._view, turns=[], state=None)
        self._settle()

    def clear(self) -> None:
        """Empties what the model sees; the memory stays."""
        self.show([])

    def show(self, numbers: Collection[int]) -> None:
        """Stored turns that are all that the model sees from now on, as a session's first ones are; the memory stays."""
        shown = []
        if numbers:
            every = {turn.number: beginning.tokens(turn) for turn in turns.all_of(self.store, self.conversation.id)}
            shown = [(number, every[number]) for number in sorted(numbers) if every.get(number)]
        self._applied.view = None  # a run of its own, as every one that begins with what was there before
        self._change(replace(self._view, turns=shown))

    def set_system(self, system: str | None, *, progress: Progress | None = None) -> None:
        """Another system prompt from the next turn on; the visible turns stay visible."""
        self.set_prompt(self.prompt.changed(system=system), progress=progress)

    def set_think(self, think: bool | None, *, progress: Progress | None = None) -> None:
        """Whether the model is to think, from the next turn on; None: as its template has it."""
        self.set_prompt(self.prompt.changed(think=think), progress=progress)

    def set_prompt(self, prompt: Prompt, *, progress: Progress | None = None) -> None:
        """All of that at once."""
        self._change(self._checked(self._view.with_prompt(prompt)), progress)

    @property
    def context_filled(self) -> tuple[int, int]:
        """Tokens that the model sees, and how many it can see."""
        return self.window.n_past, self.seat.n_ctx_seq

    def take_dropped(self) -> list[int]:
        """Turns that left the window since the last call; the memory keeps what they wrote."""
        dropped = sorted(self.window.dropped)
        self.window.dropped.clear()
        return dropped

    # a turn

    def _ask(
        self,
        before: View,
        text: str,
        progress: Progress | None,
        given: Sequence[int] | None = None,
        **replacing: int | None,
    ) -> Generator[str, None, None]:
        running = self._running_turn(before, progress, given)
        try:
            before = self._apply(before, progress)
            context = self._turn_context(before)
            with suppress(GeneratorExit):  # closed: what was shown is kept
                yield from running.ask(text)
            self._commit(before, context, running.messages, replacing)
            self._asked[self._view.last] = text
        except BaseException as error:
            self._fall_back(error)
            raise

    def _running_turn(self, before: View, progress: Progress | None, given: Sequence[int] | None = None) -> RunningTurn:
        self._stop.wanted = False
        running = RunningTurn(self.window, before.prompt, self.settings, before.last + 1, self._stop, progress, given)
        self.stats = running.stats
        return running

    def _turn_context(self, before: View) -> TurnContext:
        self.stats.context_tokens = self.window.n_past
        return {
            **self._applied.run,
            "system": before.prompt.system,
            "window_first": before.turns[0][0] if before.turns else before.last + 1,
            "n_past": self.window.n_past,
        }

    def _commit(
        self, before: View, context: TurnContext, messages: list[Message], replacing: Replacing, kind: str = "chat"
    ) -> None:
        stats = self.stats
        after = replace(before, turns=self.window.shown, last=before.last + 1)
        snapshot = None
        if self.writes and self.adapter:
            state = self.seat.state()
            _check_size(state)
            old = 0.0 if before.state is None else before.state.astype(np.float64)
            stats.changed = float(np.linalg.norm(state.astype(np.float64) - old))
            stats.written_tokens = sum(
                len(message.tokens) if message.spans is None else sum(span >= 0 for span in message.spans)
                for message in messages
            )
            snapshot = Snapshot(state, self.engine.layers, self.model, self.adapter)
            after = replace(after, state=state)
        self._asked.pop(after.last, None)
        if self.settings.read_only:
            put_state(self.seat, before.state)
            self._view = self._applied.view = after
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
        number = turns.commit(self.store, self.conversation, turn, **replacing).number
        self._view = self._applied.view = replace(after, last=number)

    def _how(self) -> dict[str, int | str]:
        """What of the engine decides the numbers, for a replay that is to come to the same."""
        names = ("ctx_size", "cache_type_k", "cache_type_v", "flash_attention")
        return {name: value for name, value in self.engine.chosen().items() if name in names}

    # from one view to another

    def _apply(self, new: View, progress: Progress | None = None) -> View:
        """Brings the model to `new`, which may be what stands, and returns it with all tokens that it was fed."""
        applied = self._applied.apply(new, self._whole, self._stop, progress)
        if new is self._view:
            self._view = applied
        return applied

    def _settle(self, progress: Progress | None = None) -> None:
        """Brings the model to what stands; stopped, that is left to the next turn."""
        with suppress(Cancelled):
            self.start(progress)

    def _change(self, new: View, progress: Progress | None = None) -> None:
        """To another view of the same turns and memory; the old one stands when the model can't be brought to it."""
        old, self._view = self._view, new
        try:
            self._settle(progress)
        except BaseException:
            self._view = old
            raise

    def _fall_back(self, error: BaseException) -> None:
        """What stands was not left: brings the model back to it, or leaves that to the next turn where an end was wished for."""
        if not self._applied.go_back(self._view) and isinstance(error, Exception) and not isinstance(error, Cancelled):
            with suppress(DeltamemError):  # that of the operation is the news
                self.start()

    def _checked(self, new: View) -> View:
        """Raises EngineError for a system prompt that leaves too little room."""
        self.window.check_head(new.head)
        return new

    def _whole(self, new: View) -> View:
        """With all tokens of its turns where they are stored."""
        if self.settings.read_only or not new.turns:  # another terminal may have stored others by these numbers
            return new
        stored = {turn.number: beginning.tokens(turn) for turn in turns.all_of(self.store, self.conversation.id)}
        return replace(new, turns=[(number, stored.get(number) or tokens) for number, tokens in new.turns])

    def _state(self, snapshot: Snapshot | None) -> NDArray[np.float32] | None:
        return snapshot.state if snapshot and self.engine.has_memory else None

    def _question(self, number: int) -> str:
        if number in self._asked:
            return self._asked[number]
        last = turns.get(self.store, self.conversation.id, number) if number and not self.settings.read_only else None
        if last is None or last.kind != "chat" or not last.messages:
            raise DeltamemError("There is no question to answer again: ask one first.")
        return last.messages[0].text


def _check_size(state: NDArray[np.float32]) -> None:
    """Raises EngineError for a state that no adapter at work comes to; it would soon be infinite, and stay so."""
    with np.errstate(invalid="ignore"):
        norm = float(np.linalg.norm(state.astype(np.float64)))
    if not norm <= _LARGEST_NORM:
        raise EngineError(
            f"The memory has grown beyond measure (its norm is {norm:.3g}), so this turn was not saved: check the adapter "
            "with dmem doctor, undo turns with dmem memory undo, or start over with dmem memory reset."
        )
