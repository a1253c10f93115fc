"""The turns of a session fed again: all of them give the stored states, without some it is as if never said."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_support import GRANULARITIES, Chats, MakeChats, assert_agree, relative, say, state_bytes

from deltamem_cli.engine import Cancelled
from deltamem_cli.session.forgetting import forget
from deltamem_cli.session.replay import replay
from deltamem_cli.store import states, turns, wiping
from deltamem_cli.store.database import Store


@pytest.mark.parametrize("arch", ["qwen3", "gemma3"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_replay_of_all_turns_reproduces_every_state(make_chats: MakeChats, granularity: str, arch: str) -> None:
    chats = make_chats(granularity, arch, ctx_size=256)
    with chats.open() as (session, _):
        for text in ("Hello. I am Ana!", "What? Why?", "I like tea. And bees; yes."):
            say(session, text)
        say(session, "To take back.")
        session.undo()
        say(session, "word " * 60)
        list(session.regenerate())
        session.set_system("You are terse.")
        say(session, "With a system prompt.")
    with chats.open() as (session, loaded):
        say(session, "A new day.")
        session.clear()
        say(session, "Seen alone.")
        session.remember("My cat is Tom. He is old.")
        say(session, "The end.")
        every = turns.all_of(session.store, session.conversation.id)
        again = replay(session.store, session.conversation.id, session.seat, model=loaded.model, adapter=loaded.adapter)
        assert sorted(again) == [turn.number for turn in every]
        for turn in every:
            stored = states.after(session.store, session.conversation.id, turn.number)
            assert relative(again[turn.number].snapshot.state, stored.state) <= 0.01


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_forgotten_was_never_said(make_chats: MakeChats, granularity: str, tmp_path: Path) -> None:
    """Up to rounding: the replies that were given stay, so they are fed again and not drawn again."""
    with make_chats(granularity).open() as (session, _loaded):
        for text in ("I am Ana.", "The secret is xylophone.", "I like tea.", "Good night."):
            say(session, text)
        first = states.after(session.store, session.conversation.id, 1).state.tobytes()
        old = states.latest(session.store, session.conversation.id).state
        result = session.forget([2])
        assert (result.turns, result.later) == ([2], [3, 4])
        assert_agree(session)
        assert session.window.turns == [1, 3, 4]
        forgotten = {turn.number: turn for turn in turns.all_of(session.store, session.conversation.id)}
        assert sorted(forgotten) == [1, 3, 4]
        assert states.after(session.store, session.conversation.id, 1).state.tobytes() == first
        assert relative(states.latest(session.store, session.conversation.id).state, old) > 0.01
        told = [turn.messages for turn in forgotten.values()]
        after = states.latest(session.store, session.conversation.id).state

        # the same tokens in a conversation that never had turn 2
        seat = session.seat
        seat.clear_state()
        session.window.start(session.window.head)
        for number, messages in enumerate(told, 1):
            with seat.one_pass():
                for message in messages:
                    session.window.feed(number, message.tokens, write=True, spans=message.spans)
        assert relative(seat.state(), after) <= 1e-3
        wiping.wipe(session.store, lambda typed: None)
    data = b"".join(path.read_bytes() for path in (tmp_path / "home").glob("memory.db*") if path.is_file())
    assert b"xylophone" not in data and b"I like tea" in data


def test_forgetting_that_is_stopped_changes_nothing(chats: Chats) -> None:
    with chats.open() as (session, _):
        for text in ("One.", "Two.", "Three."):
            say(session, text)
        before = state_bytes(session)
        with pytest.raises(Cancelled):
            session.forget([1], progress=lambda done, total: session.stop())
        assert state_bytes(session) == before
        assert [turn.number for turn in turns.all_of(session.store, session.conversation.id)] == [1, 2, 3]
        session.start()  # who stopped it is not kept waiting
        assert_agree(session)
        say(session, "Four.")
        assert_agree(session)


def test_the_last_turn_is_forgotten_without_a_model(chats: Chats) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
        one = state_bytes(session)
        say(session, "Two.")
        cid = session.conversation.id
    with Store.open(chats.database) as store:
        forget(store, cid, None, [2])
        assert states.latest(store, cid).state.tobytes() == one


def test_after_forgetting_the_numbers_go_on(chats: Chats) -> None:
    with chats.open() as (session, _):
        for text in ("One.", "Two.", "Three."):
            say(session, text)
        session.forget([2])
        list(session.regenerate())
        say(session, "Four.")
        assert [turn.number for turn in turns.all_of(session.store, session.conversation.id)] == [1, 3, 4]
        assert_agree(session)


@pytest.mark.parametrize("back", ["regenerate", "undo"])
def test_a_turn_that_takes_the_number_of_one_shown_again_was_not_shown_before_itself(chats: Chats, back: str) -> None:
    with chats.open() as (session, _):
        say(session, "About a walrus.")
        say(session, "About a cat.")
    with chats.open() as (session, loaded):
        assert session.window.turns == [1, 2]
        if back == "regenerate":
            list(session.regenerate())
        else:
            session.undo()
            say(session, "About a bee.")
        say(session, "About a dog.")
        every = turns.all_of(session.store, session.conversation.id)
        assert [turn.context["replayed"] for turn in every[1:]] == [[1], [1]]
        again = replay(session.store, session.conversation.id, session.seat, model=loaded.model, adapter=loaded.adapter)
        for turn in every:
            stored = states.after(session.store, session.conversation.id, turn.number)
            assert relative(again[turn.number].snapshot.state, stored.state) <= 1e-3
