"""Turns and states: committed together, read back as they were, undone to the byte, replaced whole."""

from __future__ import annotations

import sqlite3
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stored

from deltamem_cli.store import bundle, conversations, ids, profiles, search, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import FingerprintMismatch, NotFound, StoreError
from deltamem_cli.store.fingerprints import check_fingerprints
from deltamem_cli.store.records import Identity, Message, Profile, Snapshot


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "memory.db")


def state_bytes(found: Snapshot | None) -> bytes:
    return b"" if found is None else found.state.tobytes()


def test_committed_turn_reads_back_as_it_was(store: Store) -> None:
    talk = conversations.new(profiles.ensure(store, "work"))
    given = stored.exchange(5, user="Ünï🦓 \x1b[1m", interrupted=True, kind="remember")
    turn = turns.commit(store, talk, given)
    assert turn == turns.get(store, talk.id, 1) == turns.all_of(store, talk.id)[0]
    assert given.snapshot is not None
    for name in ("model", "adapter", "settings", "context", "interrupted", "kind", "prompt_tokens", "reply_tokens",
                 "written_tokens", "timings"):  # fmt: skip
        assert getattr(turn, name) == getattr(given, name), name
    assert list(turn.messages) == [
        Message("user", "Ünï🦓 \x1b[1m", [1, 2, 5], [0, 0, -1]),
        Message("assistant", "answer 5", [7, 8], None),
    ]
    found = states.latest(store, talk.id)
    assert found and found.turn == 1 and found.layers == stored.LAYERS and found.adapter == stored.ADAPTER
    assert found.state.dtype == np.float32 and state_bytes(found) == given.snapshot.state.tobytes()


@pytest.mark.parametrize("shape", [(30, 1, 8, 8), (36, 4, 8, 8), (2, 1, 64, 64), (1, 1, 1, 1)])
def test_state_of_any_shape_reads_back_to_the_byte(store: Store, shape: tuple[int, int, int, int]) -> None:
    n_layers, heads, rank, _ = shape
    talk = conversations.new(profiles.ensure(store, "work"))
    given = stored.snapshot(1, list(range(n_layers)), heads, rank)
    turns.commit(store, talk, stored.exchange(1, snapshot=given))
    assert state_bytes(states.latest(store, talk.id)) == given.state.tobytes()


def test_turn_whose_state_cannot_be_stored_is_not_stored_either(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = stored.conversation(store, 2)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(states, "insert", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        turns.commit(store, talk, stored.exchange(3, user="lost"))
    assert [turn.number for turn in turns.all_of(store, talk.id)] == [1, 2]
    assert search.search(store, "lost") == []


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_state_that_is_not_finite_is_refused_with_its_turn(store: Store, number: float) -> None:
    talk = stored.conversation(store, 1)
    bad = stored.snapshot(2)
    bad.state[1, 0, 3, 3] = number
    with pytest.raises(StoreError, match="not finite"):
        turns.commit(store, talk, stored.exchange(2, snapshot=bad))
    assert turns.last_number(store, talk.id) == 1


def test_new_conversation_is_stored_with_its_first_turn_and_not_before(store: Store) -> None:
    profile = profiles.ensure(store, "work")
    talk = conversations.new(profile)
    assert conversations.latest(store, profile) is None
    turns.commit(store, talk, stored.exchange(1))
    latest = conversations.latest(store, profile)
    assert latest and latest.id == talk.id


def test_last_conversation_is_the_one_that_was_last_changed(store: Store) -> None:
    first, second = stored.conversation(store, 2), stored.conversation(store, 1)
    work = profiles.get(store, "work")

    def last() -> str:
        latest = conversations.latest(store, work)
        assert latest
        return latest.id

    assert last() == second.id
    turns.commit(store, first, stored.exchange(3))
    assert last() == first.id
    turns.undo(store, second.id)
    assert last() == second.id


@pytest.mark.parametrize("years", [-30, 30], ids=["set back", "ahead"])
def test_last_conversation_is_no_matter_of_the_clock(store: Store, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    profile = profiles.ensure(store, "work")

    def order() -> list[str]:
        latest = conversations.latest(store, profile)
        found = [one.id for one in conversations.all_of(store)]
        assert latest and latest.id == found[0]
        return found

    first = stored.conversation(store, 1)
    with monkeypatch.context() as wrong:
        off = years * 365 * 86400
        clock, moment = time.time_ns, datetime(2026 + years, 1, 1, tzinfo=timezone.utc)
        wrong.setattr(ids, "_last", (0, 0))
        wrong.setattr(time, "time_ns", lambda: clock() + off * 10**9)
        wrong.setattr(ids, "datetime", SimpleNamespace(now=lambda zone: moment))
        second = stored.conversation(store, 1)
        assert second.updated.startswith(str(2026 + years)) and (second.id < first.id) == (years < 0)
        assert order() == [second.id, first.id]
    third = stored.conversation(store, 1)
    assert order() == [third.id, second.id, first.id]
    turns.commit(store, first, stored.exchange(2))
    assert order() == [first.id, third.id, second.id]
    copy = bundle.branch(store, second, profile)
    assert order() == [copy.id, first.id, third.id, second.id]
    conversations.delete(store, copy.id)
    turns.undo(store, third.id)
    assert order() == [third.id, first.id, second.id]


def test_turn_without_state_leaves_the_memory_as_the_last_one_left_it(store: Store) -> None:
    talk = stored.conversation(store, 2)
    turns.commit(store, talk, stored.exchange(3, snapshot=None, adapter=None))
    found = states.latest(store, talk.id)
    assert found and found.turn == 2
    assert state_bytes(states.before(store, talk.id, 3)) == state_bytes(found)
    assert states.before(store, talk.id, 1) is None


def test_undo_restores_the_state_from_before_to_the_byte_and_deletes_the_texts(store: Store) -> None:
    talk = stored.conversation(store, 4, word="wombat")
    gone = turns.undo(store, talk.id, 2)
    assert [turn.number for turn in gone] == [3, 4]
    assert state_bytes(states.latest(store, talk.id)) == stored.snapshot(2).state.tobytes()
    assert sorted(hit.turn for hit in search.search(store, "wombat")) == [1, 2]
    assert turns.commit(store, talk, stored.exchange(9)).number == 3
    turns.undo(store, talk.id, 3)
    assert states.latest(store, talk.id) is None


@pytest.mark.parametrize("n", [0, -1, 4])
def test_undo_of_turns_that_are_not_there_changes_nothing(store: Store, n: int) -> None:
    talk = stored.conversation(store, 3)
    with pytest.raises(StoreError, match="Can't undo"):
        turns.undo(store, talk.id, n)
    assert turns.last_number(store, talk.id) == 3


def test_regenerated_turn_takes_the_place_of_the_last_one(store: Store) -> None:
    talk = stored.conversation(store, 3)
    turn = turns.commit(store, talk, stored.exchange(8, reply="better okapi"), instead_of=3)
    assert turn.number == 3 and [one.number for one in turns.all_of(store, talk.id)] == [1, 2, 3]
    assert state_bytes(states.latest(store, talk.id)) == stored.snapshot(8).state.tobytes()
    assert search.search(store, "answer 3") == [] and search.search(store, "okapi")
    with pytest.raises(StoreError, match="not the last"):
        turns.commit(store, talk, stored.exchange(9), instead_of=2)
    assert turns.get(store, talk.id, 3).messages[1].text == "better okapi"


def replayed(seed: int) -> turns.Replayed:
    return turns.Replayed(stored.snapshot(seed), {"run": "again", "window_first": 1})


def test_forgetting_swaps_the_later_states_and_keeps_numbers_and_earlier_states(store: Store) -> None:
    talk = stored.conversation(store, 5, word="gnu")
    turns.replace_after_forgetting(store, talk.id, [2, 4], {3: replayed(33), 5: replayed(55)})
    assert [turn.number for turn in turns.all_of(store, talk.id)] == [1, 3, 5]
    for number, seed in ((1, 1), (2, 1), (3, 33), (4, 33), (5, 55)):
        assert state_bytes(states.after(store, talk.id, number)) == stored.snapshot(seed).state.tobytes()
    assert turns.get(store, talk.id, 3).context == {"run": "again", "window_first": 1}
    assert turns.get(store, talk.id, 1).context["run"] == "r1"
    assert sorted(hit.turn for hit in search.search(store, "gnu")) == [1, 3, 5]
    assert turns.commit(store, talk, stored.exchange(6)).number == 6


@pytest.mark.parametrize("given", [{3: 33}, {3: 33, 4: 44, 1: 11}, {}], ids=["one missing", "one too early", "none"])
def test_forgetting_with_an_incomplete_replay_changes_nothing(store: Store, given: dict[int, int]) -> None:
    talk = stored.conversation(store, 4)
    with pytest.raises(StoreError, match="nothing was forgotten"):
        turns.replace_after_forgetting(store, talk.id, [2], {n: replayed(seed) for n, seed in given.items()})
    assert [turn.number for turn in turns.all_of(store, talk.id)] == [1, 2, 3, 4]
    assert state_bytes(states.after(store, talk.id, 3)) == stored.snapshot(3).state.tobytes()


def test_forgetting_an_unknown_turn_names_the_last_one(store: Store) -> None:
    talk = stored.conversation(store, 2)
    with pytest.raises(NotFound, match="no turn 7.*last turn is 2"):
        turns.replace_after_forgetting(store, talk.id, [7], {})


def test_branch_at_a_turn_has_the_same_past_and_its_own_future(store: Store) -> None:
    talk = stored.conversation(store, 4)
    made = bundle.branch(store, talk, profiles.ensure(store, "other"), at=2)
    assert (made.profile, made.n_turns, made.origin, made.origin_turn) == ("other", 2, talk.id, 2)
    for number in (1, 2):
        assert state_bytes(states.after(store, made.id, number)) == stored.snapshot(number).state.tobytes()
        assert turns.get(store, made.id, number).messages == turns.get(store, talk.id, number).messages
    turns.commit(store, made, stored.exchange(9))
    turns.undo(store, talk.id, 4)
    assert [turn.number for turn in turns.all_of(store, made.id)] == [1, 2, 3]
    with pytest.raises(NotFound):
        bundle.branch(store, made, profiles.get(store, "work"), at=8)


def test_memory_alone_becomes_the_state_that_a_conversation_begins_with(store: Store) -> None:
    talk = stored.conversation(store, 3)
    made = bundle.write(store, profiles.get(store, "work"), bundle.state_only(bundle.read(store, talk)))
    assert made.n_turns == 0 and made.heading == ""
    assert state_bytes(states.before(store, made.id, 1)) == stored.snapshot(3).state.tobytes()
    turns.commit(store, made, stored.exchange(9))
    turns.undo(store, made.id)
    initial = states.latest(store, made.id)
    assert initial and initial.turn is None and state_bytes(initial) == stored.snapshot(3).state.tobytes()


def test_temporary_store_takes_a_copy_and_gives_nothing_back(store: Store) -> None:
    talk = stored.conversation(store, 2)
    with Store.memory() as temporary:
        copy = bundle.write(temporary, profiles.ensure(temporary, "work"), bundle.read(store, talk))
        turns.commit(temporary, copy, stored.exchange(9))
        assert turns.last_number(temporary, copy.id) == 3
    assert turns.last_number(store, talk.id) == 2


def test_state_of_another_model_or_adapter_is_refused_with_both_names_and_the_ways_out() -> None:
    given = stored.snapshot(1)
    check_fingerprints(given, stored.MODEL, stored.ADAPTER)
    check_fingerprints(given, Identity("renamed file", stored.MODEL.fingerprint), stored.ADAPTER)
    check_fingerprints(None, stored.MODEL, stored.ADAPTER)
    other = Identity("another", "cc" * 32)
    for model, adapter in ((other, stored.ADAPTER), (stored.MODEL, other)):
        with pytest.raises(FingerprintMismatch) as error:
            check_fingerprints(given, model, adapter)
        for part in ("tiny-model", "tiny-adapter", "another", "--adapter", "--new", "dmem memory reset"):
            assert part in str(error.value)


def test_search_takes_any_text_and_keeps_to_its_profile(store: Store) -> None:
    stored.conversation(store, 1, profile="work", word="The café at NEAR gate")
    stored.conversation(store, 1, profile="home", word="cafe")
    work = profiles.get(store, "work")
    assert [hit.profile for hit in search.search(store, "CAFE", work)] == ["work"]
    assert len(search.search(store, "cafe")) == 2
    for words in ('"', "a OR", "NEAR(", "text:", "*", "-x", "'", "'; DROP TABLE turns", "(", "", "🦓"):
        search.search(store, words)
    assert [hit.profile for hit in search.search(store, '"café at near" gate')] == ["work"]
    assert search.search(store, "cafe zebra") == []


def test_conversation_is_found_by_the_beginning_or_end_of_its_id(store: Store) -> None:
    talks = [stored.conversation(store, 1) for _ in range(3)]
    for talk in talks:
        assert conversations.get(store, talk.id.upper()).id == talk.id
        assert conversations.get(store, talk.id[-12:]).id == talk.id
    with pytest.raises(StoreError, match="3 conversations"):
        conversations.get(store, talks[0].id[:4])
    for reference in ("", "zzz", "%", "_"):
        with pytest.raises(NotFound):
            conversations.get(store, reference)


def test_heading_is_read_from_the_text_and_goes_with_it(store: Store) -> None:
    talk = stored.conversation(store, 2, word="A long\nquestion " + "about gnus " * 20)
    assert talk.title is None and talk.heading.startswith("A long question about") and len(talk.heading) <= 60
    turns.undo(store, talk.id, 2)
    assert conversations.get(store, talk.id).heading == ""
    conversations.rename(store, talk.id, "Gnus")
    assert conversations.get(store, talk.id).heading == "Gnus"


def test_profile_keeps_its_settings_and_takes_its_memory_along_when_renamed(store: Store) -> None:
    profiles.create(store, "work", model="m.gguf", system="Be brief.", options={"top_k": 3})
    talk = stored.conversation(store, 2)
    profiles.change(store, "work", adapter="a.gguf", system=None, options={})
    profiles.rename(store, "work", "office")
    office = profiles.get(store, "office")
    assert (office.model, office.adapter, office.system, office.options) == ("m.gguf", "a.gguf", None, {})
    turns.commit(store, talk, stored.exchange(3))  # `talk` still says "work"
    latest = conversations.latest(store, office)
    assert latest and latest.n_turns == 3 and profiles.find(store, "work") is None


@pytest.mark.parametrize("name", ["", "NEW", "new", "-x", "a b", "a/b", "x" * 65, ".hidden", "a\n"])
def test_name_that_cannot_be_typed_plainly_is_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="can't be a profile's name"):
        profiles.create(store, name)


def test_unknown_profile_names_the_nearest(store: Store) -> None:
    profiles.create(store, "office")
    with pytest.raises(NotFound, match="did you mean office"):
        profiles.get(store, "ofice")
    with pytest.raises(StoreError, match="already a profile"):
        profiles.create(store, "office")


def test_deleted_profile_takes_every_row_with_it(store: Store) -> None:
    stored.conversation(store, 2)
    stored.conversation(store, 2, profile="home")
    profiles.delete(store, "work")
    counts = {table: store.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in
              ("profiles", "conversations", "turns", "messages", "states")}  # fmt: skip
    assert counts == {"profiles": 1, "conversations": 1, "turns": 2, "messages": 4, "states": 2}
    assert store.check() == []


def test_a_deleted_profile_does_not_come_back_with_a_conversation_that_was_open(store: Store) -> None:
    profiles.create(store, "work", system="Be brief.")
    open_one = conversations.new(profiles.get(store, "work"))
    profiles.delete(store, "work")
    with pytest.raises(StoreError, match="Profile work was deleted .* not saved.*dmem profile create work"):
        turns.commit(store, open_one, stored.exchange(1))
    assert profiles.all_of(store) == []
    time.sleep(0.002)  # of times, milliseconds are kept
    profiles.create(store, "home")  # gets the number that the deleted one had
    with pytest.raises(StoreError, match="was deleted"):
        turns.commit(store, open_one, stored.exchange(1))
    profiles.create(store, "work")
    assert turns.commit(store, open_one, stored.exchange(1)).number == 1


def test_a_first_turn_goes_to_the_profile_that_was_renamed_meanwhile(store: Store) -> None:
    open_one = conversations.new(profiles.create(store, "work", system="Be brief."))
    profiles.rename(store, "work", "office")
    turns.commit(store, open_one, stored.exchange(1))
    assert [(profile.name, profile.system) for profile in profiles.all_of(store)] == [("office", "Be brief.")]


def test_the_first_turn_makes_a_profile_that_never_was(store: Store) -> None:
    open_one = conversations.new(Profile(0, "default"))
    turns.commit(store, open_one, stored.exchange(1))
    assert [profile.name for profile in profiles.all_of(store)] == ["default"]
