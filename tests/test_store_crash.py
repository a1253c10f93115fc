"""Killed, out of space, out of luck: what was committed is there, turn and state together, and nothing half."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import stored

from deltamem_cli.store import conversations, locks, profiles, states, turns
from deltamem_cli.store.database import BUSY_SECONDS, Store
from deltamem_cli.store.errors import StoreError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")

# Commits turns for ever and says each number once its commit has returned. Undoes and regenerates now and then.
WRITER = """
import sys, stored
from deltamem_cli.store import conversations, locks, turns
from deltamem_cli.store.database import Store
store = Store.open(sys.argv[1])
talk = conversations.get(store, sys.argv[2])
locks.hold(store, talk.id)
number = turns.last_number(store, talk.id)
while True:
    number += 1
    turns.commit(store, talk, stored.exchange(number, user=f'question {number} ' + 'x' * 3000))
    print(number, flush=True)
    if number % 7 == 0:
        turns.commit(store, talk, stored.exchange(number, user=f'question {number} again'), instead_of=number)
"""


def assert_turns_and_states_agree(store: Store, conversation: str) -> int:
    """Every turn n asks 'question n' and has the state of seed n; returns the last number."""
    every = turns.all_of(store, conversation)
    assert [turn.number for turn in every] == list(range(1, len(every) + 1))
    for turn in every:
        assert turn.messages[0].text.split()[:2] == ["question", str(turn.number)] and len(turn.messages) == 2
        found = states.after(store, conversation, turn.number)
        assert found and found.turn == turn.number
        assert np.array_equal(found.state, stored.snapshot(turn.number).state)
    assert store.check() == []
    return len(every)


def test_kill_at_random_moments_loses_no_committed_turn_and_leaves_no_half_one(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    path = tmp_path / "memory.db"
    random = np.random.default_rng(7)
    with Store.open(path) as store:
        talk = stored.conversation(store, 1)
    for _ in range(int(pytestconfig.getoption("--kills")) // 2):
        child = stored.run(WRITER, path, talk.id)
        assert child.stdout
        first = child.stdout.readline()
        assert first, child.communicate()[1]
        acknowledged = int(first)
        time.sleep(random.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        rest, trouble = child.communicate()
        assert child.returncode == -signal.SIGKILL, trouble
        whole = [int(line) for line in rest.split("\n")[:-1] if line]  # the last may be cut by the kill
        acknowledged = whole[-1] if whole else acknowledged
        with Store.open(path) as store:
            locks.hold(store, talk.id)
            last = assert_turns_and_states_agree(store, talk.id)
        assert last >= acknowledged


def test_full_database_says_so_and_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with Store.open(path) as store:
        talk = stored.conversation(store, 3)
        pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
        store.connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
        with pytest.raises(StoreError, match="the disk is full") as error:
            turns.commit(store, talk, stored.exchange(4, user="y" * 100_000))
        assert str(path) in str(error.value) and "what was saved before is intact" in str(error.value)
        assert assert_turns_and_states_agree(store, talk.id) == 3
        store.connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        turns.commit(store, talk, stored.exchange(4))
        assert assert_turns_and_states_agree(store, talk.id) == 4


ON_A_FULL_DISK = """
import sys, stored
from pathlib import Path
from deltamem_cli.store import conversations, profiles, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError
path = Path(sys.argv[1]) / "memory.db"
with Store.open(path) as store:
    talk = stored.conversation(store, 3)
    number = 3
    try:
        while True:
            number += 1
            turns.commit(store, talk, stored.exchange(number))
    except StoreError as error: print(error)
    print(number - 1)
from test_store_crash import assert_turns_and_states_agree
(Path(sys.argv[1]) / "ballast").unlink()
with Store.open(path) as store: print(assert_turns_and_states_agree(store, talk.id))
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="a disk of our own needs unshare")
def test_really_full_disk_says_so_and_keeps_what_was_committed(tmp_path: Path) -> None:
    # a file system of one megabyte in a mount namespace that only the child sees
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && head -c 300000 /dev/zero > {tmp_path}/ballast"
    own_disk = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*own_disk, "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount in a user namespace")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    child = subprocess.run(
        [*own_disk, "sh", "-c", mount + ' && exec "$@"', "sh", sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    said, acknowledged, found = child.stdout.splitlines()
    assert "the disk is full" in said and "memory.db" in said
    assert int(found) == int(acknowledged) > 3


def test_file_size_limit_is_one_sentence_and_keeps_what_was_committed(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, stored\n"
        "from deltamem_cli.store import turns\n"
        "from deltamem_cli.store.database import Store\n"
        "from deltamem_cli.store.errors import StoreError\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    talk = stored.conversation(store, 3)\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))\n"
        "    number = 3\n"
        "    try:\n"
        "        while True:\n"
        "            number += 1; turns.commit(store, talk, stored.exchange(number))\n"
        "    except StoreError as error: print(error)\n"
        "    print(number - 1, talk.id)\n"
    )
    shown, trouble = stored.run(code, tmp_path / "memory.db").communicate(timeout=120)
    assert trouble == ""
    said, last = shown.splitlines()
    assert "what was saved before is intact" in said
    number, conversation = last.split()
    with Store.open(tmp_path / "memory.db") as store:
        assert assert_turns_and_states_agree(store, conversation) == int(number)


def test_interrupt_inside_a_commit_leaves_no_half_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "memory.db") as store:
        talk = stored.conversation(store, 2)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(states, "insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            turns.commit(store, talk, stored.exchange(3))
        monkeypatch.undo()
        assert assert_turns_and_states_agree(store, talk.id) == 2
        assert stored.holder(store, talk.id) is None
        turns.commit(store, talk, stored.exchange(3))


def test_commit_is_quick_while_another_process_reads_a_moment_for_long(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with Store.open(path) as store, Store.open(path) as reader:
        talk = stored.conversation(store, 3)
        with reader.reading():
            assert len(turns.all_of(reader, talk.id)) == 3
            started = time.perf_counter()
            for number in range(4, 14):
                turns.commit(store, talk, stored.exchange(number))
            assert time.perf_counter() - started < BUSY_SECONDS / 2
            assert len(turns.all_of(reader, talk.id)) == 3  # one moment
        assert len(turns.all_of(reader, talk.id)) == 13


def test_committed_turns_reach_the_disk_without_being_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, synced = threading.Event(), []
    fsync = os.fsync

    def slow_fsync(file: int) -> None:
        slow.wait(10)
        fsync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    path = tmp_path / "memory.db"
    store = Store.open(path)
    stored.conversation(store, 5)  # while the disk hangs
    assert synced == []
    slow.set()
    written = path.with_name("memory.db-wal").stat().st_size
    store.close()
    assert synced and synced[-1] == written


def test_wal_does_not_grow_for_ever_in_a_long_session(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with Store.open(path) as store:
        talk = stored.conversation(store, 1)
        for number in range(2, 42):
            turns.commit(store, talk, stored.exchange(number, user="z" * 1_000_000))
            if store._flusher:
                store._flusher.wait()
        assert path.with_name("memory.db-wal").stat().st_size < 20_000_000


def test_profile_of_a_conversation_in_use_is_not_deleted_under_it(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with Store.open(path) as store, Store.open(path) as other:
        talk = stored.conversation(store, 1)
        locks.hold(store, talk.id)
        with pytest.raises(StoreError, match="in use"):
            profiles.delete(other, "work")
        assert conversations.get(other, talk.id).n_turns == 1
