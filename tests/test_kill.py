"""kill -9 at random moments of a chat: no committed turn is lost, and the stored state is that of the transcript.

--kills asks for more of them; the moments are drawn from a fixed seed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_support import Chats, environment, relative

from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import Loaded
from deltamem_cli.session.replay import replay
from deltamem_cli.store import states, turns
from deltamem_cli.store.records import Turn

# Reads lines "PROFILE STEPS SECONDS FILE". For each a child, forked so that nothing has to be imported again, chats until
# it is killed so many seconds after so many steps. What it did goes to FILE: one line per step, written when it is over.
SCRIPT = """
import json, os, signal, sys, time
from contextlib import ExitStack
from deltamem_cli.session import opening
from deltamem_cli.store.database import Store

def chat(profile, done, ready):
    request = opening.Request(profile=profile, model=sys.argv[2], adapter=sys.argv[3], threads=1, ctx_size=512,
                              options={"max_tokens": "6"})
    with ExitStack() as stack:
        session, _ = opening.open_chat(stack, stack.enter_context(Store.open(sys.argv[1])), request)
        os.write(ready, b"!")
        step = 0
        while True:
            step += 1
            said = [f"Message {step}, what is the walrus?", None]
            if step % 6 == 1:
                session.remember(said[0])
            elif step % 6 == 3:
                reply = session.ask(said[0])
                said[1] = next(reply, None) or ""
                reply.close()
            elif step % 6 == 4:
                said = [f"Message {step - 1}, what is the walrus?", "".join(session.regenerate())]
            elif step % 6 == 5:
                said = session.undo()
            else:
                said[1] = "".join(session.ask(said[0]))
            os.write(done, json.dumps(said).encode() + b"\\n")

for line in sys.stdin:
    profile, steps, seconds, file = line.split()
    done = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    ended, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            chat(profile, done, ready)
        except BaseException as error:
            sys.stderr.write(repr(error))
        os._exit(1)
    os.close(ready)
    os.read(ended, 1)
    late = time.monotonic() + 60
    while open(file).read().count("\\n") < int(steps) and time.monotonic() < late:
        time.sleep(0.001)
    time.sleep(float(seconds))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os.close(ended)
    os.close(done)
"""


Transcript = list[list[str | None]]  # question and reply of every turn


@pytest.mark.parametrize("granularity", ["token", "sentence_mean"])
def test_killed_at_any_moment_no_turn_is_lost_and_state_and_transcript_agree(
    tmp_path: Path, tiny_model: Any, tiny_adapter: Any, pytestconfig: pytest.Config, granularity: str
) -> None:
    model = tiny_model("qwen3")
    adapter = tiny_adapter(model, write_granularity=granularity)
    chats = Chats(tmp_path / "memory.db", {"model": model, "adapter": adapter, "replay_tokens": 0})
    moments = random.Random(granularity)
    kills = int(pytestconfig.getoption("--kills"))
    seen: Counter[str] = Counter()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, chats.database, model, adapter],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path / "home"),
    ) as server:
        assert server.stdin and server.stdout
        transcript: Transcript = []
        for kill in range(kills):
            if kill % 3 == 0:  # some begin anew, some in what the last one left
                transcript = []
            # a step takes a few hundredths of a second where the machine has nothing else to do
            moment = f"{moments.randrange(8)} {moments.uniform(0, 0.08)}"
            server.stdin.write(f"p{kill // 3} {moment} {tmp_path / 'done'}\n")
            server.stdin.flush()
            assert server.stdout.readline() == "-9\n"
            told = (tmp_path / "done").read_text().splitlines(keepends=True)
            done = [json.loads(line) for line in told if line.endswith("\n")]
            with chats.open(profile=f"p{kill // 3}") as (session, loaded):
                assert session.store.check() == []
                found = _transcript(turns.all_of(session.store, session.conversation.id))
                seen["committed and not told"] += not _is_what_was_done(found, transcript, done)
                seen["turns"] += _assert_states_are_those_of_the_transcript(session, loaded)
            seen["without a turn"] += not found
            transcript = found
        server.stdin.close()
    assert seen["turns"] > kills and seen["without a turn"] < kills / 4


def _transcript(every: Sequence[Turn]) -> Transcript:
    assert [turn.number for turn in every] == list(range(1, len(every) + 1))
    return [[message.text for message in turn.messages] + [None] * (2 - len(turn.messages)) for turn in every]


def _is_what_was_done(found: Transcript, before: Transcript, done: list[list[str | None]]) -> bool:
    """Fails when something of it is missing. False: one step more was committed, which the kill kept from being told."""
    expected = before
    for step, said in enumerate(done, 1):
        expected = expected[: len(expected) - (step % 6 in (4, 5))] + ([said] if step % 6 != 5 else [])
    if found == expected:
        return True
    step = len(done) + 1
    kept = expected[: len(expected) - (step % 6 in (4, 5))]
    assert found[: len(kept)] == kept
    question = f"Message {step - (step % 6 == 4)}, what is the walrus?"
    assert [said[0] for said in found[len(kept) :]] == ([] if step % 6 == 5 else [question])
    return False


def _assert_states_are_those_of_the_transcript(session: ChatSession, loaded: Loaded) -> int:
    """Number of turns that were fed again. The states agree to rounding."""
    assert loaded.adapter
    again = replay(session.store, session.conversation.id, session.seat, model=loaded.model, adapter=loaded.adapter)
    for number, result in again.items():
        stored = states.after(session.store, session.conversation.id, number)
        assert stored is not None and stored.turn == number and result.snapshot
        assert relative(result.snapshot.state, stored.state) <= 1e-3
    return len(again)
