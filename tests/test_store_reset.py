"""Deleted is gone: after a reset the raw files contain neither the old states nor the old words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import stored

from deltamem_cli.store import bundle, conversations, locks, profiles, search, states, turns, wiping
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import ConversationBusy, StoreError
from deltamem_cli.store.reset import extent, reset
from deltamem_cli.store.wiping import Typed

SECRET = "xylophonequagga"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        yield store


def wipe(store: Store) -> list[Typed]:
    """Returns the typed lines that were to be erased."""
    asked: list[Typed] = []
    wiping.wipe(store, asked.extend, patience=0.05)
    return asked


def traces_of_states(path: Path, seeds: range) -> int:
    """How many 16-byte pieces of the states of these seeds are somewhere in the files."""
    raw = stored.raw_bytes(path)
    pieces = [blob[i : i + 16] for seed in seeds for blob in [stored.snapshot(seed).state.tobytes()]
              for i in range(0, len(blob), 160)]  # fmt: skip
    return sum(piece in raw for piece in pieces)


def traces_of(path: Path, word: str) -> int:
    return stored.raw_bytes(path).lower().count(word.lower().encode())


def secret_conversation(store: Store, n_turns: int = 25, profile: str = "work") -> str:
    """Long enough that pages split and FTS segments merge, with turns undone in between."""
    talk = conversations.new(profiles.ensure(store, profile))
    for number in range(1, n_turns + 1):
        turns.commit(store, talk, stored.exchange(number, user=f"{SECRET}{number} " + "and so on " * (number * 7 % 90)))
        if number % 9 == 0:
            turns.undo(store, talk.id)
            turns.commit(store, talk, stored.exchange(number, user=f"{SECRET}{number}"))
    conversations.rename(store, talk.id, f"On {SECRET}")
    return talk.id


def test_reset_leaves_no_byte_of_the_states_and_keeps_the_transcript(path: Path, store: Store) -> None:
    talk = conversations.get(store, secret_conversation(store))
    assert traces_of_states(path, range(1, 26)) > 100, "the test must see what it looks for"
    gone = reset(store, [talk], transcript=False)
    assert (gone.states, gone.turns) == (25, 0)
    assert {typed.since for typed in wipe(store)} == {9, 18}, "a reset that keeps the transcript keeps what was typed"
    assert traces_of_states(path, range(1, 26)) == 0
    assert traces_of(path, SECRET) > 0 and len(turns.all_of(store, talk.id)) == 25
    assert states.latest(store, talk.id) is None
    assert len(search.search(store, f"{SECRET}3")) == 1


def test_reset_with_transcript_leaves_no_byte_of_the_words_either(path: Path, store: Store) -> None:
    kept = stored.conversation(store, 3, word="keepsake")
    talk = conversations.get(store, secret_conversation(store))
    assert traces_of(path, SECRET) > 25
    reset(store, [talk], transcript=True)
    wipe(store)
    assert traces_of(path, SECRET) == 0
    assert traces_of(path, "quagga") == 0
    # the other conversation has the same seeds 1 to 3
    assert traces_of_states(path, range(4, 26)) == 0
    assert [turn.messages[0].text for turn in turns.all_of(store, kept.id)] == [f"keepsake {n}" for n in (1, 2, 3)]
    assert len(search.search(store, "keepsake")) == 3
    assert path.with_name("memory.db-wal").stat().st_size < 20_000, "it was cut to nothing before the mark went"


def test_words_in_cells_that_pages_left_behind_are_wiped_too(path: Path, store: Store) -> None:
    """secure_delete alone leaves some: b-tree pages that were rearranged keep copies. This order of writes has them."""
    random = np.random.default_rng(2)
    private, other = (conversations.new(profiles.ensure(store, name)) for name in ("work", "home"))
    for number in range(1, 120):
        for talk, word in ((private, SECRET[:10]), (other, "other")):
            text = f"{word}{number} " + f"{word} pad " * int(random.integers(1, 60))
            settings = {"x": word * int(random.integers(1, 20))}
            turns.commit(store, talk, stored.exchange(number, user=text, settings=settings))
        if number % 5 == 0:
            turns.undo(store, private.id, int(random.integers(1, 4)))
    reset(store, [private], transcript=True)
    wipe(store)
    assert traces_of(path, SECRET[:10]) == 0


def test_reset_of_the_last_conversation_does_not_bring_up_an_older_one(store: Store) -> None:
    stored.conversation(store, 2, word="older")
    talk = stored.conversation(store, 2)
    reset(store, [talk], transcript=True)
    latest = conversations.latest(store, profiles.get(store, "work"))
    assert latest and latest.id == talk.id and latest.n_turns == 0
    assert turns.commit(store, latest, stored.exchange(1)).number == 1


def test_undone_and_forgotten_words_are_gone_once_wiped(path: Path, store: Store) -> None:
    talk = stored.conversation(store, 6, word=SECRET)
    turns.undo(store, talk.id, 2)
    turns.replace_after_forgetting(store, talk.id, [2], {n: turns.Replayed(stored.snapshot(100 + n)) for n in (3, 4)})
    wipe(store)
    assert traces_of(path, f"{SECRET} 2") == traces_of(path, f"{SECRET} 5") == traces_of(path, f"{SECRET} 6") == 0
    assert traces_of(path, f"{SECRET} 3") == 1
    assert traces_of_states(path, range(2, 7)) == 0
    assert [turn.number for turn in turns.all_of(store, talk.id)] == [1, 3, 4]


def test_deleted_profile_leaves_no_byte_once_wiped(path: Path, store: Store) -> None:
    secret_conversation(store, profile="private")
    profiles.change(store, "private", system=f"about {SECRET}")
    profiles.delete(store, "private")
    wipe(store)
    assert traces_of(path, SECRET) == 0 and traces_of(path, "private") == 0
    assert traces_of_states(path, range(1, 26)) == 0


def test_extent_says_beforehand_what_goes_and_which_copies_stay(store: Store) -> None:
    talk = stored.conversation(store, 3)
    copy = bundle.branch(store, talk, profiles.get(store, "work"), at=2)
    told = extent(store, [talk], transcript=True)
    assert (told.states, told.state_bytes, told.turns, told.messages) == (3, 3 * 3 * 256, 3, 6)
    assert told.branches == [copy.id]
    assert reset(store, [talk], transcript=True) == told
    assert np.array_equal(states.after(store, copy.id, 2).state, stored.snapshot(2).state)  # type: ignore[union-attr]


def test_reset_of_a_conversation_in_use_changes_nothing(path: Path, store: Store) -> None:
    first, second = stored.conversation(store, 1), stored.conversation(store, 1)
    with Store.open(path) as other:
        locks.hold(other, second.id)
        with pytest.raises(ConversationBusy):
            reset(store, [first, second], transcript=False)
    assert states.latest(store, first.id) and states.latest(store, second.id)


def test_wipe_that_a_reader_prevents_stays_marked_and_is_done_by_the_next_one(path: Path, store: Store) -> None:
    talk = conversations.get(store, secret_conversation(store))
    with Store.open(path) as reader:
        with reader.reading():
            turns.all_of(reader, talk.id)
            assert reset(store, [talk], transcript=True).turns == 25
            with pytest.raises(StoreError, match="could not be wiped yet.*the next command wipes them"):
                wipe(store)
        assert wiping.pending(store)
        wipe(store)
        assert traces_of(path, SECRET) == 0 and not wiping.pending(store)


@pytest.mark.parametrize("delete", ["undo", "forget", "replace", "reset", "transcript", "conversation", "profile"])
def test_every_deletion_is_marked_in_its_own_transaction(store: Store, delete: str) -> None:
    talk = stored.conversation(store, 3)
    deletions = {
        "undo": lambda: turns.undo(store, talk.id, 2),
        "forget": lambda: turns.replace_after_forgetting(store, talk.id, [3], {}),
        "replace": lambda: turns.commit(store, talk, stored.exchange(9), instead_of=3),
        "reset": lambda: reset(store, [talk], transcript=False),
        "transcript": lambda: reset(store, [talk], transcript=True),
        "conversation": lambda: conversations.delete(store, talk.id),
        "profile": lambda: profiles.delete(store, "work"),
    }

    def undone() -> None:
        with store.transaction():
            deletions[delete]()
            assert wiping.pending(store)
            raise KeyError

    with pytest.raises(KeyError):
        undone()
    assert not wiping.pending(store)
    deletions[delete]()
    assert wiping.pending(store)
    wipe(store)
    assert not wiping.pending(store)


def test_a_mark_names_the_typed_lines_until_they_are_erased(path: Path, store: Store) -> None:
    talk = stored.conversation(store, 4, word=SECRET)

    def refuses(_: object) -> None:
        raise PermissionError(13, "Permission denied", "history")

    turns.replace_after_forgetting(store, talk.id, [2], {n: turns.Replayed(stored.snapshot(n)) for n in (3, 4)})
    turns.undo(store, talk.id)
    with pytest.raises(StoreError, match="still in history .Permission denied.*the next command"):
        wiping.wipe(store, refuses)
    assert traces_of_states(path, range(4, 5)) == 0, "that lines can't be erased keeps nothing else from being wiped"
    assert wipe(store) == [
        Typed(talk.id, [2], None, [f"{SECRET} 2"], []),
        Typed(talk.id, [4], 4, [f"{SECRET} 4"], []),  # what was typed after the last turn is of no other one
    ]
    assert wipe(store) == []
    assert traces_of(path, f"{SECRET} 2") == traces_of(path, f"{SECRET} 4") == 0


def test_the_typed_system_prompt_goes_with_the_last_turn_that_has_it(store: Store) -> None:
    talk = conversations.new(profiles.ensure(store, "work"))
    for number, system in enumerate(["first", "second", "second", "second"]):
        turns.commit(store, talk, stored.exchange(number, context={"run": "r", "system": system}))
    other = stored.conversation(store, 1)
    turns.undo(store, talk.id)
    turns.commit(store, talk, stored.exchange(8, context={"system": "second"}), instead_of=3)
    assert [typed.systems for typed in wipe(store)] == [[], []]
    turns.commit(store, talk, stored.exchange(9, context={"system": "third"}), instead_of=3)
    turns.commit(store, other, stored.exchange(9, context={"system": "third"}))
    turns.undo(store, talk.id, 2)
    assert [typed.systems for typed in wipe(store)] == [[], ["second"]]
    reset(store, [conversations.get(store, one.id) for one in (talk, other)], transcript=True)
    assert [typed.systems for typed in wipe(store)] == [["first"], ["third"]]


def test_a_damaged_turn_can_be_deleted_too(store: Store) -> None:
    talk = stored.conversation(store, 2)
    with store.transaction():
        store.execute("UPDATE turns SET context = '{'")
    reset(store, [talk], transcript=True)
    wipe(store)
