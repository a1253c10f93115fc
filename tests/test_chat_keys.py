"""What is typed in a chat: lines, messages of many lines, history, completion, an editor, and what comes too early."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from chat_support import PROMPT, Dmem, Terminal, plain


def test_what_was_typed_is_kept_for_its_user_alone(tiny: Dmem) -> None:
    with tiny.terminal() as chat:
        chat.line("/show")
        chat.line("/exit")
        assert chat.wait() == 0
    history = tiny.home / "history"
    assert "+/show" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with tiny.terminal() as chat:
        chat.expect(PROMPT)
        chat.send("\x1b[A\x1b[A\r")  # up, up
        chat.expect("conversation  .*0 turns")
        chat.line("/bye")
        assert chat.wait() == 0
    with tiny.terminal(DMEM_NOHISTORY="1") as chat:
        chat.line("/stats")
        chat.line("/exit")
        assert chat.wait() == 0
    assert "/stats" not in history.read_text()


def test_messages_of_many_lines(tiny: Dmem) -> None:
    with tiny.terminal() as chat:
        chat.expect(PROMPT)
        chat.send('"""\rfirst\r/exit is no command here\r"""\r')
        chat.expect(PROMPT)
        chat.send("one\x1b\r")
        chat.expect(r"\.\.\.\s*$")
        chat.send("two\r")
        chat.expect(PROMPT)
        chat.send("three")
        chat.expect("three")
        chat.send("\n")
        chat.expect(r"\.\.\.\s*$")
        chat.send("four\r")
        chat.line("/exit")
        assert chat.wait() == 0
    shown = tiny.json("log", "show")
    asked = [turn["messages"][0]["text"] for turn in shown["turns"]]
    assert asked == ["first\n/exit is no command here", "one\ntwo", "three\nfour"]


def test_a_line_feed_that_a_program_types_with_its_text_sends_it(tiny: Dmem) -> None:
    with tiny.terminal() as chat:
        chat.expect(PROMPT)
        chat.send("/stats\n")
        chat.expect("context .* tokens")


def test_tab_completes_commands_options_and_files(tiny: Dmem, tmp_path: Path) -> None:
    (tmp_path / "notes-of-today.txt").write_text("The walrus lives at sea.")
    with tiny.terminal() as chat:
        chat.expect(PROMPT)
        chat.send("/sta\t")
        chat.expect("/stats")
        chat.send("\r")
        chat.expect("context .* tokens")
        chat.expect(PROMPT)
        chat.send("/set min\t")
        chat.expect("min_p")
        chat.send(" 0.2\r")
        chat.expect("min_p +0.2")
        chat.expect(PROMPT)
        chat.send(f"/read {tmp_path}/notes-\t")
        chat.expect(r"today\.txt")
        chat.send("\r")
        chat.expect(r"Read notes-of-today\.txt, \d+ tokens")
        chat.line("/context")
        chat.expect(r"turn 1")


def test_editor_writes_the_message(tiny: Dmem, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "from the editor" > "$1"\n')
    editor.chmod(0o755)
    with tiny.terminal(EDITOR=str(editor), VISUAL="") as chat:
        chat.line("/edit")
        chat.expect("from the editor")
        chat.line("/exit")
        assert chat.wait() == 0
    assert len(tiny.json("memory", "history")["turns"]) == 1


def test_what_is_typed_during_a_reply_is_not_shown_in_it_and_is_the_next_message(starter: Dmem) -> None:
    with starter.terminal(tokens=120) as chat:
        chat.line("Write a long story about the sea.")
        chat.expect(r"sea\.\s+(?!>>>)\S+")
        chat.expect(r"\w+ \w+ \w+")  # the reply has begun
        chat.send("/stats\r")
        chat.expect(r"tokens/s")
        assert "/stats" not in plain(chat.shown).rpartition("sea.")[2].partition(">>>")[0]
        chat.line("/exit")
        assert chat.wait() == 0


def test_nothing_is_lost_of_what_is_typed_while_it_loads_and_replies(tiny: Dmem) -> None:
    long = "word " * 1200 + "end"  # a terminal that gathers lines keeps 4095 letters
    with tiny.terminal(tokens=1500) as chat:
        chat.send("Too early.\r")
        chat.expect(r">>> Too early\.\s+(?!>>>)\S+")  # the reply
        chat.send("\r")
        chat.expect(r">>>\s+>>>\s*$")  # Enter, and not a line feed that makes a message of two lines
        chat.send("In between.\r")
        chat.expect(r"between\.\s+(?!>>>)\S+")
        for keys in ("/set max_tokens 1\r", long, "\r", "/exit\r"):
            chat.send(keys)
        assert chat.wait() == 0
    asked = [turn["messages"][0]["text"] for turn in tiny.json("log", "show")["turns"]]
    assert asked == ["Too early.", "In between.", long]


@pytest.mark.parametrize(
    ("command", "options"), [("/forget 2", []), ("/forget 2", ["--temporary"]), ("/undo", ["--no-log"])]
)
def test_the_arrow_keys_no_longer_find_what_was_typed_for_a_turn_that_is_gone(
    tiny: Dmem, command: str, options: list[str]
) -> None:
    with tiny.terminal(*options, tokens=2) as chat:
        chat.line("This stays.")
        chat.line("The word is xylophone.")
        chat.line(command)
        if command == "/forget 2":
            chat.expect(r"\[y/N\]: $")
            chat.send("y\r")
        chat.expect("1 turn")
        chat.expect(PROMPT)
        chat.send("\x1b[A")
        assert chat.expect(r"\S.*").group() == "This stays."


def test_what_is_typed_during_a_reply_is_kept_when_the_reply_is_stopped(starter: Dmem) -> None:
    with starter.terminal(tokens=300) as chat:
        chat.line("Write a long story about the sea.")
        chat.expect(r"sea\.\s+(?!>>>)\S+")
        chat.expect(r"\w+ \w+ \w+")  # the reply has begun
        chat.send("the next message")
        time.sleep(0.5)  # the keys are there before the signal
        chat.send("\x03")
        chat.expect("stopped")
        chat.expect(r">>>\s*the next message")


def pasted(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


def paste(chat: Terminal, text: str) -> None:
    """As a terminal does: between marks only while the program wants them, else as if it was typed."""
    wanted = chat.shown.rfind("\x1b[?2004h") > chat.shown.rfind("\x1b[?2004l")
    chat.send(pasted(text) if wanted else text.replace("\n", "\r"))


PASTED = [
    '"""\nhello\n"""\nimport os',
    "/* c */\nint main(){}",
    "/undo 1\n/exit",
    "    indented\r\n\r\n    twice",
    '"""Return x."""',
]


def test_what_is_pasted_is_one_message_whatever_it_contains(tiny: Dmem) -> None:
    with tiny.terminal(tokens=2) as chat:
        for text in PASTED:
            chat.expect(PROMPT)
            chat.send(pasted(text))
            chat.send("\r")
        chat.expect(PROMPT)
        chat.send("/remember " + pasted("one\rtwo"))
        chat.send("\r")
        chat.expect("Remembered as turn 6")
        chat.expect(PROMPT)
        chat.send(pasted("/exit"))
        chat.send("\r")
        assert chat.wait() == 0
    asked = [turn["messages"][0]["text"] for turn in tiny.json("log", "show")["turns"]]
    assert asked == [*(text.replace("\r", "") for text in PASTED), "one\ntwo"]


def test_what_is_pasted_while_it_loads_and_replies_is_one_message_too(tiny: Dmem) -> None:
    with tiny.terminal(tokens=400) as chat:
        while "\x1b[?2004h" not in chat.shown:
            assert chat._read(60)
        assert ">>>" not in chat.shown
        paste(chat, "as it\nloads")
        chat.send("\r")
        chat.expect(r"loads\s+(?!>>>)\S+")  # the reply
        paste(chat, "as it\nreplies")
        chat.send("\r")
        chat.expect(r"replies\s+(?!>>>)\S+")
        chat.line("/forget 1")
        chat.expect(r"Forget .*\?.*: $")
        paste(chat, "y")  # a question knows no marks
        chat.send("\r")
        chat.expect("forgot 1 turn")
        chat.line("/exit")
        assert chat.wait() == 0
    asked = [turn["messages"][0]["text"] for turn in tiny.json("log", "show")["turns"]]
    assert asked == ["as it\nreplies"]
    assert chat.shown.rfind("\x1b[?2004h") < chat.shown.rfind("\x1b[?2004l")


def test_typed_quotes_and_comments_are_messages(tiny: Dmem) -> None:
    with tiny.terminal(tokens=2) as chat:
        for keys in (
            '"""\ra """b""" c\r"""\r',
            '"""doc"""\x1b\rimport os\r',
            "/* c */\r",
            "/1 is a path\r",
            '"""a"""\r',
        ):
            chat.expect(PROMPT)
            chat.send(keys)
        chat.line("/?")
        chat.expect("List the commands")
        chat.line("/undone")
        chat.expect("There is no command /undone")
        chat.line("/exit")
        assert chat.wait() == 0
    asked = [turn["messages"][0]["text"] for turn in tiny.json("log", "show")["turns"]]
    assert asked == ['a """b""" c', '"""doc"""\nimport os', "/* c */", "/1 is a path", "a"]
