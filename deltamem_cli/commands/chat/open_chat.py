"""The chat that a terminal holds: its session, the loaded model, and their exchange for others. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deltamem_cli.errors import DeltamemError
from deltamem_cli.terminal.interrupts import stopping

if TYPE_CHECKING:
    from typing_extensions import Self

    from deltamem_cli.commands.chat.history import ChatHistory
    from deltamem_cli.session.chat import ChatSession
    from deltamem_cli.session.loading import Loaded
    from deltamem_cli.session.request import Request
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.wiping import Typed

Progress = Callable[[int, int], None]  # tokens fed, tokens to feed


class Talk:
    """An open chat; close it or use it as a context manager. The store stays its caller's."""

    def __init__(self, store: Store, request: Request, *, stream: bool = True) -> None:
        from deltamem_cli.session import opening

        self.store = store
        self.request = request
        self.stream = stream  # replies are shown as they grow
        self.history: ChatHistory | None = None  # of the prompt, where there is one
        self.warned: set[str] = set()  # of what is told once
        self._model = ExitStack()
        self._start: Future[None] | None = None
        self._started = (0, 0)  # tokens fed and to feed
        try:
            self.session, self.loaded = opening.open_chat(self._model, store, request, start=False)
        except BaseException:
            self._model.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Cancelled again and again: each feed() begins anew.
        while self._start and not wait([self._start], 0.05).done:
            self.session.seat.cancel()
        self._model.close()

    def start(self) -> Future[None]:
        """Feeds what the model is to see, in the background while the user types; ready() waits for it."""

        def report(done: int, total: int) -> None:
            self._started = (done, total)

        executor = ThreadPoolExecutor(1)
        self._start = executor.submit(self.session.start, report)
        executor.shutdown(wait=False)
        return self._start

    def ready(self, progress: Progress) -> None:
        """Before anything is asked of the session: waits for start(). Raises DeltamemError when that can't."""
        start = self._start
        if start is None or start.done():
            if self.session.is_started:
                return
            start = self.start()
        while not wait([start], 0.05).done:
            progress(*self._started)
        start.result()

    @property
    def n_turns(self) -> int:
        """Turns of the conversation, also those that are not stored; forgotten ones left gaps in their numbers."""
        from deltamem_cli.store import conversations, turns

        last = turns.last_number(self.store, self.session.conversation.id)
        stored = conversations.get(self.store, self.session.conversation.id).n_turns if last else 0
        return stored + self.session.n_turns - last

    def typed_for(self) -> tuple[str, int]:
        """The conversation and the number of the turn that what is typed now leads to."""
        return self.session.conversation.id, self.session.n_turns + 1

    def erase_typed(self, deleted: Sequence[Typed]) -> None:
        """Takes the typed lines that go with these deletions out of the file and out of this chat. Raises OSError."""
        from deltamem_cli.session import typed_lines

        try:
            if self.store.path:  # what a temporary chat deletes stands in no file
                typed_lines.erase(deleted)
        finally:
            if self.history:
                self.history.forget(deleted)

    def begin_new(self) -> None:
        """A fresh conversation of the same profile and model; the old one stays as it is."""
        self._go_on(self._fresh(self.request, self.loaded))
        self.start()

    def switch_model(self, name: str, adapter: str | None, progress: Progress) -> bool:
        """Goes on with another model. True: in the same conversation; False: in a new one, as the memory is not its.

        progress: called while it reads what is to be visible. Raises DeltamemError; the chat goes on with the old model then.
        """
        from deltamem_cli.session import opening
        from deltamem_cli.store.errors import FingerprintMismatch

        # what was said of the old model's template is not meant for the new one's
        request = replace(self.request, model=name, adapter=adapter, template=None, think=None)
        model = ExitStack()
        same = True
        try:
            loaded = opening.load(model, request, self.session.profile)
            try:
                session = opening.begin(
                    self.store, request, loaded, self.session.profile, self.session.conversation, start=False
                )
            except FingerprintMismatch:
                same, session = False, self._fresh(request, loaded)
            session.start(progress)
        except BaseException:
            model.close()
            raise
        with stopping(_not_now):
            old, self._model = self._model, model
            self.request, self.loaded = request, loaded
            self._go_on(session)
        old.close()
        return same

    def set_option(self, name: str, value: str) -> None:
        """Raises DeltamemError for a name or a value that makes no sense."""
        from deltamem_cli.session.request import replies, settle

        request = replace(self.request, options={**self.request.options, name.replace("-", "_"): value})
        options = replies({**self.loaded.options, **settle(request, self.session.profile).options})
        self.request = request
        self.session.settings = replace(self.session.settings, **options)

    def set_write(self, write: str) -> None:
        """What of the coming turns goes into the memory: "all" or "user"."""
        self.request = replace(self.request, write=write)
        self.session.settings = replace(self.session.settings, write=write)

    def set_thinking(self, name: str, value: bool | None, progress: Progress) -> None:
        """name: think, show_thinking or remember_thinking. Raises DeltamemError for a model that has no such switch."""
        changes: dict[str, Any] = {name: value}
        request = replace(self.request, **changes)
        with stopping(self.session.stop):
            if name == "think":
                self.session.set_think(value, progress=progress)
            elif name == "remember_thinking":
                self.session.settings = replace(self.session.settings, remember_thinking=bool(value))
            self.request = request

    def set_system(self, text: str, progress: Progress) -> None:
        """Another system prompt, from the next turn on; empty: none."""
        request = replace(self.request, system=text)
        with stopping(self.session.stop):
            self.session.set_system(text or None, progress=progress)
            self.request = request

    def reset_memory(self) -> None:
        """Clears the conversation's memory and what the model sees; the transcript stays."""
        self.check_writes()
        with stopping(self.session.stop):
            self.session.reset()

    def check_writes(self) -> None:
        """Raises DeltamemError unless this chat writes into a memory."""
        if self.request.read_only:
            raise DeltamemError("This chat is read-only, so its memory can't change: open it without --read-only.")
        if not self.session.writes:
            raise DeltamemError(self.loaded.why_no_memory or "Memory is off.")

    def _go_on(self, session: ChatSession) -> None:
        """With another session; a signal waits until it is complete."""
        from deltamem_cli.store import locks

        with stopping(_not_now):
            old, self.session = self.session, session
            if old.conversation.id != session.conversation.id:
                locks.let_go(self.store, old.conversation.id)

    def _fresh(self, request: Request, loaded: Loaded) -> ChatSession:
        """Its engine is as it was."""
        from deltamem_cli.session import opening
        from deltamem_cli.store import conversations, locks

        conversation = conversations.new(self.session.profile)
        if not request.read_only:
            locks.hold(self.store, conversation.id)
        try:
            return opening.begin(self.store, request, loaded, self.session.profile, conversation, start=False)
        except BaseException:
            locks.let_go(self.store, conversation.id)
            raise


def _not_now() -> None:
    """What runs takes no time."""
