"""Several threads feed one engine: what they feed at about the same time goes through the model in one batch."""

from __future__ import annotations

import threading
import time

from deltamem_cli.engine import Engine, EngineError
from deltamem_cli.engine.batch import Feed, decode

# How long a batch waits for those that took part in the last one: they draw their next tokens in the meantime.
_PATIENCE = 0.005  # seconds


class Batcher:
    """Puts itself between `engine` and all threads that feed its seats."""

    def __init__(self, engine: Engine) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[Feed, threading.Event]] = []
        self._expected: set[int] = set()  # sequences that will feed again in a moment
        self._closed = False
        self._engine = engine
        engine.decode_beside_others = self.decode
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def decode(self, feed: Feed) -> None:
        """Returns when a batch has taken `feed` further, or had no room for it; an error is the feed's own."""
        done = threading.Event()
        with self._changed:
            if self._closed:
                raise EngineError("The server is ending.")
            self._waiting.append((feed, done))
            self._changed.notify_all()
        done.wait()

    def leave(self, sequence: int) -> None:
        """No more is fed to this sequence for now: nobody needs to wait for it."""
        with self._changed:
            self._expected.discard(sequence)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread; what waits gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._engine.decode_beside_others = None

    def _run(self) -> None:
        while taken := self._next():
            try:
                decode([feed for feed, _ in taken])
            except Exception as error:  # noqa: BLE001 (the threads that wait must hear of it)
                for feed, _ in taken:
                    feed.error = error if isinstance(error, EngineError) else EngineError(str(error))
            for _, done in taken:
                done.set()

    def _next(self) -> list[tuple[Feed, threading.Event]]:
        """What the next batch is made of; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + _PATIENCE
            while self._expected - {feed.sequence for feed, _ in self._waiting} and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            taken, self._waiting = self._waiting, []
            self._expected = {feed.sequence for feed, _ in taken}
            if not self._closed:
                return taken
        for feed, done in taken:
            feed.error = EngineError("The server is ending.")
            done.set()
        return []
