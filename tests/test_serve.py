"""`dmem serve` as a process: who may ask, what is too much, how it ends, and the commands that use it."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from chat_support import as_if_tried, dmem, environment
from server_support import Server

from deltamem_cli.server.same_user.meeting import ASK, configured, connect
from deltamem_cli.store import conversations, states, turns

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and Unix sockets")

CHAT = "/v1/chat/completions"


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")


@pytest.fixture(scope="module")
def options(folder: Path, tiny_model: Any, tiny_adapter: Any) -> list[object]:
    model = tiny_model("qwen3")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DMEM_HOME", str(folder))
        as_if_tried(model)
    return ["-m", model, "--adapter", tiny_adapter(model), "--ctx-size", 256]


@pytest.fixture(scope="module")
def server(folder: Path, options: list[object]) -> Iterator[Server]:
    keys = folder / "keys"
    keys.write_text("# of the house\nmine\nbound=work\n")
    running = Server(folder, *options, "--api-key-file", keys, "--allow-origin", "http://app.example")
    running.start()
    yield running
    running.stop()


MINE = {"Authorization": "Bearer mine"}
BOUND = {"Authorization": "Bearer bound"}


def test_without_a_key_nothing_is_answered(server: Server) -> None:
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "mine"}, {"x-api-key": ""}):
        error = server.ask("/v1/models", headers=headers, code=401)["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert server.ask("/v1/models", headers=MINE)["data"]
    assert server.ask("/v1/models", headers={"X-Api-Key": "mine"})["data"]


def test_another_host_name_is_refused_whatever_leads_here(server: Server) -> None:
    for host in ("evil.example", "localhost", "localhost:1", "127.0.0.1.evil.example"):
        assert server.ask("/v1/models", headers={**MINE, "Host": host}, code=421)["error"]["code"] == "wrong_host"
    port = server.url.rpartition(":")[2]
    assert server.ask("/v1/models", headers={**MINE, "Host": f"localhost:{port}"})["data"]


def test_pages_of_other_origins_are_refused_and_allowed_ones_are_told(server: Server) -> None:
    for origin in ("http://evil.example", "null", "http://app.example.evil.example"):
        refused = server.ask(CHAT, message("Hi"), {**MINE, "Origin": origin}, code=403)
        assert refused["error"]["code"] == "wrong_origin"
    assert server.ask("/v1/models", headers={**MINE, "Origin": server.url})["data"]
    two = f"GET /v1/models HTTP/1.1\r\nHost: {host(server)}\r\nOrigin: {server.url}\r\nOrigin: http://evil.example\r\n"
    assert " 403 " in raw(server, f"{two}Connection: close\r\n\r\n").splitlines()[0]
    asked = "authorization, content-type, x-stainless-os, x-dmem-profile, cookie"
    said = raw(
        server,
        f"OPTIONS {CHAT} HTTP/1.1\r\nHost: {host(server)}\r\nOrigin: http://app.example\r\n"
        f"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {asked}\r\nConnection: close\r\n\r\n",
    )
    assert " 204 " in said.splitlines()[0]
    assert "access-control-allow-origin: http://app.example" in said.lower()
    assert "x-stainless-os" in said and "cookie" not in said.lower()
    assert "*" not in said


def test_a_key_bound_to_a_profile_reaches_no_other(server: Server) -> None:
    told = server.ask(CHAT, message("My dog is Rex."), BOUND)["metadata"]["conversation"]
    assert server.profile(told) == "work"
    for body in ({"metadata": {"profile": "default"}}, {"model": f"{server.model}@default"}):
        assert server.ask(CHAT, message("Hi", **body), BOUND, code=403)["error"]["code"] == "profile_not_allowed"
    mine = server.ask(CHAT, message("Hi", user="me"), MINE)["metadata"]["conversation"]
    other = server.ask(CHAT, message("Hi", conversation=mine), BOUND)["metadata"]["conversation"]
    assert other != mine
    assert server.profile(other) == "work"
    assert [each["id"] for each in server.ask("/v1/models", headers=BOUND)["data"]][1:] == [f"{server.model}@work"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b'{"messages": "\xff\xfe"}', 400),
        (b"[" * 100_000, 400),
        (b'{"messages": []}', 400),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": "required", "tools": [{"type": "function", '
            b'"function": {"name": "f", "parameters": ' + b'{"items": ' * 600 + b"{}" + b"}" * 600 + b"}}]}",
            400,
        ),
        (b'{"messages": [{"role": "user", "content": " "}]}', 400),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', 400),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": -1}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": -Infinity}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "metadata": {"a": NaN}}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 2}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "gpt"}', 404),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "' + b"x" * 10_000 + b'"}', 404),
        (b'{"messages": [{"role": "user", "content": "x"}], "metadata": {"profile": "no/such"}}', 400),
        (b'{"messages": [{"role": "user", "content": "' + b"x" * 10_000_000 + b'"}]}', 413),
        (b'{"messages": [{"role": "user", "content": "' + b"x" * 1_000_001 + b'"}]}', 413),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence_and_the_rest_goes_on(
    server: Server, data: bytes, status: int
) -> None:
    said = raw(
        server,
        f"POST {CHAT} HTTP/1.1\r\nHost: {host(server)}\r\nAuthorization: Bearer mine\r\nConnection: close\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data,
    )
    assert f" {status} " in said.splitlines()[0]
    error = json.loads(said.partition("\r\n\r\n")[2])["error"]
    assert error["message"].endswith((".", ")")) and "Traceback" not in error["message"]
    assert len(error["message"]) < 500
    assert server.ask(CHAT, message("Hi"), MINE)["choices"]


def test_a_profile_whose_name_is_spelled_in_two_ways_is_one(server: Server) -> None:
    told = [
        server.ask(CHAT, message("Hi", model=f"{server.model}@{name}", conversation="mine"), MINE)["metadata"]
        for name in ("Ren\u00e9", "Rene\u0301")
    ]
    assert told[0]["conversation"] == told[1]["conversation"]


def test_half_a_character_in_a_message_is_no_error(server: Server) -> None:
    assert server.ask(CHAT, message("half \ud83d"), {**MINE, "X-Dmem-Conversation": "half"})["choices"]


def test_half_a_character_is_no_error_where_an_answer_repeats_it(server: Server) -> None:
    body = {
        "input": "Hi",
        "max_output_tokens": 2,
        "store": False,
        "metadata": {"\ude00": "whole \U0001f600, half \ud83d"},
    }
    repeated = server.ask("/v1/responses", body, MINE)["metadata"]
    assert repeated == {"\ufffd": "whole \U0001f600, half \ufffd"}
    assert "no model \ufffd here" in server.ask("/api/generate", {"model": "\ud83d"}, MINE, code=404)["error"]


def test_a_long_message_leaves_the_window_and_is_answered(server: Server) -> None:
    assert server.ask(CHAT, message("many words " * 300), MINE)["choices"]


def test_a_thousand_connections_are_told_and_the_rest_goes_on(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    opened: list[socket.socket] = []
    try:
        for _ in range(1000):
            opened.append(socket.create_connection(address, timeout=10))
        last = opened[-1]
        last.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host(server)}\r\nAuthorization: Bearer mine\r\n\r\n".encode())
        assert b" 503 " in last.recv(100)
    finally:
        for each in opened:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until = time.monotonic() + 20
    while True:
        try:
            assert server.ask(CHAT, message("Hi"), MINE)["choices"]
            return
        except AssertionError:
            assert time.monotonic() < until
            time.sleep(0.2)


def test_connections_that_say_nothing_leave_databases_their_files_and_the_log_empty(
    options: list[object], tmp_path: Path
) -> None:
    own = Server(tmp_path, *options, "--parallel", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    opened: list[socket.socket] = []
    own.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    try:
        address = ("127.0.0.1", int(own.url.rpartition(":")[2]))
        opened += [socket.create_connection(address, timeout=10) for _ in range(500)]
        own.ask(CHAT, message("Hi", conversation="talk"))
        opened += [socket.create_connection(address, timeout=10) for _ in range(200)]
        assert b" 503 " in opened[-1].recv(100)
    finally:
        for each in opened:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        own.stop()
    assert len(own.log.read_text().splitlines()) == 1


def test_ask_uses_the_model_that_the_server_has_loaded(folder: Path, options: list[object], server: Server) -> None:
    model = [*options[:4]]
    environ = environment(folder)

    def ask(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        command = dmem("ask", *model, "-o", "max_tokens", "5", *arguments)
        return subprocess.run(
            command, env={**environ, **env}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )

    warm = ask("--ctx-size", "256", "--threads", "1", "--json", "-p", "warm", "My cat is Tom.")
    assert warm.returncode == 0, warm.stderr
    said = json.loads(warm.stdout)
    assert said["seconds"]["load"] == 0
    assert (said["profile"], said["turn"]) == ("warm", 1)
    with server.store() as store:
        (told,) = turns.all_of(store, said["conversation"])
        assert told.messages[0].text == "My cat is Tom."
    same = ("--ctx-size", "256", "--threads", "1", "--json", "-p", "warm", "Who is Tom?")
    for turn, cold in enumerate([ask("--ctx-size", "128", *same[2:]), ask(*same, DMEM_OPTIONS_SEED="7")], 2):
        assert cold.returncode == 0, cold.stderr
        said = json.loads(cold.stdout)
        assert said["seconds"]["load"] > 0, "what the server does not know of is not asked of it"
        assert said["turn"] == turn


@pytest.fixture
def own(tmp_path: Path, folder: Path, options: list[object]) -> Iterator[Server]:
    """A server of the test's own, without keys, over a database of its own."""
    running = Server(folder, *options, "--database", tmp_path / "own.db")
    running.database = tmp_path / "own.db"  # type: ignore[attr-defined]
    yield running
    running.stop(signal.SIGKILL)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "Hi", "request": None},
        {"text": None, "request": {}},
        {"text": "Hi", "request": {"profile": 7}},
        {"text": "Hi", "request": {"model": []}},
        {"text": "Hi", "request": {"options": "hot"}},
        {"text": "Hi", "request": {"of_next_year": True}},
        {"text": "Hi", "request": {"model": "x" * 5000}},
    ],
)
def test_a_command_of_another_version_is_sent_to_load_its_own_model(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    connection = connect(folder / "memory.db")
    assert connection
    with connection:
        data = json.dumps({"configured": configured(), **body}).encode()
        connection.sendall(f"POST {ASK} HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        said = connection.makefile("rb").read()
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "other"


def test_sigterm_ends_soon_with_what_was_said_committed(own: Server) -> None:
    own.start()
    body = json.dumps(message("A long story.", stream=True, user="teller", max_tokens=200)).encode()
    process = own._process
    assert process
    with urllib.request.urlopen(urllib.request.Request(own.url + CHAT, body), timeout=60) as answer:
        assert any(b'"content": "' in line and b'"content": ""' not in line for line in answer)  # up to the first
        process.terminate()
        assert b"[DONE]" in answer.read()
    assert process.wait(timeout=10) == 0
    own._process = None
    with stored(own) as store:
        (talk,) = conversations.all_of(store)
        (turn,) = turns.all_of(store, talk.id)
        assert states.latest(store, talk.id)
        assert turn.interrupted or turn.reply_tokens == 200


def test_a_turn_that_was_taken_back_is_wiped_when_nobody_asks(own: Server) -> None:
    own.start()
    own.ask(CHAT, message("The walrus is secret.", prompt_cache_key="chat"))
    other = [("user", "Something else."), ("assistant", "Yes."), ("user", "And now?")]
    edited = message("", prompt_cache_key="chat") | {"messages": [{"role": r, "content": text} for r, text in other]}
    own.ask(CHAT, edited)
    until = time.monotonic() + 60
    files = [own.database, own.database.with_name(own.database.name + "-wal")]  # type: ignore[attr-defined]
    while any(b"walrus" in file.read_bytes() for file in files if file.exists()):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_kill_under_load_loses_no_acknowledged_turn(own: Server, pytestconfig: pytest.Config) -> None:
    """The moments are drawn from a fixed seed."""
    moments = random.Random(11)
    acknowledged: dict[str, int] = {}

    def talk(name: str) -> None:
        number = 0
        while True:
            number += 1
            try:
                said = own.ask(CHAT, message(f"Message {number} of {name}.", conversation=name))["metadata"]
            except (OSError, AssertionError, ValueError, HTTPException):
                return  # killed
            acknowledged[said["conversation"]] = int(said["turn"])
            answered.add(name)

    for _ in range(int(pytestconfig.getoption("--kills"))):
        answered: set[str] = set()
        own.start()
        talking = [threading.Thread(target=talk, args=(name,)) for name in ("one", "two", "three")]
        for each in talking:
            each.start()
        until = time.monotonic() + 60
        while len(answered) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.4))
        own.stop(signal.SIGKILL)
        for each in talking:
            each.join(30)
        with stored(own) as store:
            assert store.check() == []
            for conversation, turn in acknowledged.items():
                assert turns.last_number(store, conversation) >= turn
                found = states.latest(store, conversation)
                assert found and found.turn == turns.last_number(store, conversation)
    assert len(acknowledged) == 3


def test_idle_ends_it_by_itself(folder: Path, options: list[object], tmp_path: Path) -> None:
    running = Server(folder, *options, "--database", tmp_path / "own.db", "--idle", "1s")
    running.start()
    assert running._process
    assert running._process.wait(timeout=20) == 0
    running.stop()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "--api-key"),
        (["--idle", "soon"], 2, "15m"),
        (["--allow-origin", "app.example"], 2, "origin"),
        (["--host", "192.0.2.1", "--api-key", "k"], 1, "--port or --host"),
        (["--api-key-file", "missing"], 1, "can't be read"),
    ],
)
def test_what_can_not_be_served_is_said_before_the_model_is_loaded(
    arguments: list[str], code: int, said: str, dmem: Any
) -> None:
    assert said in dmem("serve", *arguments, code=code)


def test_a_port_in_use_is_told(dmem: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in dmem("serve", "--port", str(taken.getsockname()[1]), code=1)


def stored(server: Any) -> Any:
    from deltamem_cli.store.database import Store

    return Store.open(server.database)


def host(server: Server) -> str:
    return server.url.removeprefix("http://")


def raw(server: Server, request: str | bytes) -> str:
    """What comes back, head and body, until the server closes the connection."""
    data = request.encode() if isinstance(request, str) else request
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as connection:
        with suppress(OSError):  # it has answered before it read all
            connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received.decode("utf-8", "replace")
