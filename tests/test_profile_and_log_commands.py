"""`dmem profile` and `dmem log`: settings and transcripts."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import stored

from deltamem_cli.store import conversations, profiles
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Profile

Dmem = Callable[..., str]


def test_profile_is_made_changed_renamed_and_deleted(home: Path, dmem: Dmem) -> None:
    dmem("profile", "create", "work", "-m", "m.gguf", "--system", "Be brief.", "-o", "temperature", "0.3",
         "-o", "top-k", "5")  # fmt: skip
    dmem("profile", "set", "work", "--adapter", "a.gguf", "-o", "seed=7", "--unset", "temperature", "--unset", "system")
    dmem("profile", "rename", "work", "office")
    shown = json.loads(dmem("profile", "show", "office", "--json"))
    assert shown.pop("created")
    assert shown == {"name": "office", "model": "m.gguf", "adapter": "a.gguf", "system": None, "template": None, "write": None,
                     "options": {"top_k": 5, "seed": 7}, "conversations": 0, "turns": 0}  # fmt: skip
    assert "office" in dmem("profile", "list")
    dmem("profile", "delete", "office", "-y")
    assert json.loads(dmem("profile", "list", "--json")) == []
    assert b"m.gguf" not in stored.raw_bytes(home / "memory.db")


def test_deleted_profile_leaves_no_word_in_the_files(home: Path, dmem: Dmem) -> None:
    with Store.open(home / "memory.db") as store:
        stored.conversation(store, 3, word="A quagga is no zebra.")
        stored.conversation(store, 1, profile="home", word="heron")
    assert b"quagga" in stored.raw_bytes(home / "memory.db")
    dmem("profile", "delete", "work", "-y")
    raw = stored.raw_bytes(home / "memory.db")
    assert b"quagga" not in raw and b"heron" in raw


@pytest.mark.parametrize(
    "arguments, code, part",
    [
        (["-o", "topk", "5"], 2, "did you mean top_k"),
        (["-o", "seed", "x"], 2, "whole number"),
        (["-o", "temperature", "-1"], 2, "must be a number, 0 or more"),
        (["-o", "top_k", "4294967297"], 2, "top_k"),
        (["-o", "max_tokens", "0"], 2, "max_tokens"),
        (["-o", "nonsense", "1"], 2, "choose one of"),
        (["--unset", "seed"], 2, "not set"),
        ([], 2, "nothing to set"),
    ],
)
def test_wrong_setting_is_refused_and_changes_nothing(
    home: Path, dmem: Dmem, arguments: list[str], code: int, part: str
) -> None:
    dmem("profile", "create", "work", "-o", "top_p", "0.5")
    before = dmem("profile", "show", "work", "--json")
    text = dmem("profile", "set", "work", *arguments, code=code)
    assert part in text and text.count("\n") == 1
    assert dmem("profile", "show", "work", "--json") == before


def test_every_option_of_replies_can_be_a_profiles(dmem: Dmem) -> None:
    dmem("profile", "create", "work", "-o", "max-tokens", "30", "-o", "seed", "4294967295")
    assert json.loads(dmem("profile", "show", "work", "--json"))["options"] == {"max_tokens": 30, "seed": 4294967295}


def test_a_profile_that_is_being_changed_is_not_changed_elsewhere(
    home: Path, dmem: Dmem, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmem("profile", "create", "work", "-o", "top_p", "0.5")
    get = profiles.get
    refused = []

    def meanwhile(store: Store, name: str) -> Profile:
        with closing(sqlite3.connect(home / "memory.db", timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                refused.append(str(error))
        return get(store, name)

    monkeypatch.setattr(profiles, "get", meanwhile)
    dmem("profile", "set", "work", "-o", "seed", "7")
    assert refused and "locked" in refused[0]


def test_a_backup_is_whole_while_the_database_is_open(home: Path, dmem: Dmem, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with Store.open(home / "memory.db") as store:
        stored.conversation(store, 3)
        dmem("log", "backup", str(copy))
    assert copy.stat().st_mode & 0o077 == 0
    assert [one["turns"] for one in json.loads(dmem("log", "list", "-p", "work", "-d", str(copy), "--json"))] == [3]
    before = copy.read_bytes()
    assert "--force" in dmem("log", "backup", str(copy), code=2)
    with Store.open(copy) as open_copy:
        stored.conversation(open_copy, 1)
        for used in (copy, home / "memory.db"):
            assert "in use" in dmem("log", "backup", str(used), "--force", code=1)
    assert "does not exist" in dmem("log", "backup", str(tmp_path / "nowhere" / "x.db"), code=1)
    dmem("log", "backup", str(copy), "--force")
    assert len(copy.read_bytes()) == len(before)
    assert not list(tmp_path.glob("*.part"))


def test_without_a_database_there_is_nothing_to_back_up(dmem: Dmem, tmp_path: Path) -> None:
    assert "nothing to back up" in dmem("log", "backup", str(tmp_path / "copy.db"), code=1)
    assert not (tmp_path / "copy.db").exists()


def test_a_file_that_is_not_there_is_not_called_damaged(home: Path, dmem: Dmem, tmp_path: Path) -> None:
    with Store.open(home / "memory.db") as store:
        stored.conversation(store, 1)
    for command in (["memory", "import", str(tmp_path / "no.dmem")],
                    ["log", "export", "-p", "work", str(tmp_path / "nowhere" / "x.md")]):  # fmt: skip
        text = dmem(*command, code=1)
        assert "does not exist" in text and "damaged" not in text and text.count("\n") == 1


def test_log_lists_shows_and_exports_transcripts(home: Path, dmem: Dmem, tmp_path: Path) -> None:
    with Store.open(home / "memory.db") as store:
        first = stored.conversation(store, 2, word="heron")
        second = stored.conversation(store, 1, word="stork")
        stored.conversation(store, 1, profile="home", word="crane")
        conversations.touch(store, first.id)
    listed = json.loads(dmem("log", "list", "-p", "work", "--json"))
    assert [(one["conversation"], one["turns"], one["title"]) for one in listed] == [
        (first.id, 2, "heron 1"),
        (second.id, 1, "stork 1"),
    ]
    assert len(dmem("log", "list", "--all").splitlines()) == 3
    assert len(dmem("log", "list", "--all", "--limit", "1").splitlines()) == 1
    shown = json.loads(dmem("log", "show", "--cid", first.id[-12:], "--json"))
    assert [message["text"] for turn in shown["turns"] for message in turn["messages"]] == [
        "heron 1", "answer 1", "heron 2", "answer 2"]  # fmt: skip
    one = dmem("log", "show", "-p", "work", "--turn", "2")
    assert "heron 2" in one and "answer 1" not in one
    text = dmem("log", "export", "-p", "work", "--all")
    assert text.count("# ") >= 2 and "heron 2" in text and "stork 1" in text and "crane" not in text
    file = tmp_path / "x.json"
    dmem("log", "export", str(file), "-p", "work", "--format", "json")
    assert [talk["conversation"] for talk in json.loads(file.read_text())] == [first.id]
    assert "--force" in dmem("log", "export", str(file), "-p", "work", code=2)
    assert dmem("log", "path").strip() == str(home / "memory.db")


def test_search_stays_in_its_profile_unless_asked(home: Path, dmem: Dmem) -> None:
    with Store.open(home / "memory.db") as store:
        stored.conversation(store, 1, word="heron by the lake")
        stored.conversation(store, 1, profile="home", word="heron at sea")
    found = json.loads(dmem("log", "search", "heron", "-p", "work", "--json"))
    assert [(hit["profile"], hit["excerpt"]) for hit in found] == [("work", "heron by the lake 1")]
    assert len(json.loads(dmem("log", "search", "heron", "--all", "--json"))) == 2
    assert "nothing to search for" in dmem("log", "search", " ", code=2)
    assert json.loads(dmem("log", "search", "heron", "--json")) == []
    assert json.loads(dmem("log", "search", "lake", "heron", "--all", "--json"))[0]["profile"] == "work"
    assert "heron by the lake" in dmem("log", "search", '"the lake"', "-p", "work")


def test_an_export_that_fails_leaves_the_old_file(
    home: Path, dmem: Dmem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(home / "memory.db") as store:
        stored.conversation(store, 1)
    file = tmp_path / "x.md"
    file.write_text("my old export")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        text = dmem("log", "export", "-p", "work", "--force", str(file), code=1)
    assert "the old one is intact" in text and file.read_text() == "my old export"


@pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX matter")
def test_transcripts_pictures_and_memories_are_written_for_their_owner_alone(
    home: Path, dmem: Dmem, tmp_path: Path
) -> None:
    with Store.open(home / "memory.db") as store:
        stored.conversation(store, 1)
    names = [str(tmp_path / name) for name in ("x.md", "x.svg", "x.dmem", "x.db")]
    before = os.umask(0)
    try:
        dmem("log", "export", "-p", "work", names[0])
        dmem("memory", "inspect", "-p", "work", "--image", names[1])
        dmem("memory", "export", "-p", "work", names[2])
        dmem("log", "backup", names[3])
    finally:
        os.umask(before)
    assert {stat.S_IMODE(os.stat(name).st_mode) for name in names} == {0o600}
