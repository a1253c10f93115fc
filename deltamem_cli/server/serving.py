"""Runs the application: a port or a socket, signals, and an end when nobody has asked for a while."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from deltamem_cli.server.places import Places

MOST_CONNECTIONS = 512


class Server(uvicorn.Server):
    """Ends the replies that are being drawn when it is told to end, so that they are committed before it does."""

    def __init__(self, app: Starlette, places: Places) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=64 * 1024,
            timeout_keep_alive=30,
            server_header=False,
        )
        super().__init__(config)
        self._places = places

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, which lets what runs come to its end."""
        self._places.ending = True
        super().handle_exit(sig, frame)

    async def serve_and_close(self, sockets: list[socket.socket]) -> None:
        """Serves until a signal, then until all turns are committed."""
        ending = asyncio.create_task(self._stop_when_told())
        try:
            await self.serve(sockets)
        finally:
            ending.cancel()
            await self._places.close()

    async def _stop_when_told(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(0.05)
        self._places.stop_all()
