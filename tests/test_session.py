"""Chat sessions on tiny random models: transcript, memory and window agree, whatever happens to a turn."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import odd_models
import pytest
import stored
from chat_support import GRANULARITIES, Chats, MakeChats, assert_agree, relative, say, state_bytes

from deltamem_cli.engine import Cancelled, EngineError
from deltamem_cli.errors import DeltamemError
from deltamem_cli.session import chat, opening
from deltamem_cli.session.replay import replay
from deltamem_cli.store import conversations, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import ConversationBusy, FingerprintMismatch, StoreError


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_turn_is_committed_with_the_state_that_the_engine_has(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open() as (session, _):
        reply = say(session, "Hello. My name is Ana! I live in Rome.")
        turn = turns.get(session.store, session.conversation.id, 1)
        assert [message.text for message in turn.messages] == ["Hello. My name is Ana! I live in Rome.", reply]
        assert turn.has_state and not turn.interrupted and session.stats.changed > 0
        assert_agree(session)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_next_session_begins_with_the_very_bytes_of_the_last_one(make_chats: MakeChats, granularity: str) -> None:
    chats = make_chats(granularity)
    with chats.open() as (session, _):
        say(session, "My cat is called Tom.")
        before = state_bytes(session)
    with chats.open(replay_tokens=0) as (session, _):
        assert state_bytes(session) == before
        assert session.window.turns == []


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("how", ["stop", "close"])
def test_interrupted_reply_keeps_state_and_transcript_equal(make_chats: MakeChats, granularity: str, how: str) -> None:
    with make_chats(granularity).open(options={"seed": "1", "max_tokens": "200"}) as (session, loaded):
        say_first = session.ask("One?")
        shown = ""
        for piece in say_first:
            shown += piece
            if len(shown) > 5:
                if how == "close":
                    say_first.close()
                    break
                session.stop()
        turn = turns.get(session.store, session.conversation.id, 1)
        assert turn.interrupted
        assert turn.messages[1].text == shown
        assert_agree(session)
        session.settings = type(session.settings)(max_tokens=8)
        say(session, "Two?")  # the next turn works
        assert_agree(session)
        again = replay(session.store, session.conversation.id, session.seat, model=loaded.model, adapter=loaded.adapter)
        for number in (1, 2):
            stored = states.after(session.store, session.conversation.id, number)
            assert relative(again[number].snapshot.state, stored.state) <= 0.01


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_stopped_while_the_message_is_read_nothing_has_happened(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open() as (session, _):
        say(session, "Before.")
        before = state_bytes(session)
        with pytest.raises(Cancelled):
            list(session.ask("word " * 2000, progress=lambda done, total: session.stop()))
        assert state_bytes(session) == before
        assert_agree(session)
        with pytest.raises(Cancelled):
            session.remember("word " * 2000, progress=lambda done, total: session.stop())
        assert_agree(session)
        say(session, "After.")
        assert session.n_turns == 2
        assert_agree(session)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_undo_brings_back_the_bytes_from_before(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open() as (session, _):
        say(session, "First.")
        one = state_bytes(session)
        say(session, "Second. With more.")
        two = state_bytes(session)
        say(session, "Third!")
        session.remember("A text that is remembered.")
        assert session.undo(2) == [3, 4]
        assert state_bytes(session) == two
        assert_agree(session)
        session.undo()
        assert state_bytes(session) == one
        assert_agree(session)
        session.undo()
        assert not session.seat.state().any()
        with pytest.raises(StoreError):
            session.undo()
        assert_agree(session)


def test_what_is_undone_leaves_a_recurrent_model_too(home: Path, tmp_path: Path) -> None:
    """It keeps one state for all that it read, out of which nothing can be taken."""
    home.mkdir()
    settings = {"model": odd_models.recurrent(tmp_path / "mamba.gguf"), "memory": False, "replay_tokens": 0}
    chats = Chats(home / "memory.db", settings)
    with chats.open() as (session, loaded):
        say(session, "one")
        seen = list(session.window.tokens(1))
        once = loaded.seat.feed([5])
    with chats.open(new=True) as (session, loaded):
        say(session, "one")
        assert session.window.tokens(1) == seen
        say(session, "two")
        assert session.undo() == [2]
        assert session.window.n_past == len(session.window.head) + len(seen)
        np.testing.assert_allclose(loaded.seat.feed([5]), once, rtol=0, atol=1e-4)


def test_a_state_that_grows_beyond_measure_is_not_saved_and_the_ways_out_are_named(
    chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chats.open() as (session, _):
        say(session, "one")
        before = state_bytes(session)
        monkeypatch.setattr("deltamem_cli.session.chat._LARGEST_NORM", 1e-9)
        with pytest.raises(EngineError, match="not saved: .*dmem memory undo.*dmem memory reset"):
            say(session, "two")
        assert session.n_turns == 1 and state_bytes(session) == before


@pytest.mark.parametrize("size", [1e20, 3e38, float("nan")])
def test_the_size_of_a_huge_state_is_told_without_a_warning(size: float) -> None:
    with warnings.catch_warnings(), pytest.raises(EngineError, match="grown beyond measure"):
        warnings.simplefilter("error")
        chat._check_size(np.full((1, 1, 8, 8), size, np.float32))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_reply_is_made_again_from_the_state_before_its_question(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open() as (session, _):
        say(session, "First.")
        reply = say(session, "Second?")
        after = state_bytes(session)
        assert "".join(session.regenerate()) == reply  # the seed is the same, so all else must be
        assert state_bytes(session) == after
        assert session.n_turns == 2 and len(turns.all_of(session.store, session.conversation.id)) == 2
        session.settings = type(session.settings)(max_tokens=8)
        "".join(session.regenerate())
        assert turns.get(session.store, session.conversation.id, 2).messages[0].text == "Second?"
        assert_agree(session)


def test_a_reply_that_can_not_be_made_again_leaves_the_old_one(chats: Chats) -> None:
    with chats.open() as (session, _):
        say(session, "First.")
        say(session, "word " * 100)
        before = state_bytes(session)
        with pytest.raises(Cancelled):
            list(session.regenerate(progress=lambda done, total: session.stop()))
        assert state_bytes(session) == before
        session.start()  # who stopped it is not kept waiting for the old turn to be read again
        assert session.window.turns == [1, 2]
        assert_agree(session)
        say(session, "A question that is taken back.")
        session.undo()
        session.remember("Nobody answers.")
        with pytest.raises(DeltamemError, match="no question"):
            list(session.regenerate())
        assert_agree(session)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_oldest_turns_leave_the_window_whole_and_are_told_of(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open(ctx_size=256) as (session, _):
        dropped: list[int] = []
        for number in range(8):
            say(session, f"This is message {number} of some length.")
            dropped += session.take_dropped()
            assert_agree(session)
            for turn in session.window.turns:
                whole = turns.get(session.store, session.conversation.id, turn).messages
                assert session.window.tokens(turn) == [token for message in whole for token in message.tokens]
        assert dropped and dropped == list(range(1, session.window.turns[0]))
        assert session.take_dropped() == []


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_message_longer_than_the_context_is_read_in_pieces(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open(ctx_size=256) as (session, loaded):
        say(session, "Short.")
        seen: list[tuple[int, int]] = []
        list(session.ask("A long one. " * 200, progress=lambda done, total: seen.append((done, total))))
        total = seen[0][1]
        assert (
            total > 1000 and [done for done, _ in seen] == sorted({done for done, _ in seen}) and seen[-1][0] == total
        )
        assert session.window.turns == [2]
        say(session, "And now?")
        assert_agree(session)
        again = replay(session.store, session.conversation.id, session.seat, model=loaded.model, adapter=loaded.adapter)
        for number, result in again.items():
            stored = states.after(session.store, session.conversation.id, number)
            assert relative(result.snapshot.state, stored.state) <= 0.01


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_turn_that_can_not_be_saved_never_was(
    make_chats: MakeChats, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_chats(granularity).open(ctx_size=256) as (session, _):
        say(session, "Saved.")
        before = state_bytes(session)

        def full(*_: object, **__: object) -> None:
            raise StoreError("memory.db could not be written because the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(turns, "insert", full)
            for text in ("Not saved.", "word " * 300):
                with pytest.raises(StoreError):
                    say(session, text)
                assert state_bytes(session) == before
                assert session.window.turns == [1]
                assert_agree(session)
            with pytest.raises(StoreError):
                list(session.regenerate())
            assert state_bytes(session) == before
            assert_agree(session)
        say(session, "Saved again.")
        assert session.n_turns == 2
        assert_agree(session)


def test_read_only_reads_the_memory_and_leaves_it_while_another_one_holds_it(chats: Chats) -> None:
    with chats.open() as (holder, _):
        say(holder, "My name is Ana.")
        before = state_bytes(holder)
        with pytest.raises(ConversationBusy), chats.open():
            pass
        with chats.open(read_only=True) as (reader, _):
            assert state_bytes(reader) == before
            say(reader, "Who am I?")
            say(reader, "Sure?")
            assert state_bytes(reader) == before
            assert reader.window.turns == [1, 2, 3]
            "".join(reader.regenerate())
            assert reader.n_turns == 3
            assert reader.undo(2) == [2, 3]
            with pytest.raises(DeltamemError, match="read-only"):
                reader.undo()
            with pytest.raises(DeltamemError, match="read-only"):
                reader.forget([1])
            assert state_bytes(reader) == before
        say(holder, "Next.")
        assert holder.n_turns == 2


def test_what_a_read_only_chat_saw_is_not_taken_for_what_another_one_stored_since(chats: Chats) -> None:
    with chats.open() as (holder, _):
        say(holder, "My name is Ana.")
        with chats.open(read_only=True) as (reader, _):
            say(reader, "Who am I?")
            seen = [reader.window.tokens(number) for number in reader.window.turns]
            say(holder, "This is the second turn that is stored.")
            reader.set_system("Be kind.")
            assert [reader.window.tokens(number) for number in reader.window.turns] == seen


def test_without_memory_the_model_is_the_plain_one(chats: Chats) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
        stored = state_bytes(session)
    with chats.open(memory=False) as (session, loaded):
        assert not session.engine.has_memory and loaded.why_no_memory
        say(session, "Two.")
        turn = turns.get(session.store, session.conversation.id, 2)
        assert not turn.has_state
        assert states.latest(session.store, session.conversation.id).state.tobytes() == stored


def test_without_log_the_state_is_kept_and_the_text_is_not(chats: Chats) -> None:
    with chats.open(log=False) as (session, _):
        say(session, "A secret.")
        assert turns.get(session.store, session.conversation.id, 1).messages == ()
        assert states.latest(session.store, session.conversation.id).state.tobytes() == state_bytes(session)
        list(session.regenerate())
        session.set_system("Be kind.")
        assert session.window.turns == [1]
    with chats.open() as (session, _):
        assert session.window.turns == []
        assert session.seat.state().any()


def test_the_last_messages_that_fit_are_shown_again_and_not_written(chats: Chats) -> None:
    with chats.open() as (session, _):
        for text in ("word " * 80, "Short one.", "Short two."):
            say(session, text)
        session.remember("Not shown again.")
        before = state_bytes(session)
    with chats.open() as (session, _):  # a quarter of 512 tokens
        assert session.window.turns == [2, 3]
        assert state_bytes(session) == before
    with chats.open(replay_tokens=10_000) as (session, _):
        assert session.window.turns == [1, 2, 3]
        assert state_bytes(session) == before


def test_a_state_of_another_adapter_is_refused_with_both_named(chats: Chats, tiny_adapter: Any) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
    other = tiny_adapter(chats.settings["model"], seed=7)
    with pytest.raises(FingerprintMismatch, match="--new"), chats.open(adapter=other):
        pass
    with chats.open(adapter=other, new=True) as (session, _):
        say(session, "One.")


def test_a_model_of_no_adapter_chats_and_says_why_it_forgets(chats: Chats) -> None:
    with chats.open(adapter=None) as (session, loaded):
        assert "adapter" in loaded.why_no_memory
        assert not session.writes
        say(session, "One.")
        assert session.n_turns == 1


def test_clear_empties_the_window_and_not_the_memory(chats: Chats) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
        before = state_bytes(session)
        session.clear()
        assert session.window.turns == [] and state_bytes(session) == before
        say(session, "Two.")
        assert session.window.turns == [2]


def test_a_system_prompt_that_is_too_long_leaves_the_old_one(chats: Chats) -> None:
    with chats.open(system="Be brief.") as (session, _):
        say(session, "One.")
        with pytest.raises(DeltamemError, match="shorten"):
            session.set_system("word " * 400)
        assert session.prompt.system == "Be brief."
        assert session.window.turns == [1]
        assert_agree(session)
        say(session, "Two.")
        assert_agree(session)


def test_a_temporary_copy_begins_with_the_memory_and_touches_no_file(chats: Chats, tmp_path: Path) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
        before = state_bytes(session)
    home = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    request = opening.Request(**chats.settings, threads=1, ctx_size=512, options={"max_tokens": "8"})
    with Store.open(chats.database) as disk:
        store, request = opening.copy_for_temporary(disk, request)
    from contextlib import ExitStack

    with ExitStack() as stack:
        session, _ = opening.open_chat(stack, store, request)
        assert state_bytes(session) == before
        say(session, "Two.")
        assert session.n_turns == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == home
    with Store.open(chats.database) as disk:
        assert [one.n_turns for one in conversations.all_of(disk)] == [1]
        assert stored.holder(disk, conversations.all_of(disk)[0].id) is None
