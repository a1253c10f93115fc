"""Layers on another machine, which is here a process on loopback: the same numbers, and sentences where it can't be."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_support import Dmem
from conftest import MakeAdapter, MakeModel
from raw_context import RawContext, rows
from typer.testing import CliRunner

from deltamem_cli.bindings import COMPUTE, NativeError, native
from deltamem_cli.commands import rpc_server
from deltamem_cli.engine import EngineError, Model, remote
from deltamem_cli.errors import DeltamemError
from deltamem_cli.store import conversations, profiles, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.location import default_path

LOGITS, STATE = 1e-4, 1e-5
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 288, 40)]
SPANS = [-1] * 3 + [5] * 9 + [2] * 8 + [-1] + [5] * 4 + [7] * 14 + [9]


@pytest.fixture(scope="module", autouse=True)
def rpc() -> None:
    assert native().ggml.ggml_backend_reg_by_name(b"RPC"), "every build has it, unless it was left out (GGML_RPC)"


class Server:
    """A `dmem rpc-server` on a free port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "deltamem_cli", "rpc-server", "--port", str(self.port), "--threads", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = Server()
    yield running.address
    running.kill()


def run(
    path: Path, adapter: Path | None, spans: bool, compute: str = "auto", **where: Any
) -> tuple[Any, Any, Any, Any]:
    """Logits, state, way to compute and splits of a prefill and some single tokens."""
    with Model(path, **where) as model, RawContext(model, adapter, compute=compute) as context:
        logits = [context.decode(rows(TOKENS), SPANS if spans else None)]
        logits += [context.decode(rows([i], start=len(TOKENS) + i)) for i in range(3)]
        state = context.state() if adapter else None
        return np.concatenate(logits), state, COMPUTE[context.info.compute], context.call("n_splits")


@pytest.mark.parametrize("gpu_layers", [-1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"delta_heads": ("q", "k", "v", "o")},
        {"write_granularity": "sentence_mean", "state_heads": 4},
        {"rankwise_gates": False, "couple_lambda": False, "rank": 16},
    ],
)
def test_another_machine_computes_what_this_one_does_without_splitting_the_graph_more(
    settings: dict[str, Any], gpu_layers: int, server: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    path = tiny_model("qwen3", n_layer=4)
    adapter, spans = tiny_adapter(path, **settings), "write_granularity" in settings
    logits, state, _, _ = run(path, adapter, spans)
    plain = run(path, None, False, gpu_layers=gpu_layers, rpc=server)
    remote_logits, remote_state, compute, splits = run(path, adapter, spans, gpu_layers=gpu_layers, rpc=server)
    np.testing.assert_allclose(remote_logits, logits, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(remote_state, state, rtol=0, atol=STATE)
    assert compute == "graph"
    assert splits == plain[3]


def test_two_machines_share_the_layers(server: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> None:
    path = tiny_model("qwen3", n_layer=4)
    adapter, other = tiny_adapter(path), Server()
    try:
        logits, state, _, _ = run(path, adapter, False)
        both = {"gpu_layers": -1, "rpc": f"{server},{other.address}"}
        found = run(path, adapter, False, **both)
        np.testing.assert_allclose(found[0], logits, rtol=0, atol=LOGITS)
        np.testing.assert_allclose(found[1], state, rtol=0, atol=STATE)
        assert found[3] == run(path, None, False, **both)[3] == 3  # one part on each machine
        assert run(path, adapter, False, **both, tensor_split="1,0")[3] == 2
    finally:
        other.kill()


def test_a_custom_operator_stays_on_this_machine(server: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> None:
    """The other one would call a function that it does not have."""
    path = tiny_model("qwen3", n_layer=4)
    adapter = tiny_adapter(path)
    logits, state, _, _ = run(path, adapter, False)
    found = run(path, adapter, False, "ops", gpu_layers=-1, rpc=server)
    np.testing.assert_allclose(found[0], logits, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(found[1], state, rtol=0, atol=STATE)
    with pytest.raises(NativeError, match="fused kernels run on the local CPU alone, but this model also uses RPC0"):
        run(path, adapter, False, "fused", gpu_layers=-1, rpc=server)


@pytest.mark.parametrize("servers", ["here", ":5", "10.0.0.2:0", "a:b", "a:1,b"])
def test_an_address_that_is_none_is_refused(servers: str, tiny_model: MakeModel) -> None:
    with pytest.raises(EngineError, match="write it as HOST:PORT, such as 10.0.0.2:50052"):
        Model(tiny_model("qwen3"), rpc=servers)


@pytest.mark.parametrize("split", ["a", "1,", "0,0", "-1", "nan", "inf,1", ",".join("1" * 999)])
def test_a_split_without_sense_is_refused(split: str, tiny_model: MakeModel) -> None:
    with pytest.raises(EngineError, match="a number for each device"):
        Model(tiny_model("qwen3"), tensor_split=split)


def test_a_server_that_is_not_there_is_named(tiny_model: MakeModel) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match=f"The RPC server {address} can't be reached"):
        Model(tiny_model("qwen3"), rpc=address)


def test_the_version_that_is_expected_is_the_librarys() -> None:
    own = Server()  # one that nobody uses
    try:
        with socket.create_connection(("127.0.0.1", own.port), 30) as connection:
            assert remote.greet(connection) == remote.PROTOCOL
    finally:
        own.kill()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (struct.pack("<QBBBB", 28, remote.PROTOCOL[0] + 1, 0, 0, 0) + bytes(24), "install the same version"),
        (struct.pack("<QBBBB", 28, remote.PROTOCOL[0], remote.PROTOCOL[1] + 1, 0, 0) + bytes(24), "the same version"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(99), "is no RPC server"),
        (b"", "is no RPC server"),
        (None, "no answer"),  # it is busy with somebody else
    ],
)
def test_a_server_that_answers_otherwise_is_refused(
    answer: bytes | None, words: str, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SECONDS", 1.0)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def respond() -> None:
            if answer is not None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(33, socket.MSG_WAITALL)
                    connection.sendall(answer)

        thread = threading.Thread(target=respond)
        thread.start()
        with pytest.raises(EngineError, match=words):
            Model(tiny_model("qwen3"), rpc=f"127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


def test_an_address_in_use_is_not_served() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DeltamemError, match="can't be served"):
            remote.serve(native(), "127.0.0.1", taken.getsockname()[1], 1)


def test_an_address_that_others_may_reach_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "serve", lambda *_: None)
    monkeypatch.setattr(rpc_server.signal, "signal", lambda *_: None)
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("10.0.0.2", True)):
        said = CliRunner().invoke(rpc_server.app, ["--host", host]).output
        assert ("may be open to others" in said) is warned


def test_a_server_that_vanishes_in_a_turn_ends_it_with_one_sentence(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    path = tiny_model("qwen3", n_ctx=4096)
    script = """
import sys
from pathlib import Path
from deltamem_cli.engine import Engine, EngineOptions, Model, Seat

with Model(Path(sys.argv[1]), gpu_layers=-1, rpc=sys.argv[3]) as model:
    with Engine(model, Path(sys.argv[2]), EngineOptions(ctx_size=4096, threads=1)) as engine:
        seat = Seat(engine)
        for i in range(4000):
            seat.feed([i % 288])
            print(i, flush=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = Server()
    command = [sys.executable, "-c", script, path, tiny_adapter(path), running.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as turn:
        assert turn.stdout and turn.stderr
        for _ in range(5):
            assert turn.stdout.readline()
        running.kill()
        said = turn.stderr.read()
    assert turn.returncode == 1
    assert said.count("\n") == 1 and "RPC server" in said and "what was complete is kept" in said, said


def test_killed_at_any_moment_of_a_question_no_turn_is_lost_and_none_is_half_there(
    tiny: Dmem, pytestconfig: pytest.Config
) -> None:
    """The moments are drawn from a fixed seed."""
    moments, kept, failed = random.Random(5), 0, 0
    for kill in range(int(pytestconfig.getoption("--kills")) // 4):
        running = Server()
        command = tiny.chat_arguments(
            "-p", "work", "-ngl", "-1", "--rpc", running.address, "A story, please.", tokens=300
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=tiny.env) as turn:
            # the first one before anything is asked, so that one fails however fast the machine is
            timer = threading.Timer(moments.uniform(0.2, 2.0) if kill else 0.0, running.kill)
            timer.start()
            _, said = turn.communicate()
            timer.cancel()
            timer.join()
        running.kill()
        kept, failed = kept + (turn.returncode == 0), failed + (turn.returncode == 1)
        assert turn.returncode in (0, 1) and (turn.returncode == 0 or ("RPC" in said and "Traceback" not in said)), said
        with Store.open(default_path()) as store:
            assert store.check() == []
            if not kept:
                continue
            conversation = conversations.latest(store, profiles.get(store, "work"))
            assert conversation and turns.last_number(store, conversation.id) >= kept
            found = states.latest(store, conversation.id)
            assert found and found.turn == turns.last_number(store, conversation.id)
    assert failed
