"""Mutated rows: whatever stands in a column, each command reads it or says in one sentence what is wrong."""

from __future__ import annotations

import io
import random
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # the helpers of the tests

import stored

from deltamem_cli import cli
from deltamem_cli.store import turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import TurnContext

SEED = 15
TABLES = ("profiles", "conversations", "turns", "messages", "states", "runs", "prompts")
KEYS = ("rowid", "turn_id", "conversation_id", "profile_id", "run_id", "prompt_id")  # SQLite itself keeps these
VALUES: list[Any] = [
    None, 0, -1, 1, 3, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 0.5, 1e308, float("inf"),
    "", "x", "\0", "\x1b[2J", "3", "../../x", "9999-99-99", "0001-01-01T00:00:00Z", "999999999999", "里斯本 🙂" * 50,
    b"", b"\x01", b"\xff\xfe\xfd", b"\xff" * 12, b"\0" * 768, b"\0\0\xc0\x7f" * 192,
    "[", "{", "[]", "{}", "null", "1", '"x"', "[1]", "[2, 3, 5]", "[5, 3, 2]", "[true, 3, 5]", '{"a": []}', '{"a": 1e999}',
    "[" * 100_000, '{"head": "x"}', '{"head": [-1]}', '{"replayed": [0.5]}', '{"system": 3}', '{"run": null}',
    '{"opening": {}}', '{"temperature": "hot"}', '{"ctx_size": -1}', '{"max_tokens": NaN}', '{"reply": "x"}',
]  # fmt: skip
COMMANDS = (
    "log list --all", "log show", "log show --turn 2", "log search question", "log search 里斯本 --all", "log export --all",
    "log export --format json", "memory inspect", "memory inspect --json", "memory history", "memory history --json",
    "memory diff 1 3", "memory export {out}/x.dmem --transcript -f", "memory undo --dry-run", "memory reset --dry-run --all",
    "memory copy --to other --dry-run", "memory copy --to NEW", "memory undo -y", "profile list", "profile show work",
    "profile set work -o seed=1", "profile delete work -y", "config list", "memory reset --transcript -y", "memory scrub",
    "memory probe x -m {out}/none.gguf", "ask -m {out}/none.gguf x", "chat -m {out}/none.gguf x",
)  # fmt: skip


def without_rules(path: Path) -> None:
    """The same tables with no constraint on what stands in them, as damage knows none."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        for old, new in ((" NOT NULL", ""), ("CHECK (", "CHECK (1 OR ")):
            connection.execute(
                f"UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name IN {TABLES}",
                [old, new],
            )
        connection.commit()


def mutate(path: Path, rng: random.Random) -> str:
    """Puts values where they do not belong. Returns what was done."""
    done = []
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            table = rng.choice(TABLES)
            columns = [row[1].decode() for row in connection.execute(f"PRAGMA table_info({table})")]
            column = rng.choice(
                [name for name in columns if (name, table) != ("id", "conversations") or rng.random() < 0.2]
            )
            if column in KEYS or (column == "id" and table != "conversations"):
                continue
            value = rng.choice(VALUES)
            as_text = isinstance(value, bytes) and rng.random() < 0.3  # a text that is no UTF-8
            where = "" if rng.random() < 0.5 else " WHERE rowid = (SELECT max(rowid) FROM main." + table + ")"
            try:
                connection.execute(
                    f"UPDATE {table} SET {column} = {'CAST(? AS TEXT)' if as_text else '?'}{where}", [value]
                )
            except sqlite3.Error as error:  # two rows with one name, or the search index refuses
                done.append(str(error))
                continue
            done.append(f"{table}.{column} = {value!r:.60}{' as text' if as_text else ''}{where}")
        connection.commit()
    return "; ".join(done)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.db"
    with Store.open(path) as store:
        talk = stored.conversation(store, 2)
        shown = TurnContext(run="r2", system="Be terse.", head=[1, 2], opening=[1], replayed=[1, 2])
        turns.commit(store, talk, stored.exchange(3, context=shown))
        stored.conversation(store, 1, word="里斯本")
        stored.conversation(store, 2, profile="default")
    without_rules(path)
    return path


def test_mutated_rows_are_read_or_refused_in_a_sentence(
    sound: Path, tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    home, many = tmp_path / "home", int(pytestconfig.getoption("--many"))
    home.mkdir()
    monkeypatch.setenv("DMEM_HOME", str(home))
    monkeypatch.setenv("DMEM_PROFILE", "work")
    rng = random.Random(SEED)
    for number in range(many):
        for old in home.glob("memory.db*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copyfile(sound, home / "memory.db")
        what = mutate(home / "memory.db", rng)
        command = rng.choice(COMMANDS)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        start = time.monotonic()
        code = cli.main(command.format(out=tmp_path).split(" "))
        said = capsys.readouterr().err
        told = (number, what, command, said)
        assert time.monotonic() - start < 10, told
        assert code in (0, 1, 2), told
        assert "Traceback" not in said and "should not" not in said and "Unexpected" not in said, told
        if code:
            *before, sentence = said.rstrip().split("\n")
            assert sentence and (not before or command.startswith(("memory undo", "memory reset"))), (
                told
            )  # what would go
