"""A client's connection: how long it may take and what it is told before the application hears of it. Knows no route."""

from __future__ import annotations

import asyncio
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deltamem_cli.server.guard import SAME_USER
from deltamem_cli.server.problems import Problem, invalid, problem_response

_HEAD_SECONDS = 30.0  # for a request's first line and headers
_PROBE_SECONDS, _LONGEST_PROBE_SECONDS = 0.1, 5.0  # from one to the next, each twice as long
_TOO_LARGE = 431  # h11's hint for a head beyond its limit


class Connection(H11Protocol):
    """Closes a connection that takes too long to say what it wants. Tells who comes by the Unix socket.

    That is asked of the socket itself: the address of a peer that is gone already is unknown, however it came.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Of asyncio."""
        super().connection_made(transport)
        if transport.get_extra_info("socket").family not in (socket.AF_INET, socket.AF_INET6):
            self.app_state: dict[str, Any] = {**self.app_state, SAME_USER: True}
        self.limit_concurrency: int | None = None  # uvicorn would tell who is too many, as plain text
        most = self.config.limit_concurrency
        self._wait_for_head()
        if most is not None and len(self.connections) > most:
            # also one that says nothing takes an open file, of which databases need some
            self._refuse(Problem(503, "The server has too many connections: ask again.", code="server_busy"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self._patience.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        """Of asyncio: the client says no more. True keeps the connection open for the answer.

        A client that waits for it (as `nc -N` does) looks like one that has left until it is sent something: the system of
        one that has left refuses that, so interim responses, which any client of HTTP/1.1 skips, tell the two apart. Once
        the answer has begun, who says no more has left, as nobody closes one half that late.
        """
        if not self._is_answering or self.cycle.response_started or self.cycle.more_body:
            return False
        if self.scope["http_version"] != "1.1":  # it has no interim responses
            return False
        self.cycle.keep_alive = False
        self.loop.call_later(_PROBE_SECONDS, self._probe, _PROBE_SECONDS)
        return True

    def _probe(self, seconds: float) -> None:
        if not self._is_answering or self.cycle.response_started or self.transport.is_closing():
            return
        interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        self.transport.write(self.conn.send(interim) or b"")
        seconds = min(2 * seconds, _LONGEST_PROBE_SECONDS)
        self.loop.call_later(seconds, self._probe, seconds)

    def on_response_complete(self) -> None:
        """Of uvicorn; the next request's time begins."""
        self._patience.cancel()
        self._wait_for_head()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """In place of uvicorn's, which calls it where h11 has refused what came."""
        error = sys.exc_info()[1]
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == _TOO_LARGE:
            most = f"{(self.config.h11_max_incomplete_event_size or 0) // 1024} KB"
            self._refuse(Problem(_TOO_LARGE, f"The head of the request is larger than {most}: send fewer headers."))
        else:
            self._refuse(invalid(f"The request is not HTTP ({str(error)[:100]}): send HTTP/1.1."))

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self._is_answering or self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:  # part of a head
            self._refuse(Problem(408, f"The head did not come within {_HEAD_SECONDS:.0f} seconds: send it at once."))
        else:
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, problem: Problem) -> None:
        """Answers in place of the application, and closes. Where the request has no path yet, in OpenAI's form."""
        response = problem_response(self.scope["path"] if self._is_answering else "", problem)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
            headers = [*response.raw_headers, (b"connection", b"close")]
            reason = HTTPStatus(problem.status).phrase.encode()
            head = h11.Response(status_code=problem.status, headers=headers, reason=reason)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
