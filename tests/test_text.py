"""Text as others wrote it: bytes, marks, halves of characters, what would steer a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_support import PROMPT, Dmem, dmem
from stored import conversation

from deltamem_cli.engine import ChatTemplate
from deltamem_cli.episodes.jsonl import read_episodes
from deltamem_cli.formats.errors import shown
from deltamem_cli.pictures.shapes import Label, Picture
from deltamem_cli.pictures.svg import svg
from deltamem_cli.store.database import Store
from deltamem_cli.text import STEERING, decoded, harmless, whole

BROKEN = "caf\udce9"  # as Python reads the bytes of Latin-1's café from a command line
MENDED = "caf\ufffd"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_text(encoding: str) -> None:
    assert decoded("δ 里\n".encode(encoding)) == "δ 里\n"


def test_what_is_no_character_is_replaced() -> None:
    assert whole(BROKEN) == harmless(BROKEN) == decoded(b"caf\xe9") == MENDED
    assert whole("δ 🙂") == "δ 🙂"


@pytest.mark.parametrize("code", [0x00, 0x1B, 0x7F, 0x9B, 0x2028, 0x2029, 0x202E, 0x2066])
def test_what_would_steer_a_terminal_is_taken_out(code: int) -> None:
    assert harmless(f"a{chr(code)}b") == "a b"


def test_arguments_that_are_not_utf8_are_kept_as_those_of_a_pipe_are(tiny: Dmem) -> None:
    tiny.chat("-s", BROKEN, BROKEN)
    tiny.run(*dmem("memory", "remember", *tiny.model, *tiny.adapter, BROKEN))
    turns = tiny.json("log", "show")["turns"]
    assert [turn["messages"][0]["text"] for turn in turns] == [MENDED, MENDED]
    assert len(tiny.json("log", "search", BROKEN)) == 2
    tiny.run(*dmem("profile", "set", "default", "--system", BROKEN))
    assert tiny.json("profile", "show", "default")["system"] == MENDED
    for arguments in (["log", "list", "-p", BROKEN], ["log", "show", "--cid", BROKEN], ["profile", "create", BROKEN]):
        assert "Unexpected error" not in tiny.run(*dmem(*arguments), code=1).stderr


def test_the_configuration_refuses_what_is_not_utf8(home: Path, dmem: Callable[..., str]) -> None:
    assert "must be UTF-8, and the new value is not" in dmem("config", "set", "model", f"/{BROKEN}.gguf", code=1)
    assert dmem("config", "get", "model") != f"/{BROKEN}.gguf"


def test_a_file_whose_name_is_not_utf8_is_a_file(tiny: Dmem, tmp_path: Path) -> None:
    model = tmp_path / f"{BROKEN}.gguf"
    model.write_bytes(Path(tiny.model[1]).read_bytes())
    tiny.model = ["-m", str(model)]
    tiny.chat("-d", str(tmp_path / f"{BROKEN}.db"), "Hello.")
    with Store.open(tmp_path / f"{BROKEN}.db") as store:
        assert store.counts()["turns"] == 1
    shown = subprocess.run(
        dmem("log", "path", "-d", f"{BROKEN}.db"), env=tiny.env, capture_output=True, check=True
    ).stdout
    assert shown == b"caf\xe9.db\n"


def test_a_typed_line_that_is_not_utf8_is_kept(tiny: Dmem) -> None:
    with tiny.terminal() as chat:
        chat.expect(PROMPT)
        os.write(chat._file, b"caf\xe9\r")
        chat.line("/exit")
        assert chat.wait() == 0
    assert tiny.json("log", "show")["turns"][0]["messages"][0]["text"] == MENDED
    assert f"+{MENDED}" in (tiny.home / "history").read_text()


def test_a_pipe_and_a_file_may_begin_with_a_byte_order_mark(tiny: Dmem, tmp_path: Path) -> None:
    tiny.run(*dmem("memory", "remember", *tiny.model, *tiny.adapter), stdin="\ufefftea")
    tiny.chat(stdin="\ufeffHello.")
    file = tmp_path / "notes.txt"
    file.write_bytes("coffee".encode("utf-16"))
    tiny.run(*dmem("memory", "remember", *tiny.model, *tiny.adapter, "--file", str(file)))
    turns = tiny.json("log", "show")["turns"]
    assert [turn["messages"][0]["text"] for turn in turns] == ["tea", "Hello.", "coffee"]


def test_an_editor_s_text_may_be_broken(tiny: Dmem, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[1], 'wb').write(b'\\xef\\xbb\\xbfcaf\\xe9')\n")
    editor.chmod(0o755)
    with tiny.terminal(EDITOR=str(editor)) as chat:
        chat.line("/edit")
        chat.line("/exit")
        assert chat.wait() == 0
    assert tiny.json("log", "show")["turns"][0]["messages"][0]["text"] == MENDED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_configuration_may_begin_with_a_byte_order_mark(
    home: Path, dmem: Callable[..., str], encoding: str
) -> None:
    home.mkdir()
    (home / "config.toml").write_bytes("# kept\r\nthreads = 1\r\n".encode(encoding))
    assert dmem("config", "get", "threads") == "1\n"
    dmem("config", "set", "threads", "2")
    assert (home / "config.toml").read_text() == "# kept\nthreads = 2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_line_of_conversations_may_hold_line_separators_and_a_mark(tmp_path: Path, encoding: str) -> None:
    messages = [{"role": "user", "content": "a\u2028b\x85c"}]
    record = {"messages": messages, "questions": [{"content": "What?", "answer": "a"}]}
    file = tmp_path / "talks.jsonl"
    file.write_bytes(f"{json.dumps(record, ensure_ascii=False)}\r\n\r\n".encode(encoding))
    (episode,), _ = read_episodes(file)
    assert episode.sessions[0][0].content == "a\u2028b\x85c"


def test_a_template_may_be_utf16(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0].content }}", encoding="utf-16")
    assert ChatTemplate.from_file(file).source == "{{ messages[0].content }}"


# joiners of an emoji and of Persian, a soft hyphen, combining marks, a private and an unassigned character
TOGETHER = "👨\u200d👩\u200d👧 می\u200cخواهم so\u00adft e\u0301 हिन्दी \ue0b0\U000e0fff"


def test_what_belongs_to_words_is_shown_exported_and_found(home: Path, dmem: Callable[..., str]) -> None:
    with Store.open(home / "memory.db") as store:
        conversation(store, 1, profile="default", word=TOGETHER)
    for command in (["log", "list"], ["log", "show"], ["log", "export"]):
        assert TOGETHER in dmem(*command), command
    dmem("log", "export", str(home / "talk.md"))
    assert TOGETHER in (home / "talk.md").read_text(encoding="utf-8")


def test_what_belongs_to_words_stays_in_messages_names_and_pictures() -> None:
    assert shown(TOGETHER) == TOGETHER
    assert harmless("a\u3000b\xa0c") == "a\u3000b\xa0c"
    label = Label(0, 0, TOGETHER + "\x1b\ufffe", (0, 0, 0))
    assert f">{TOGETHER}<" in svg(Picture(9, 9, [label])).decode()


@pytest.mark.parametrize("name", ["می\u200cخواهم", "हिन्दी", "so\u00adft", "ก้าน"])
def test_a_profile_may_be_called_what_needs_joiners_and_marks(home: Path, dmem: Callable[..., str], name: str) -> None:
    dmem("profile", "create", name)
    assert name in dmem("profile", "list")
    assert "can't be a profile's name" in dmem("profile", "create", "\u200da", code=1)


def test_a_profile_is_found_however_its_letters_are_composed(home: Path, dmem: Callable[..., str]) -> None:
    dmem("profile", "create", "e\u0301te\u0301")
    assert "\u00e9t\u00e9" in dmem("profile", "show", "\u00e9t\u00e9")
    assert "already a profile" in dmem("profile", "create", "\u00e9t\u00e9", code=1)


EVIL = "evil \x9b31m \x7f \u202e \u2028 txt"


def test_json_escapes_what_would_steer_a_terminal(home: Path, dmem: Callable[..., str]) -> None:
    with Store.open(home / "memory.db") as store:
        conversation(store, 1, profile="default", word=EVIL)
    for command in (["log", "show", "--json"], ["log", "list", "--json"], ["log", "export", "--format", "json"]):
        text = dmem(*command)
        assert not STEERING.search(text.replace("\n", "")), command
        assert "31m" in json.dumps(json.loads(text))
    assert json.loads(dmem("log", "show", "--json"))["turns"][0]["messages"][0]["text"] == f"{EVIL} 1"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_and_exports_lose_nothing_to_a_stream_s_encoding(home: Path, tiny: Dmem, encoding: str) -> None:
    said = "里斯本 δ é 🙂"
    with Store.open(home / "memory.db") as store:
        conversation(store, 1, profile="default", word=said)
    tiny.env["PYTHONIOENCODING"] = encoding

    def out(*arguments: str) -> bytes:
        return subprocess.run(dmem(*arguments), env=tiny.env, capture_output=True, check=True).stdout

    for command in (["log", "show", "--json"], ["log", "export", "--format", "json"]):
        assert said in json.dumps(json.loads(out(*command).decode(encoding)), ensure_ascii=False)
    assert said in out("log", "export").decode()
    assert b"?" not in out("log", "show")
