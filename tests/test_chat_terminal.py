"""`dmem chat` as people use it: the real program in a real pseudo-terminal, and as one turn of a pipe."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chat_support import PROMPT, Dmem, Terminal, environment, files, plain

from deltamem_cli.models.entries import recommended
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store


def test_with_the_starter_what_was_said_survives_a_kill_and_goes_when_told_to(starter: Dmem) -> None:
    with starter.terminal("-p", "work", tokens=16) as chat:
        chat.expect("tiny model")
        chat.expect(f"dmem model pull {recommended().name} --default")
        for text in ("My name is Xerxes.", "My cat is called Tom.", "My dog is called Rex."):
            chat.line(text)
        chat.line("/set max_tokens 1000")
        chat.line("/set temperature 1.5")
        chat.line("Tell me a long story about the sea.")
        chat.expect(r"sea\.\s+(?!>>>)\S(?s:.{20})")
        chat.kill(signal.SIGKILL)
        assert chat.wait() == -signal.SIGKILL
    found = starter.json("memory", "inspect", "-p", "work")
    assert found["turns"] == 3 and len(found["layers"]) == 30 and found["tokens_written"] > 60
    before = files(starter.home)
    with starter.terminal("-p", "work", "--temporary") as chat:
        chat.expect(r"Continuing “My name is Xerxes\.”")
        chat.line("This is said in passing.")
        chat.line("/exit")
        assert chat.wait() == 0
    assert files(starter.home) == before
    with starter.terminal("-p", "work") as chat:
        chat.expect(r"Continuing “My name is Xerxes\.”(?s:.*)3 turns, the last 3 visible")
        chat.line("/memory")
        chat.expect(r"L29 ")
        chat.line("/undo")
        chat.expect("Undid 1 turn; the memory is as it was before")
        chat.line("/forget 1")
        chat.expect(r"for good\? \[y/N\]: $")
        chat.send("y\r")
        chat.expect(r"(?s)forgot 1 turn \(1\).*replayed 1 later turn.*norm of the memory: .* before, .* after")
        chat.line("/exit")
        assert chat.wait() == 0
    assert [turn["turn"] for turn in starter.json("memory", "history", "-p", "work")["turns"]] == [2]
    assert 0 < starter.json("memory", "inspect", "-p", "work")["tokens_written"] < found["tokens_written"]
    kept = b"".join(files(starter.home).values())
    assert b"called Tom" in kept and b"Xerxes" not in kept and b"called Rex" not in kept
    starter.here("memory", "reset", "-p", "work", "--transcript", "-y")
    assert starter.json("memory", "inspect", "-p", "work")["layers"] == []
    assert b"called Tom" not in b"".join(files(starter.home).values())


def test_undo_forget_and_reset_do_what_they_say(tiny: Dmem) -> None:
    with tiny.terminal() as chat:
        chat.expect(r"A new conversation\. The memory is empty\.")
        for text in ("One.", "The word is xylophone.", "Three."):
            chat.line(text)
        chat.line("/forget 2")
        chat.expect(r"(?s)turn 2: The word is xylophone.*for good\? \[y/N\]: $")
        chat.send("y\r")
        chat.expect(r"(?s)forgot 1 turn \(2\).*norm of the memory: .* before, .* after")
        chat.line("/undo")
        chat.expect("Undid 1 turn")
        chat.line("/memory history")
        chat.expect(r"1  .*norm .*One\.")
        chat.line("/memory reset")
        chat.expect(r"\[y/N\]: $")
        chat.send("n\r")
        chat.expect("Nothing was changed")
        chat.line("/memory reset")
        chat.expect(r"\[y/N\]: $")
        chat.send("y\r")
        chat.expect("context are empty now")
        chat.line("/memory")
        chat.expect("The memory is empty")
        chat.expect(PROMPT)
        chat.send("\x04")
        chat.expect("1 turn saved")
        assert chat.wait() == 0
    assert tiny.json("memory", "inspect")["layers"] == []
    assert not any(b"xylophone" in data for data in files(tiny.home).values())


@pytest.mark.parametrize("ending", ["/exit\r", "\x04", signal.SIGHUP, signal.SIGTERM])
def test_no_byte_of_what_was_taken_back_in_a_chat_is_left_when_it_ends(
    tiny: Dmem, ending: str | signal.Signals
) -> None:
    with tiny.terminal(tokens=20) as chat:
        for text in ("This stays.", "The word is xylophone.", "This is asked twice."):
            chat.line(text)
        chat.expect(PROMPT)
        talk = tiny.json("log", "list")[0]["conversation"]
        with Store.open(tiny.home / "memory.db") as store:
            undone, replaced = (states.after(store, talk, number) for number in (2, 3))
            old_reply = turns.get(store, talk, 3).messages[1].text
        assert undone and replaced
        chat.send("/undo\r")
        chat.line("/undo")
        chat.line("This is asked twice.")
        chat.line("/set seed 2")
        chat.line("/regen")
        chat.line("/context")
        chat.expect("turn 2")
        chat.expect(PROMPT)
        if isinstance(ending, str):
            chat.send(ending)
        else:
            chat.kill(ending)
        assert chat.wait() == (0 if isinstance(ending, str) else 128 + ending)
    kept = b"".join(files(tiny.home).values())
    assert b"This stays." in kept and b"This is asked twice." in kept
    for gone in (b"xylophone", undone.state.tobytes()[:64], replaced.state.tobytes()[:64], old_reply.encode()):
        assert gone not in kept


def test_what_was_typed_goes_with_the_turn_that_it_led_to_also_after_a_kill(tiny: Dmem, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("A file.")
    with tiny.terminal() as chat:
        for text in (
            "/system You know zanzibar.",
            "This stays.",
            "/remembr the lemur",
            f"/read {tmp_path}/notes.txt What about the quokka?",
            "/regen",
            '"""One line\x1b\rabout the tapir."""',
            "/undo 2",
            "/context",
        ):
            chat.line(text)
        chat.expect("turn 1")
        typed = (tiny.home / "history").read_text()
        assert "This stays." in typed and "zanzibar" in typed
        assert not any(word in typed for word in ("lemur", "quokka", "tapir", "/regen"))
        chat.expect(PROMPT)
        chat.kill(signal.SIGKILL)
        chat.wait()
    tiny.here("profile", "create", "other")
    kept = b"".join(files(tiny.home).values())
    assert b"This stays." in kept and not any(word in kept for word in (b"lemur", b"quokka", b"tapir"))
    tiny.here("memory", "reset", "--transcript", "-y")
    kept = b"".join(files(tiny.home).values())
    assert b"This stays." not in kept and b"zanzibar" not in kept


def test_ctrl_c_stops_the_reply_and_the_next_turn_works(starter: Dmem) -> None:
    with starter.terminal(tokens=100_000) as chat:
        chat.line("Write a very long story about the sea and go on for ever.")
        chat.expect(r"for ever\.\s+\S+(?s:.*)\S")
        time.sleep(0.3)
        chat.send("\x03")
        chat.send("\x03")
        chat.expect(r"\(stopped\)")
        chat.expect(PROMPT)
        chat.send("\x03")
        chat.expect("press Ctrl-D or type /exit")
        chat.line("/set max_tokens 5")
        chat.line("Short.")
        chat.line("/stats")
        chat.expect(r"(?s)prompt .*reply .*context .*memory .*written")
        chat.line("exit")
        assert chat.wait() == 0
    turns = starter.json("memory", "history")["turns"]
    assert [turn["interrupted"] for turn in turns] == [True, False]


def test_a_temporary_chat_leaves_no_trace_on_disk(tiny: Dmem, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = files(tmp_path)
    with tiny.terminal("--temporary", TMPDIR=str(temporary)) as chat:
        chat.expect("Temporary: nothing is written to disk")
        chat.line("My secret is xylophone.")
        chat.line("/undo")
        chat.line("Again.")
        chat.line("/edit")
        chat.expect("writes nothing to disk")
        chat.line("/exit")
        assert chat.wait() == 0
    tiny.chat_here("--temporary", "One question.")
    assert files(tmp_path) == before
    tiny.chat_here("Kept.")
    before = files(tmp_path)
    with tiny.terminal("--temporary") as chat:
        chat.expect("Continuing “Kept")
        chat.line("More.")
        chat.line("/exit")
        assert chat.wait() == 0
    assert files(tmp_path) == before


def test_commands_that_are_none_and_wrong_arguments_are_one_sentence(tiny: Dmem, tmp_path: Path) -> None:
    with tiny.terminal() as chat:
        for line, answer in {
            "/mem history": "No turns are stored yet",
            "/hlep": "There is no command /hlep: did you mean /help",
            "/undo": "Can't undo 1 of 0",
            "/undo x": "x is not a number",
            "/forget x": "x is not a turn",
            "/forget 9": "has no turn 9",
            "/regen": "There is no question",
            "/read nowhere.txt": "can't be read",
            "/set temperature hot": "takes a number",
            "/set heat 3": "There is no option heat",
            "/model nowhere.gguf": "does not exist",
            "/clear all": "/clear takes no arguments",
            "/save": "takes a file name",
            "/memory what": "takes history or reset",
            "/help forget": "for good",
        }.items():
            chat.line(line)
            chat.expect(answer)
        chat.line(f"/save {tmp_path}/talk.md")
        chat.expect("nothing to save")
        chat.line("Hello.")
        chat.line(f"/save {tmp_path}/talk.md")
        chat.expect("Wrote")
        chat.line("quit")
        assert chat.wait() == 0
    assert "Hello." in (tmp_path / "talk.md").read_text()


def test_new_clear_system_and_model_inside_a_chat(tiny: Dmem, tiny_adapter: Any) -> None:
    model = Path(tiny.model[1])
    other = tiny_adapter(model, seed=5)
    with tiny.terminal() as chat:
        chat.line("One.")
        chat.line("/clear")
        chat.expect("The memory stays")
        chat.line("/system You are terse.")
        chat.expect("Applies from the next turn on")
        chat.line("Two.")
        chat.line(f"/model {model} {other}")
        chat.expect("this is a new conversation")
        chat.line("Three.")
        chat.line("/new")
        chat.expect("Started a new conversation. To return to the old one: dmem chat --cid")
        chat.line("/exit")
        assert chat.wait() == 0
    talks = tiny.json("log", "list")
    assert sorted(talk["turns"] for talk in talks) == [1, 2]


def test_a_conversation_in_use_is_refused_with_the_holder_and_the_ways_out(tiny: Dmem) -> None:
    tiny.chat_here("Begin.")
    with tiny.terminal() as chat:
        chat.expect(PROMPT)
        refused = tiny.chat_here("Me too.", code=1)
        assert f"process {chat.pid}" in refused.stderr and "--read-only" in refused.stderr
        assert refused.stderr.count("\n") == 1 and refused.stdout == ""
        tiny.chat_here("--read-only", "May I read?")
        tiny.chat_here("--new", "Another one.")
    assert len(tiny.json("log", "list")) == 2


@pytest.mark.parametrize("option", ["--read-only", "--temporary"])
def test_where_nothing_is_saved_what_is_typed_is_not_either(tiny: Dmem, option: str) -> None:
    tiny.chat_here("Begin.")
    with tiny.terminal(option) as chat:
        chat.line("The word is xylophone.")
        chat.line("/exit")
        assert chat.wait() == 0
    assert not any(b"xylophone" in data for data in files(tiny.home).values())


def test_a_pipe_gets_the_reply_alone(tiny: Dmem) -> None:
    done = tiny.chat("What is this?", stdin="the piped text\n")
    assert done.stdout.endswith("\n")
    shown = tiny.json("log", "show")
    question, reply = (message["text"] for message in shown["turns"][0]["messages"])
    assert question == "the piped text\n\nWhat is this?"
    assert done.stdout.rstrip("\n") == reply.rstrip("\n")
    assert done.stderr == ""
    assert "There is no question" in tiny.chat(code=2).stderr


def test_memory_that_is_off_is_said_in_one_line(tiny: Dmem) -> None:
    tiny.adapter = []
    done = tiny.chat_here("Hello.")
    assert "has no adapter" in done.stderr and done.stderr.count("\n") == 1
    assert tiny.chat_here("--no-memory", "Hello.").stderr == ""


def test_wrong_options_and_files_are_one_sentence(tiny: Dmem, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + os.urandom(64))
    assert "did you mean temperature" in tiny.chat_here("-o", "temprature", "1", "Hi.", code=2).stderr
    assert "does not exist" in tiny.chat_here("-m", "nowhere.gguf", "Hi.", code=1).stderr
    assert "can't be loaded" in tiny.chat_here("-m", str(damaged), "Hi.", code=1).stderr
    assert "--new" in tiny.chat_here("--new", "--cid", "x", "Hi.", code=2).stderr
    assert "There is no conversation" in tiny.chat_here("--cid", "zz", "Hi.", code=1).stderr


def test_markdown_is_rendered_in_a_terminal_and_not_with_no_color(tmp_path: Path) -> None:
    script = (
        "from deltamem_cli.terminal.reply_view import reply_view\n"
        "with reply_view() as view:\n"
        "    for piece in ['# He', 'ad\\n\\nsome **bo', 'ld** te', 'xt\\n\\n```python\\nx = 1\\n\\ny = 2\\n```\\n', 'end']:\n"
        "        view.add(piece)\n"
        "print('done')\n"
    )
    argv = [sys.executable, "-c", script]
    with Terminal(argv, environment(tmp_path)) as rendered:
        rendered.expect("done")
        # drawn while it grows, the unfinished may show its marks; what stays is rendered
        assert "some bold text" in plain(rendered.shown) and "**bold**" not in plain(rendered.shown)
        assert "\x1b[1m" in rendered.shown
    for changes in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        with Terminal(argv, environment(tmp_path, **changes)) as bare:
            bare.expect("done")
            assert "**bold**" in bare.shown and "\x1b" not in bare.shown


def test_control_characters_of_a_reply_do_not_reach_the_terminal(tmp_path: Path) -> None:
    script = (
        "from deltamem_cli.terminal.reply_view import reply_view\n"
        "with reply_view() as view:\n"
        "    view.add('a\\x1b]0;title\\x07b\\x9bc\\u202ed')\n"
        "print('done')\n"
    )
    for changes in ({}, {"NO_COLOR": "1"}):
        with Terminal([sys.executable, "-c", script], environment(tmp_path, **changes)) as terminal:
            terminal.expect("done")
            assert "\x1b]0;" not in terminal.shown and "\x07" not in terminal.shown and "\x9b" not in terminal.shown


def test_ended_from_outside_a_reply_is_committed_before_the_process_ends(starter: Dmem) -> None:
    with starter.terminal(tokens=100_000) as chat:
        chat.line("Write a very long story about the sea and go on for ever.")
        chat.expect(r"for ever\.\s+\S+(?s:.*)\S")
        time.sleep(0.3)
        chat.kill(signal.SIGTERM)
        assert chat.wait() == 128 + signal.SIGTERM
    assert [turn["interrupted"] for turn in starter.json("memory", "history")["turns"]] == [True]


def test_forgotten_turns_are_not_counted(tiny: Dmem) -> None:
    with tiny.terminal() as chat:
        for text in ("One.", "A second question that is longer than what a list of turns has room for."):
            chat.line(text)
        chat.line("/forget 1")
        chat.expect("good")
        chat.send("y\r")
        chat.expect("forgot 1 turn")
        chat.line("/show")
        chat.expect(r"conversation .*, 1 turn\s")
        chat.line("/memory history")
        chat.expect(" 2 .*A second question that is longer than w…")
        chat.line("/context")
        chat.expect("turn 2")
        chat.line("/exit")
        assert chat.wait() == 0
        assert "older turns" not in chat.shown
        assert "1 turn saved" in chat.shown
