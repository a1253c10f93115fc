"""`dmem memory probe`, `remember` and `forget`: what they do with a model, and that they load none without need."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from chat_support import Chats, Terminal, dmem, environment, files, say

from deltamem_cli import cli
from deltamem_cli.errors import UsageError
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.store import conversations, locks, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.terminal.turn_numbers import parse_turns, ranges

Run = Callable[..., str]


@pytest.fixture
def run(chats: Chats, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dmem memory …`; with_model adds model and adapter. Returns stdout, or with a `code` stderr."""

    def call(*arguments: str, code: int = 0, with_model: bool = True) -> str:
        model = ["-m", str(chats.settings["model"]), "--adapter", str(chats.settings["adapter"]), "--threads", "1"]
        found = cli.main(["memory", *arguments, *(model if with_model else [])])
        shown = capsys.readouterr()
        assert found == code, shown.err
        return shown.err if code else shown.out

    return call


def test_probe_sees_no_message_and_stores_nothing(chats: Chats, run: Run) -> None:
    with chats.open() as (session, _):
        say(session, "My name is Ana.")
    before = files(chats.database.parent)
    found = json.loads(run("probe", "Who am I?", "--json", "-o", "max_tokens", "5", "-o", "seed", "1"))
    assert found["question"] == "Who am I?" and found["turns"] == 1
    with chats.open(read_only=True, replay_tokens=0, options={"max_tokens": "5", "seed": "1"}) as (session, _):
        assert found["reply"] == say(session, "Who am I?")
    after = files(chats.database.parent)
    assert {k: v for k, v in after.items() if "cache" not in k} == {k: v for k, v in before.items() if "cache" not in k}


def test_probe_of_an_empty_memory_says_so_without_a_model(chats: Chats, run: Run) -> None:
    with chats.open(memory=False) as (session, _):
        say(session, "One.")
    assert "empty" in run("probe", "Who?", code=1, with_model=False)


def test_remember_writes_a_turn_that_nobody_answered(chats: Chats, run: Run, tmp_path: Path) -> None:
    found = json.loads(run("remember", "My cat is called Tom.", "--json"))
    assert found["turn"] == 1 and found["tokens_written"] > 5 and found["change"] > 0
    notes = tmp_path / "notes.txt"
    notes.write_text("The walrus lives at sea. " * 200)
    assert json.loads(run("remember", "-f", str(notes), "--ctx-size", "256", "--json"))["turn"] == 2
    with Store.open(chats.database) as store:
        talk = conversations.all_of(store)[0]
        every = turns.all_of(store, talk.id)
        assert [(turn.kind, len(turn.messages), turn.has_state) for turn in every] == [("remember", 1, True)] * 2
        assert every[0].messages[0].text == "My cat is called Tom."


def test_remember_reads_what_is_piped_in(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.TextIOWrapper(io.BytesIO("Über den Wolken.\n".encode()))
    monkeypatch.setattr(sys, "stdin", piped)
    assert json.loads(run("remember", "--json"))["turn"] == 1
    assert "nothing to remember" in run("remember", " ", code=2)
    assert "can't be used together" in run("remember", "a", "-f", "b", code=2)
    assert "can't be read" in run("remember", "-f", "nowhere.txt", code=1)


def test_ctrl_c_while_remembering_leaves_everything_as_before(chats: Chats, tmp_path: Path) -> None:
    with chats.open() as (session, _):
        say(session, "Before.")
        before = session.seat.state().tobytes()
        cid = session.conversation.id
    notes = tmp_path / "notes.txt"
    notes.write_text("The walrus lives at sea. " * 200_000)
    model = ["-m", chats.settings["model"], "--adapter", chats.settings["adapter"], "--threads", "1"]
    argv = dmem("memory", "remember", "-f", notes, *model)
    with Terminal(argv, environment(chats.database.parent)) as reading:  # minutes of it
        reading.expect("remembering")
        reading.send("\x03")
        reading.expect("Stopped; the memory is unchanged")
        assert reading.wait() == 130
    with Store.open(chats.database) as store:
        assert turns.last_number(store, cid) == 1
        latest = states.latest(store, cid)
        assert latest is not None and latest.state.tobytes() == before


def test_forget_replays_the_later_turns_and_deletes_the_texts(chats: Chats, run: Run) -> None:
    with chats.open() as (session, _):
        for text in ("One.", "The word is xylophone.", "Three.", "Four."):
            say(session, text)
        cid = session.conversation.id
    history = chats.database.parent / "history"
    history.write_text("\n# now\n+One.\n\n# now\n+The word is xylophone.\n")
    planned = json.loads(run("forget", "2-3", "--dry-run", "--json"))
    assert planned["forgotten"] == [2, 3] and planned["replayed"] == [4] and planned["dry_run"]
    with Store.open(chats.database) as store:
        assert turns.last_number(store, cid) == 4
    done = json.loads(run("forget", "2-3", "-y", "--json"))
    assert {**done, "dry_run": True} == planned and done["norm_before"] != done["norm_after"]
    with Store.open(chats.database) as store:
        assert [turn.number for turn in turns.all_of(store, cid)] == [1, 4]
    assert not any(b"xylophone" in data for data in files(chats.database.parent).values())
    assert "+One." in history.read_text()


def test_the_last_turns_are_forgotten_without_a_model(chats: Chats, run: Run) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
        one = session.seat.state().tobytes()
        say(session, "Two.")
        cid = session.conversation.id
    run("forget", "2", "-y", "--model", "nowhere.gguf", with_model=False)
    with Store.open(chats.database) as store:
        latest = states.latest(store, cid)
        assert latest is not None and latest.state.tobytes() == one


def test_forget_asks_and_refuses_what_is_not_there(chats: Chats, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
    assert "no turn 7" in run("forget", "7", "-y", code=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "--yes" in run("forget", "1", code=2)
    with Store.open(chats.database) as store:
        assert conversations.all_of(store)[0].n_turns == 1


def test_turns_are_named_by_numbers_and_ranges() -> None:
    assert parse_turns(["3", "5-7", "6,9"]) == [3, 5, 6, 7, 9]
    assert ranges([1, 3, 4, 5, 9]) == "1, 3-5, 9"
    for wrong in (["0"], ["x"], ["5-3"], ["-1"], [","], ["1-999999999"]):
        with pytest.raises(UsageError):
            parse_turns(wrong)


def test_texts_that_are_remembered_at_once_wait_for_each_other(chats: Chats) -> None:
    model = ["-m", chats.settings["model"], "--adapter", chats.settings["adapter"], "--threads", "1"]
    command = dmem("memory", "remember", "A text.", *model)
    with Store.open(chats.database) as store:
        locks.hold(store, "profile-default", brief=True)
        one = subprocess.Popen(command, env=environment(chats.database.parent), stderr=subprocess.PIPE, text=True)
        assert one.stderr is not None
        assert f"Waiting for another question to the same memory (process {os.getpid()}" in one.stderr.readline()
    assert "remembered as turn 1" in one.communicate(timeout=120)[1] and one.returncode == 0


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_probe_that_is_interrupted_exits_with_130(
    chats: Chats, run: Run, monkeypatch: pytest.MonkeyPatch, json_flag: list[str]
) -> None:
    with chats.open() as (session, _):
        say(session, "My name is Ana.")

    def interrupted(session: ChatSession, text: str, **how: Any) -> Generator[str, None, None]:
        for piece in ask(session, text, **how):
            yield piece
            session.stop()

    ask = ChatSession.ask
    monkeypatch.setattr(ChatSession, "ask", interrupted)
    run("probe", "Who am I?", *json_flag, code=130)
