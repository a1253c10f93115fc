"""The database file: private, migrated, kept apart from other files, and honest when something is wrong with it."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import stored

from deltamem_cli.store import conversations, database, migrations, profiles, search, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError
from deltamem_cli.store.ids import new_id

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "memory.db"


def schema(path: Path) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as connection:
        return sorted(connection.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master"))


def one_sentence(error: pytest.ExceptionInfo[StoreError], path: Path) -> str:
    text = str(error.value)
    assert str(path) in text and "\n" not in text and "locked" not in text
    return text


@posix
def test_database_and_its_side_files_are_for_the_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(path) as store:
            stored.conversation(store)
            for file in path.parent.iterdir():
                assert not stat.S_IMODE(file.stat().st_mode) & 0o077, file
            assert {file.name for file in path.parent.iterdir()} >= {"memory.db", "memory.db-wal", "memory.db-shm"}
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


@posix
def test_database_that_others_could_read_is_closed_to_them(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o644)
    Store.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_settings_that_the_promises_rest_on_are_in_force(path: Path) -> None:
    with Store.open(path) as store:
        settings = {
            name: store.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "foreign_keys", "secure_delete", "synchronous", "temp_store")
        }
        assert settings == {"journal_mode": "wal", "foreign_keys": 1, "secure_delete": 1, "synchronous": 1,
                            "temp_store": 2}  # fmt: skip
        assert store.check() == []


def test_missing_database_reads_as_empty_and_is_not_made(path: Path) -> None:
    with Store.open(path, create=False) as store:
        assert profiles.all_of(store) == []
    assert not path.parent.exists()


TABLES = ("profiles", "conversations", "turns", "messages", "states")
# Of the turns of an old database, the last two of one run; the head is what a long system prompt comes to.
CONTEXTS: list[dict[str, Any]] = [
    {"run": "r", "replayed": [], "system": "Be terse. \x00 é 🙂", "head": list(range(500)), "n_past": 500},
    {"run": "s", "replayed": [1], "system": "Be terse. \x00 é 🙂", "head": list(range(500)), "window_first": 1},
    {"run": "s", "replayed": [1], "system": "Be terse. \x00 é 🙂", "head": list(range(500)), "later": {"x": 1}},
]


def old_database(path: Path, version: int) -> dict[str, list[dict[str, Any]]]:
    """A database of that layout with two conversations, the first of them the last one, and all its rows."""
    with Store.open(path, migrate_to=version) as store, store.transaction():
        assert store.layout == version
        if version >= 1:
            store.insert("profiles", name="old", created="2026-01-01T00:00:00.000Z", system="Be terse.")
            for name, updated in (("c1", "2026-03-01"), ("c2", "2026-02-01"), ("c0", "2026-02-01")):
                store.insert("conversations", id=name, profile_id=1, created="x", updated=updated)
        if version >= 2:
            for number, text in enumerate(("an old xylophone", "一把旧木琴 🙂", "more"), 1):
                store.insert("turns", conversation_id="c1", number=number, kind="chat", created="x", model_name="m",
                             model_fingerprint="f", context=json.dumps(CONTEXTS[number - 1]),
                             timings='{"reply": 0.5}')  # fmt: skip
                store.insert("messages", turn_id=number, position=0, role="user", text=text, tokens=b"\1\0\0\0")
        if version >= 3:
            for turn, conversation in ((None, "c2"), (1, "c1"), (2, "c1")):
                store.insert("states", conversation_id=conversation, turn_id=turn, model_name="m", model_fingerprint="f",
                             adapter_name="a", adapter_fingerprint="b", layers="[7]", n_layers=1, heads=1, rank=2,
                             state=os.urandom(12) + b"\0\0\0\0")  # fmt: skip
        if version >= 5:
            store.execute("UPDATE profiles SET template = 'work.jinja'")
        if version >= 9:
            for sequence, conversation in enumerate(("c0", "c2", "c1"), 1):
                store.execute("UPDATE conversations SET sequence = ? WHERE id = ?", [sequence, conversation])
        return {name: store.rows(f"SELECT * FROM {name}") for name in TABLES if store.db.table(name).exists()}


@pytest.mark.parametrize("version", range(migrations.LATEST))
def test_every_earlier_layout_becomes_todays_with_all_that_it_held(path: Path, version: int) -> None:
    held = old_database(path, version)
    with Store.open(path) as store:
        assert store.layout == migrations.LATEST
        for name, rows in held.items():
            now = store.rows(f"SELECT * FROM {name}")
            same = [key for key in (rows[0] if rows else {}) if key != "context"]
            assert [[row[key] for key in same] for row in now] == [[row[key] for key in same] for row in rows]
        if version >= 1:
            assert [one.id for one in conversations.all_of(store, profiles.get(store, "old"))] == ["c1", "c2", "c0"]
        if version >= 2:
            every = turns.all_of(store, "c1")
            assert [turn.messages[0].text for turn in every] == ["an old xylophone", "一把旧木琴 🙂", "more"]
            assert [turn.context for turn in every] == CONTEXTS
            assert store.counts()["turns"] == 3
            assert [len(store.rows(f"SELECT * FROM {name}")) for name in ("prompts", "runs")] == [1, 2]
            assert [hit.turn for words in ("xylophone", "木琴", "🙂") for hit in search.search(store, words)] == [
                1,
                2,
                2,
            ]
        assert store.check() == []
    fresh = path.with_name("fresh.db")
    Store.open(fresh).close()
    assert schema(path) == schema(fresh)
    assert not list(path.parent.glob("*.before-update*"))


@posix
@pytest.mark.parametrize("version", range(1, migrations.LATEST))
def test_old_database_whose_update_is_killed_is_whole_and_has_a_copy_until_it_is_done(path: Path, version: int) -> None:
    held = old_database(path, version)
    code = (
        "import os, signal, sys\n"
        "from deltamem_cli.store import migrations\n"
        "from deltamem_cli.store.database import Store\n"
        "kill = lambda db: os.kill(os.getpid(), signal.SIGKILL)\n"
        "migrations.MIGRATIONS = (*migrations.MIGRATIONS[:-1], kill)\n"
        "Store.open(sys.argv[1])\n"
    )
    for _ in range(2):
        stored.run(code, path).communicate(timeout=60)
        copy = path.with_name("memory.db.before-update")
        assert not stat.S_IMODE(copy.stat().st_mode) & 0o077
        for file in (path, copy):
            with Store.look(file) as store:
                assert store.layout == version
                assert {name: store.rows(f"SELECT * FROM {name}") for name in held} == held
    with Store.open(path) as store:
        assert store.layout == migrations.LATEST and store.counts()["profiles"] == 1
    assert not copy.exists()


@pytest.mark.parametrize("context", ["", "[]", "null", "3", '{"system": 3}', '{"system": "\\ud800"}', "[" * 100_000])
def test_a_turn_with_a_damaged_context_does_not_keep_a_database_from_being_updated(path: Path, context: str) -> None:
    old_database(path, migrations.LATEST - 1)
    with Store.open(path, migrate_to=migrations.LATEST - 1) as store, store.transaction():
        store.execute("UPDATE turns SET context = ? WHERE number = 2", [context])
    with Store.open(path) as store:
        assert store.layout == migrations.LATEST
        assert turns.get(store, "c1", 3).context == CONTEXTS[2]
        with pytest.raises(StoreError, match="is damaged"):
            turns.get(store, "c1", 2)


def test_migration_that_fails_leaves_the_layout_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path, migrate_to=1).close()
    before = schema(path)

    def broken(db: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS[:3], broken))
    with pytest.raises(StoreError):
        Store.open(path)
    assert schema(path) == before


def test_layout_of_a_newer_version_is_refused_with_the_way_out(path: Path) -> None:
    with Store.open(path) as store:
        store.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError) as error:
        Store.open(path)
    text = one_sentence(error, path)
    assert "newer dmem" in text and "99" in text and "update" in text


def test_a_layout_below_the_first_is_damage(path: Path) -> None:
    with Store.open(path) as store:
        store.connection.execute("PRAGMA user_version = -3")
    for way in (Store.open, Store.read):
        with pytest.raises(StoreError) as error:
            way(path)
        one_sentence(error, path)


def other_sqlite_file(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE logs (text)")
        connection.execute("PRAGMA journal_mode = DELETE")


@pytest.mark.parametrize(
    "make", [lambda path: path.write_bytes(b"just some text, " * 500), other_sqlite_file], ids=["text", "sqlite"]
)
def test_file_of_another_program_is_refused_and_left_as_it_is(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreError) as error:
        Store.open(path)
    assert "is not a dmem database" in one_sentence(error, path)
    assert path.read_bytes() == before


def test_damaged_database_is_one_sentence(path: Path) -> None:
    with Store.open(path) as store:
        stored.conversation(store, 30)
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(byte ^ 0x5A for byte in data[4096:])
    path.write_bytes(data)
    with pytest.raises(StoreError) as error, Store.open(path) as store:
        for one in conversations.all_of(store):
            turns.all_of(store, one.id)
    assert "is damaged" in one_sentence(error, path)


@pytest.mark.parametrize("open_store", [Store.open, Store.read])
def test_damage_that_sqlite_quotes_is_one_sentence(path: Path, open_store: Callable[[Path], Store]) -> None:
    with Store.open(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET name = CAST(? AS TEXT), sql = 'CREATE' WHERE name = 'turns'", [b"t\xff"]
        )
        connection.commit()
    with pytest.raises(StoreError) as error:
        open_store(path)
    assert "is damaged" in one_sentence(error, path)


def test_removed_database_is_noticed_before_a_turn_is_lost_in_it(path: Path) -> None:
    with Store.open(path) as store:
        talk = stored.conversation(store, 1)
        path.unlink()
        with pytest.raises(StoreError) as error:
            turns.commit(store, talk, stored.exchange(2))
        assert "was removed or replaced" in one_sentence(error, path)


def test_folder_in_place_of_the_database_is_one_sentence(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError) as error:
        Store.open(path)
    one_sentence(error, path)


@posix
@pytest.mark.parametrize("what", ["folder", "database"])
def test_read_only_place_is_one_sentence_and_loses_nothing(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.db"
        os.chmod(folder, 0o755)
        if what == "database":
            with Store.open(path) as store:
                stored.conversation(store)
            path.chmod(0o444)
        os.chmod(folder, 0o555)
        code = (
            "import os, sys\n"
            "from deltamem_cli.store.database import Store\n"
            "from deltamem_cli.store.errors import StoreError\n"
            "from deltamem_cli.store import profiles\n"
            "Store.memory().close()\n"  # imports everything while it may still read the interpreter's files
            "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "try:\n"
            "    with Store.open(sys.argv[1]) as store: profiles.ensure(store, 'other')\n"
            "except StoreError as error: print(error)\n"
        )
        child = stored.run(code, path)
        shown, trouble = child.communicate(timeout=60)
        os.chmod(folder, 0o755)
        assert trouble == "" and shown.count("\n") == 1 and str(path) in shown and "writable" in shown, shown + trouble
        if what == "database":
            path.chmod(0o644)
            with Store.open(path) as store:
                assert conversations.all_of(store)[0].n_turns == 3


def test_many_processes_may_begin_at_once_on_no_database(path: Path) -> None:
    code = (
        "import sys, stored\n"
        "from deltamem_cli.store.database import Store\n"
        "sys.stdin.readline()\n"
        "with Store.open(sys.argv[1]) as store: stored.conversation(store, 3)\n"
    )
    children = [stored.run(code, path) for _ in range(5)]
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, trouble = child.communicate(timeout=120)
        assert child.returncode == 0, trouble
    with Store.open(path) as store:
        found = conversations.all_of(store)
        assert [one.n_turns for one in found] == [3] * 5 and len(profiles.all_of(store)) == 1


def test_switching_a_new_file_to_wal_at_once_never_fails(tmp_path: Path) -> None:
    """SQLite's own busy timeout does not cover this: some of these would be told that the database is locked."""
    failures: list[Exception] = []

    def switch(path: Path, together: threading.Barrier) -> None:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        connection.execute("PRAGMA user_version").fetchone()
        together.wait()
        try:
            database._use_wal(connection)
        except sqlite3.Error as error:
            failures.append(error)
        connection.close()

    for attempt in range(150):
        path, together = tmp_path / f"{attempt}.db", threading.Barrier(6)
        path.touch()
        threads = [threading.Thread(target=switch, args=(path, together)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_store_is_imported_without_sqlite_utils_and_numpy() -> None:
    modules = "database locks profiles conversations turns states search reset bundle portable fingerprints location"
    code = "import sys\n" + "\n".join(f"import deltamem_cli.store.{name}" for name in modules.split())
    code += "\nprint([name for name in ('sqlite_utils', 'numpy', 'rich', 'typer') if name in sys.modules])"
    shown, trouble = stored.run(code).communicate(timeout=60)
    assert (shown, trouble) == ("[]\n", "")


def test_ids_sort_by_age_even_within_a_millisecond() -> None:
    ids = [new_id() for _ in range(2000)]
    assert ids == sorted(set(ids)) and {len(one) for one in ids} == {26}


def test_stores_that_open_and_close_beside_another_leave_it_its_locks(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    other = "import sys; from deltamem_cli.store.database import Store\nwith Store.open(sys.argv[1]): pass"
    with Store.open(path) as store:
        talk = stored.conversation(store, 2)
        Store.open(path).close()
        Store.read(path).close()
        # a program that believes itself the last to close takes the WAL away
        assert stored.run(other, path).wait() == 0
        turns.commit(store, talk, stored.exchange(3))
        with Store.open(path) as beside:
            assert len(turns.all_of(beside, talk.id)) == 3
    with Store.open(path) as store:
        assert len(turns.all_of(store, talk.id)) == 3
        assert store.check() == []
