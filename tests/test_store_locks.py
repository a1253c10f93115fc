"""One process at a time on a conversation, and no waiting between conversations; with real second processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import stored

from deltamem_cli.store import conversations, locks, turns
from deltamem_cli.store.database import BUSY_SECONDS, Store
from deltamem_cli.store.errors import ConversationBusy

HOLD = (
    "import sys\n"
    "from deltamem_cli.store import locks\n"
    "from deltamem_cli.store.database import Store\n"
    "store = Store.open(sys.argv[1]); locks.hold(store, sys.argv[2])\n"
    "print('held', flush=True); sys.stdin.readline(); store.close(); print('closed', flush=True)\n"
    "sys.stdin.readline()\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        yield store


def holding_process(path: Path, conversation: str) -> subprocess.Popen[str]:
    child = stored.run(HOLD, path, conversation)
    assert child.stdout and child.stdout.readline() == "held\n"
    return child


def test_second_process_learns_who_holds_the_conversation_and_may_still_read(path: Path, store: Store) -> None:
    talk = stored.conversation(store, 2)
    child = holding_process(path, talk.id)
    try:
        with pytest.raises(ConversationBusy) as error:
            locks.hold(store, talk.id)
        assert error.value.holder.pid == child.pid and error.value.holder.host and error.value.holder.since
        text = str(error.value)
        assert str(child.pid) in text and "--read-only" in text and "--to NEW" in text and "locked" not in text
        for change in (
            lambda: turns.commit(store, talk, stored.exchange(3)),
            lambda: turns.undo(store, talk.id),
            lambda: conversations.delete(store, talk.id),
            lambda: turns.replace_after_forgetting(store, talk.id, [2], {}),
        ):
            with pytest.raises(ConversationBusy):
                change()
        assert [turn.number for turn in turns.all_of(store, talk.id)] == [1, 2]
        holder = stored.holder(store, talk.id)
        assert holder and holder.pid == child.pid
    finally:
        child.kill()
        child.communicate()


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_conversation_of_a_killed_process_is_free_at_once(path: Path, store: Store) -> None:
    talk = stored.conversation(store, 1)
    child = holding_process(path, talk.id)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert locks.lock_path(store, talk.id).exists(), "the file stays behind, the lock must not"
    locks.hold(store, talk.id)
    assert turns.commit(store, talk, stored.exchange(2)).number == 2


def test_closing_the_store_frees_the_conversation_while_the_process_lives(path: Path, store: Store) -> None:
    talk = stored.conversation(store, 1)
    child = holding_process(path, talk.id)
    assert child.stdin and child.stdout
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "closed\n"
    locks.hold(store, talk.id)
    child.communicate("\n")


def test_holding_twice_in_one_process_is_two_holders(path: Path, store: Store) -> None:
    talk = stored.conversation(store, 1)
    locks.hold(store, talk.id)
    locks.hold(store, talk.id)  # the same store may ask again
    with Store.open(path) as other, pytest.raises(ConversationBusy):
        locks.hold(other, talk.id)
    locks.let_go(store, talk.id)
    assert stored.holder(store, talk.id) is None
    with Store.open(path) as other:
        locks.hold(other, talk.id)


def test_only_one_of_many_racing_processes_gets_the_conversation(path: Path, store: Store) -> None:
    talk = stored.conversation(store, 1)
    code = (
        "import sys, time\n"
        "from deltamem_cli.store import locks\n"
        "from deltamem_cli.store.database import Store\n"
        "from deltamem_cli.store.errors import ConversationBusy\n"
        "path = sys.argv[3]\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    for _ in range(300):\n"
        "        try:\n"
        "            with locks.holding(store, sys.argv[2]):\n"
        "                with open(path, 'x'): pass\n"  # fails when another one is inside
        "                time.sleep(0.0002)\n"
        "                import os; os.unlink(path)\n"
        "        except ConversationBusy: pass\n"
    )
    children = [stored.run(code, path, talk.id, path.with_name("inside")) for _ in range(3)]
    for child in children:
        assert child.stdout and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, trouble = child.communicate(timeout=120)
        assert child.returncode == 0, trouble


def test_processes_on_different_conversations_never_wait_for_each_other(path: Path, store: Store) -> None:
    held, other = stored.conversation(store, 1), stored.conversation(store, 1)
    child = holding_process(path, held.id)
    try:
        started = time.perf_counter()
        for number in range(2, 30):
            turns.commit(store, other, stored.exchange(number))
        assert time.perf_counter() - started < BUSY_SECONDS / 2
    finally:
        child.kill()
        child.communicate()


def test_many_writers_at_once_all_get_their_turns_stored(path: Path, store: Store) -> None:
    code = (
        "import sys, stored\n"
        "from deltamem_cli.store.database import Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    for _ in range(5): stored.conversation(store, 12)\n"
    )
    children = [stored.run(code, path) for _ in range(4)]
    for child in children:
        _, trouble = child.communicate(timeout=120)
        assert child.returncode == 0, trouble
    assert [talk.n_turns for talk in conversations.all_of(store)] == [12] * 20


def test_lock_files_of_closed_conversations_do_not_pile_up(path: Path, store: Store) -> None:
    for _ in range(3):
        stored.conversation(store, 2)
    assert list(path.with_name("memory.db.locks").iterdir()) == []
