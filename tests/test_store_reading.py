"""Reading a database writes nothing, wherever it lies; and nothing foreign is applied to a file put in its place."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import stored
from chat_support import files as contents

from deltamem_cli.store import beside, conversations, locks, migrations, restoring, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import ConversationBusy, StoreError

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and kill -9 are POSIX matters")
Dmem = Callable[..., str]

KILLED = (
    "import os, signal, sys, stored\n"
    "from deltamem_cli.store.database import Store\n"
    "store = Store.open(sys.argv[1])\n"
    "stored.conversation(store, 3, word='later ' * 400)\n"
    "os.kill(os.getpid(), signal.SIGKILL)\n"
)
OPEN = (
    "import sys\n"
    "from deltamem_cli.store.database import Store\n"
    "store = Store.open(sys.argv[1]); store.counts(); print('open', flush=True); sys.stdin.readline()\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "memory.db"


def n_turns(store: Store) -> list[int]:
    return sorted(one.n_turns for one in conversations.all_of(store))


def left_by_a_killed_process(path: Path) -> None:
    stored.run(KILLED, path).communicate()
    assert Path(f"{path}-wal").stat().st_size


def process_that_has_it_open(path: Path) -> subprocess.Popen[str]:
    child = stored.run(OPEN, path)
    assert child.stdout and child.stdout.readline() == "open\n"
    return child


@pytest.mark.parametrize("layout", [migrations.LATEST, 4])
def test_reading_makes_changes_and_converts_no_file(path: Path, layout: int) -> None:
    Store.open(path, migrate_to=layout).close()
    before = contents(path.parent)
    with Store.read(path) as store:
        assert conversations.all_of(store) == [] and store.layout == migrations.LATEST
    assert contents(path.parent) == before


def test_reading_what_is_not_there_makes_nothing(path: Path) -> None:
    with Store.read(path) as store:
        assert conversations.all_of(store) == []
    assert not path.parent.exists()


def test_a_reader_sees_what_is_written_after_it_began(path: Path) -> None:
    with Store.open(path) as store:
        stored.conversation(store, 1)
    with Store.read(path) as reader:
        assert n_turns(reader) == [1]
        with Store.open(path) as writer:
            stored.conversation(writer, 2)
            assert n_turns(reader) == [1, 2]
        with Store.open(path) as writer:
            stored.conversation(writer, 3)
        assert n_turns(reader) == [1, 2, 3]


@posix
def test_turns_in_a_wal_whose_index_is_gone_are_read_and_nothing_is_written(path: Path) -> None:
    with Store.open(path) as store:
        stored.conversation(store, 1)
    left_by_a_killed_process(path)
    Path(f"{path}-shm").unlink()
    before = contents(path.parent)
    with Store.read(path) as store:
        assert n_turns(store) == [1, 3]
    assert contents(path.parent) == before


@posix
def test_a_link_to_the_database_has_the_locks_and_the_wal_of_the_database(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    with Store.open(path) as store:
        talk = stored.conversation(store, 1)
        link.symlink_to(path)
        locks.hold(store, talk.id)
        with Store.open(link) as other:
            with pytest.raises(ConversationBusy):
                locks.hold(other, talk.id)
            assert n_turns(other) == [1]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("link")] == ["link.db"]


@posix
def test_a_pipe_is_no_database_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for way in (Store.open, Store.read, Store.look):
        with pytest.raises(StoreError, match="is not a file"):
            way(tmp_path / "pipe")


@posix
@pytest.mark.parametrize("way", [Store.open, Store.read])
def test_a_backup_copied_over_the_database_is_not_spoilt_by_the_wal_of_a_killed_process(
    path: Path, tmp_path: Path, way: Callable[[Path], Store]
) -> None:
    with Store.open(path) as store:
        stored.conversation(store, 1)
        store.copy_to(tmp_path / "backup.db")
    left_by_a_killed_process(path)
    shutil.copyfile(tmp_path / "backup.db", path)
    with way(path) as store:
        assert n_turns(store) == [1] and store.check() == []
    with sqlite3.connect(path) as plain:  # nor by another program
        assert plain.execute("SELECT count(*) FROM turns").fetchone() == (1,)
    assert Path(f"{path}-wal.old").stat().st_size, "it is kept"


@posix
def test_a_restored_backup_is_sound_and_the_old_database_is_kept_whole(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        stored.conversation(store, 1)
        store.copy_to(tmp_path / "backup.db")
    left_by_a_killed_process(path)
    old = restoring.restore(tmp_path / "backup.db", path)
    assert old == path.with_name("memory.db.old")
    for file, expected in ((path, [1]), (old, [1, 3])):
        with Store.open(file) as store:
            assert n_turns(store) == expected and store.check() == []


@posix
def test_a_restore_that_is_killed_before_its_end_leaves_a_sound_database(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(path) as store:
        stored.conversation(store, 1)
        store.copy_to(tmp_path / "backup.db")
    left_by_a_killed_process(path)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(beside, "forget", killed)
        restoring.restore(tmp_path / "backup.db", path)
    with Store.open(path) as store:
        assert n_turns(store) == [1] and store.check() == []


@posix
def test_a_database_in_use_is_not_replaced(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        talk = stored.conversation(store, 1)
        store.copy_to(tmp_path / "backup.db")
    child = process_that_has_it_open(path)
    try:
        with pytest.raises(StoreError, match="in use by another dmem"):
            restoring.restore(tmp_path / "backup.db", path)
    finally:
        child.communicate("\n")
    with Store.open(path) as store:
        assert turns.last_number(store, talk.id) == 1
    assert not path.with_name("memory.db.old").exists()


def test_restore_refuses_what_is_no_backup_and_changes_nothing(home: Path, dmem: Dmem, tmp_path: Path) -> None:
    with Store.open(home / "memory.db") as store:
        stored.conversation(store, 1)
    before = contents(home)
    (tmp_path / "text").write_text("just some text, " * 500)
    assert "is not a dmem database" in dmem("log", "restore", str(tmp_path / "text"), code=1)
    assert "does not exist" in dmem("log", "restore", str(tmp_path / "nothing"), code=1)
    assert "is the database itself" in dmem("log", "restore", str(home / "memory.db"), code=1)
    assert contents(home) == before


def test_a_backup_is_restored_where_there_was_no_database(home: Path, dmem: Dmem, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db") as store:
        stored.conversation(store, 2)
        store.copy_to(tmp_path / "backup.db")
    dmem("log", "restore", str(tmp_path / "backup.db"))
    with Store.read(home / "memory.db") as store:
        assert n_turns(store) == [2]
