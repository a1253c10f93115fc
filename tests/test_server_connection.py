"""What a connection is told before the application hears of it, on a real socket with an application of one line."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import uvicorn

from deltamem_cli.server import connection
from deltamem_cli.server.connection import Connection

Raw = Callable[..., str]
GET = "GET {path} HTTP/1.1\r\nHost: here\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body and answers its length."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    await send({"type": "http.response.body", "body": b"%d" % min(size, 9)})


class Thinker:
    """Takes a while to answer, and notes when the client has left before."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.left = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        leaving = asyncio.create_task(receive())
        done, _ = await asyncio.wait([leaving], timeout=self._seconds)
        leaving.cancel()
        if done:
            self.left.set()
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"here"})


class Serving:
    """An application behind Connection, in a thread."""

    def __init__(self, app: Any) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            limit_concurrency=4,
            timeout_keep_alive=60,
            h11_max_incomplete_event_size=2048,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._socket])), daemon=True)
        self._thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)


@contextmanager
def started(app: Any) -> Iterator[Serving]:
    made = Serving(app)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def serving() -> Iterator[Serving]:
    with started(echo) as made:
        yield made


def rest(client: socket.socket) -> str:
    """All that comes until the server closes."""
    data = b""
    while more := client.recv(65536):
        data += more
    return data.decode()


def error_of(said: str, status: int) -> dict[str, Any]:
    """OpenAI's error in the last answer of what was said."""
    head, _, body = said[said.rindex("HTTP/1.1 ") :].partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ") and "content-type: application/json" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


@pytest.mark.parametrize(
    "sent, status, words",
    [
        ("no such thing\r\n\r\n", 400, "not HTTP"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (GET.format(path="/") + "Content-Length: many\r\n\r\n", 400, "Content-Length"),
        (GET.format(path="/") + "X: " + "y" * 4000, 431, "larger than 2 KB"),
    ],
)
def test_what_is_no_request_is_told_in_openai_s_form(serving: Serving, sent: str, status: int, words: str) -> None:
    with closing(serving.connect()) as client:
        client.sendall(sent.encode())
        assert words in error_of(rest(client), status)["message"]


def test_a_body_that_breaks_off_into_nonsense_is_told_in_the_form_of_its_path(serving: Serving) -> None:
    with closing(serving.connect()) as client:
        client.sendall((GET.format(path="/api/chat") + "Transfer-Encoding: chunked\r\n\r\nzzz\r\n").encode())
        head, _, body = rest(client).partition("\r\n\r\n")
        assert " 400 " in head and "not HTTP" in json.loads(body)["error"]


def test_a_head_that_does_not_come_is_told_also_after_another_request(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.3)
    with closing(serving.connect()) as client, closing(serving.connect()) as silent:
        client.sendall((GET.format(path="/") + "\r\n").encode())
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(0.1)
        client.sendall(GET.format(path="/").encode())
        assert "send it at once" in error_of(rest(client), 408)["message"]
        assert rest(silent) == "", "who has said nothing is told nothing"


def test_who_is_one_too_many_is_told_and_the_others_are_answered(serving: Serving) -> None:
    clients = [serving.connect() for _ in range(4)]
    with closing(serving.connect()) as client:
        said = rest(client)
        assert error_of(said, 503)["code"] == "server_busy" and "retry-after: 5" in said
    for client in clients:
        client.sendall((GET.format(path="/") + "Connection: close\r\n\r\n").encode())
        assert "200 OK" in rest(client)
        client.close()


def ask_and_say_no_more(serving: Serving, version: str = "1.1") -> socket.socket:
    client = serving.connect()
    client.sendall(f"POST / HTTP/{version}\r\nHost: here\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    client.shutdown(socket.SHUT_WR)
    return client


def test_who_closes_its_own_half_alone_is_answered() -> None:
    thinker = Thinker(0.5)
    with started(thinker) as serving, closing(ask_and_say_no_more(serving)) as client:
        *interim, head, body = rest(client).split("\r\n\r\n")
    assert interim and set(interim) == {"HTTP/1.1 100 Continue"}
    assert head.startswith("HTTP/1.1 200 OK") and body == "here"
    assert not thinker.left.is_set()


@pytest.mark.parametrize("at_once", [True, False])
def test_who_closes_both_halves_has_left(at_once: bool) -> None:
    thinker = Thinker(60)
    with started(thinker) as serving:
        with closing(ask_and_say_no_more(serving)) as client:
            if not at_once:
                assert client.recv(12) == b"HTTP/1.1 100"
        assert thinker.left.wait(10)


def test_an_older_client_that_says_no_more_has_left() -> None:
    thinker = Thinker(60)
    with started(thinker) as serving, closing(ask_and_say_no_more(serving, "1.0")) as client:
        assert rest(client) == ""
        assert thinker.left.wait(10)
