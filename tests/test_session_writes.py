"""What of a turn is written into the memory: all of it or what the user says; and what is only read is thrown away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chat_support import GRANULARITIES, MakeChats, assert_agree, say, state_bytes

from deltamem_cli import config
from deltamem_cli.adapter.format import Provenance, read_adapter, trained_writes, write_adapter
from deltamem_cli.session.request import Request, settle
from deltamem_cli.store import turns
from deltamem_cli.store.records import Profile


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_read_only_and_writing_answers_to_a_question_are_the_same_tokens_from_the_same_states(
    make_chats: MakeChats, granularity: str
) -> None:
    chats = make_chats(granularity)
    with chats.open() as (session, _):
        say(session, "My cat is called Tom. He is old.")
    seen: dict[bool, tuple[list[str], list[bytes]]] = {}
    for read_only in (True, False):
        with chats.open(read_only=read_only, replay_tokens=0) as (session, _):
            before = state_bytes(session)
            pieces, states = [], []
            for piece in session.ask("What is my cat called?"):
                pieces.append(piece)
                states.append(state_bytes(session))
            seen[read_only] = pieces, states
            assert (state_bytes(session) == before) == read_only
    assert seen[True] == seen[False]
    if granularity == "token":
        assert seen[True][1][0] != before  # the question was written before its answer


def test_what_a_read_only_chat_says_changes_no_state_and_no_turn(make_chats: MakeChats) -> None:
    chats = make_chats()
    with chats.open() as (session, _):
        say(session, "One.")
        kept = state_bytes(session)
    with chats.open(read_only=True) as (session, _):
        for text in ("Two?", "Three?"):
            say(session, text)
            assert state_bytes(session) == kept
        session.undo()
        list(session.regenerate())
        assert state_bytes(session) == kept
    with chats.open() as (session, _):
        assert [t.number for t in turns.all_of(session.store, session.conversation.id)] == [1]
        assert_agree(session)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_with_write_user_a_reply_is_read_and_not_written(make_chats: MakeChats, granularity: str) -> None:
    states = []
    for reply in ([5, 6, 7], [9, 10]):
        with make_chats(granularity).open(write="user", new=True) as (session, _):
            list(session.ask("My cat is called Tom.", reply=reply))
            said, answer = turns.get(session.store, session.conversation.id, session.n_turns).messages
            assert answer.spans is not None and set(answer.spans) == {-1}
            assert session.stats.written_tokens <= len(said.tokens)
            states.append(session.seat.state())
            assert_agree(session)
    np.testing.assert_array_equal(*states)
    with make_chats(granularity).open(write="all", new=True) as (session, _):
        list(session.ask("My cat is called Tom.", reply=[5, 6, 7]))
        assert (session.seat.state() != states[0]).any()


def test_a_flag_beats_the_profile_beats_the_configuration_beats_the_adapter(
    make_chats: MakeChats, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    work = Profile(id=1, name="work", write="user")
    assert settle(Request(), None).write is None
    config.set_value("write", "all")
    assert settle(Request(), None).write == "all"
    assert settle(Request(), work).write == "user"
    assert settle(Request(write="all"), work).write == "all"


def test_an_adapter_says_what_it_was_trained_to_write(
    make_chats: MakeChats, tmp_path: Path, tiny_model: object, tiny_adapter: object
) -> None:
    plain = tiny_adapter(tiny_model("qwen3"))  # type: ignore[operator]
    assert trained_writes(plain) == "all"
    told = read_adapter(plain)
    for training, meant in (('{"write": "user"}', "user"), ('{"write": "none"}', "all"), ("[", "all"), ("[1]", "all")):
        write_adapter(tmp_path / "a.gguf", told.config, told.tensors, Provenance(training=training))
        assert trained_writes(tmp_path / "a.gguf") == meant
    write_adapter(tmp_path / "a.gguf", told.config, told.tensors, Provenance(training='{"write": "user"}'))
    with make_chats().open(adapter=tmp_path / "a.gguf") as (session, loaded):
        assert loaded.write == session.settings.write == "user"
