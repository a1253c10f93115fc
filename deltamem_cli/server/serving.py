"""Runs the application: sockets, signals, and an end when nobody has asked for a while."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import uvicorn

from deltamem_cli.server.connection import Connection
from deltamem_cli.server.conversations.places import Places
from deltamem_cli.server.guard import Guard

_MOST_CONNECTIONS = 512  # more are told that the server is busy
_QUIET = 2.0  # seconds without a request, to do what would keep one waiting
_LARGEST_HEAD = 64 * 1024  # bytes
_FILES, _FILES_PER_SEAT = 64, 12  # kept free for model and databases


class Server(uvicorn.Server):
    """Ends the replies that are being drawn when it is told to end, so that they are committed before it does."""

    def __init__(self, guard: Guard, places: Places, *, idle: float | None = None) -> None:
        """idle: seconds without a request after which it ends by itself."""
        for name in ("uvicorn.error", "asyncio"):  # they would tell what requests say, and of every client that leaves
            logging.getLogger(name).setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                guard,
                http=Connection,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_room_for_connections(places.n_seats),
                h11_max_incomplete_event_size=_LARGEST_HEAD,
                timeout_keep_alive=30,
            )
        )
        self._guard, self._places, self._idle = guard, places, idle
        self._tidied = 0.0  # when the last request was, after which deletions were wiped
        self.should_exit = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Nothing new begins. Unlike uvicorn's, this does not send the signal again when all is over: the end is in order."""
        self._places.ending = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def serve_and_close(self, sockets: Sequence[socket.socket]) -> None:
        """Serves until a signal, or until it was idle for long; then until all turns are committed."""
        watching = asyncio.create_task(self._watch())
        try:
            await self.serve(list(sockets))
        finally:
            watching.cancel()
            await self._places.close()

    async def _watch(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(0.05)
            unused = time.monotonic() - self._guard.last
            if not self._guard.n_running and unused > _QUIET and self._tidied != self._guard.last:
                self._tidied = self._guard.last
                await self._places.tidy()
            if self._idle is not None and not self._guard.n_running and unused > self._idle:
                self.should_exit = True
        self._places.stop_all()


def _room_for_connections(seats: int) -> int:
    """How many may be open at once, with as many open files as the system lets this process have."""
    if sys.platform == "win32":
        return _MOST_CONNECTIONS
    import resource

    kept, (soft, hard) = _FILES + _FILES_PER_SEAT * seats, resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + kept
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # macOS has a lower limit than it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(8, min(_MOST_CONNECTIONS, soft - kept))
