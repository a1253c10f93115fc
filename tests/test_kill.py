"""kill -9 at random moments of a chat: no committed turn is lost, and the stored state is that of the transcript.

DMEM_TEST_KILLS says how often (default 10); the moments are drawn from a fixed seed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_support import Chats, environment

from deltamem_cli.session.replay import replay
from deltamem_cli.store import conversations, states, turns
from deltamem_cli.store.database import Store

KILLS = int(os.environ.get("DMEM_TEST_KILLS", "10"))

# Chats until it is killed; says the number of a turn when it is committed.
SCRIPT = """
import sys
from contextlib import ExitStack
from pathlib import Path
from deltamem_cli.session import opening
from deltamem_cli.store.database import Store
database, model, adapter, profile = sys.argv[1:]
request = opening.Request(profile=profile, model=Path(model), adapter=Path(adapter), threads=1, ctx_size=512,
                          options={"max_tokens": "6"})
with ExitStack() as stack:
    session, _ = opening.open_chat(stack, stack.enter_context(Store.open(database)), request)
    print("ready", flush=True)
    number = session.n_turns
    while True:
        number += 1
        kind = number % 5
        if kind == 1:
            session.remember(f"Fact {number}: the walrus lives at sea.")
        elif kind == 2:
            "".join(session.regenerate()) if session.n_turns and session._asked else "".join(session.ask("Again?"))
        elif kind == 3:
            session.ask("Stopped?").close()
            reply = session.ask("Stopped after a piece?")
            next(reply, None)
            reply.close()
        else:
            "".join(session.ask(f"Message {number}, what is the walrus?"))
        print(session.n_turns, flush=True)
"""


@pytest.mark.parametrize("granularity", ["token", "sentence_mean"])
def test_killed_at_any_moment_no_turn_is_lost_and_state_and_transcript_agree(
    tmp_path: Path, tiny_model: Any, tiny_adapter: Any, monkeypatch: pytest.MonkeyPatch, granularity: str
) -> None:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    model = tiny_model("qwen3")
    adapter = tiny_adapter(model, write_granularity=granularity)
    database = tmp_path / "memory.db"
    moments = random.Random(20)
    kills = KILLS // 2 if granularity == "token" else KILLS - KILLS // 2
    profiles: dict[str, int] = {}
    for kill in range(kills):
        # some begin in what the last one left, some anew
        profile = f"p{kill // 3}"
        said = _chat_and_kill(database, model, adapter, profile, moments.uniform(0, 0.4), tmp_path / "home")
        profiles[profile] = said
        with Store.open(database) as store:
            assert store.check() == []
            mine = [talk for talk in conversations.all_of(store) if talk.profile == profile]
            # after the last turn that it told of, one more may have been committed
            assert said <= (mine[0].n_turns if mine else 0) <= said + 2
    chats = Chats(database, {"model": model, "adapter": adapter})
    checked = 0
    for profile in profiles:
        with chats.open(profile=profile) as (session, loaded):
            every = turns.all_of(session.store, session.conversation.id)
            assert [turn.number for turn in every] == list(range(1, len(every) + 1))
            if not every:
                continue
            again = replay(
                session.store, session.conversation.id, session.engine, model=loaded.model, adapter=loaded.adapter
            )
            for turn in every:
                stored = states.after(session.store, session.conversation.id, turn.number)
                assert stored is not None and stored.turn == turn.number
                difference = np.linalg.norm(again[turn.number].snapshot.state - stored.state)
                assert difference <= 0.01 * np.linalg.norm(stored.state)
                checked += 1
    assert checked > kills / 2


def _chat_and_kill(database: Path, model: Path, adapter: Path, profile: str, after: float, home: Path) -> int:
    """Number of the last turn that the chat told of before it was killed, `after` seconds after it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(database), str(model), str(adapter), profile],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
    )
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline()
    assert first == "ready\n", process.stderr.read()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    told = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    if told:
        return int(told[-1])
    with Store.open(database) as store:
        mine = [talk for talk in conversations.all_of(store) if talk.profile == profile]
        return max(0, (mine[0].n_turns if mine else 0) - 2)
