"""What a session shows and holds is the old view or the new one, whole, wherever an operation breaks off."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import odd_models
import pytest
from chat_support import Chats, MakeChats, assert_agree, relative, say, state_bytes

from deltamem_cli.commands.chat import slash_actions, slash_set
from deltamem_cli.commands.chat.open_chat import Talk
from deltamem_cli.engine import Cancelled, EngineError, Seat
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.replay import replay
from deltamem_cli.session.request import Request
from deltamem_cli.store import states, turns, wiping
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError

Operation = Callable[[ChatSession], object]

# each with the turns that are visible after it and the system prompt
CHANGES: dict[str, tuple[Operation, list[int], str | None]] = {
    "undo": (lambda session: session.undo(), [1, 2], None),
    "forget": (lambda session: session.forget([2]), [1, 3], None),
    "clear": (lambda session: session.clear(), [], None),
    "reset": (lambda session: session.reset(), [], None),
    "system": (lambda session: session.set_system("You are terse."), [1, 2, 3], "You are terse."),
}


def talked(session: ChatSession) -> None:
    for text in ("I am Ana.", "I like tea.", "Good night."):
        say(session, text)


def assert_replays(session: ChatSession, loaded: Any) -> None:
    again = replay(session.store, session.conversation.id, session.engine, model=loaded.model, adapter=loaded.adapter)
    for number, result in again.items():
        stored = states.after(session.store, session.conversation.id, number)
        assert relative(result.snapshot.state, stored.state) <= 1e-3


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("failure", [Cancelled(0), KeyboardInterrupt(), EngineError("The model failed.")])
def test_what_breaks_off_while_it_is_fed_again_leaves_one_view_whole(
    make_chats: MakeChats, monkeypatch: pytest.MonkeyPatch, name: str, failure: BaseException
) -> None:
    change, visible, system = CHANGES[name]
    with make_chats().open() as (session, loaded):
        talked(session)
        session.set_system(None)  # a run of its own, so that undo and forget have to feed as well
        fed: list[int] = []
        feed = Seat.feed

        def breaks(seat: Seat, tokens: Any, **how: Any) -> Any:
            if how.get("write") is False:  # a turn that is shown again
                fed.append(len(tokens))
                if len(fed) > (3 if name == "forget" else 0):
                    raise failure
            return feed(seat, tokens, **how)

        old = session.view
        with monkeypatch.context() as patch:
            patch.setattr(Seat, "feed", breaks)
            patch.setattr("deltamem_cli.session.window.Window.cut", lambda window, turn: False)
            try:
                change(session)
            except (KeyboardInterrupt, EngineError) as error:
                assert error is failure
        session.start()
        stands = session.view
        new = [number for number, _ in stands.turns] == visible and stands.prompt.system == system
        assert new or [number for number, _ in stands.turns] == [number for number, _ in old.turns]
        if isinstance(failure, Cancelled):
            assert new, "what has happened stands, and the model is brought to it later"
        if name != "reset":  # which leaves a transcript whose states are gone
            assert_agree(session)
            say(session, "And now?")
            assert_agree(session)
            assert_replays(session, loaded)


@pytest.mark.parametrize("name", ["undo", "forget", "reset"])
def test_what_is_not_committed_has_not_happened(
    make_chats: MakeChats, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("memory.db could not be written because the disk is full")

    with make_chats().open() as (session, _):
        talked(session)
        before, old = state_bytes(session), session.view
        with monkeypatch.context() as patch, pytest.raises(StoreError):
            patch.setattr(wiping, "_insert", full)
            patch.setattr(wiping, "mark_bytes", full)
            CHANGES[name][0](session)
        assert state_bytes(session) == before
        assert [number for number, _ in session.view.turns] == [number for number, _ in old.turns]
        assert_agree(session)


@pytest.mark.parametrize("name", ["forget", "reset"])
def test_another_program_that_reads_keeps_nothing_from_being_deleted(make_chats: MakeChats, name: str) -> None:
    chats = make_chats()
    change, visible, _ = CHANGES[name]
    with chats.open() as (session, _), Store.open(chats.database) as reader, reader.reading():
        talked(session)
        turns.all_of(reader, session.conversation.id)
        change(session)
        assert [number for number, _ in session.view.turns] == visible
        assert session.seat.state().any() == (name != "reset")
        latest = states.latest(session.store, session.conversation.id)
        assert (latest is not None) == (name != "reset")
        with pytest.raises(StoreError, match="another program is reading"):
            wiping.wipe(session.store, lambda typed: None, patience=0.05)
        say(session, "Who am I?")


@pytest.mark.parametrize("back", ["undo", "regenerate", "stop"])
def test_what_is_taken_back_leaves_a_model_out_of_which_nothing_can_be_cut(
    home: Path, tmp_path: Path, back: str
) -> None:
    home.mkdir()
    model = odd_models.recurrent(tmp_path / "mamba.gguf")
    chats = Chats(home / "memory.db", {"model": model, "memory": False, "replay_tokens": 0})
    with chats.open() as (session, loaded):
        say(session, "one")
        if back == "regenerate":
            say(session, "two")
        expected = loaded.seat.feed([5])
    with chats.open(new=True) as (session, loaded):
        say(session, "one")
        if back == "stop":
            with pytest.raises(Cancelled):
                list(session.ask("word " * 200, progress=lambda done, total: session.stop()))
            session.start()
        else:
            say(session, "two")
            _ = session.undo() if back == "undo" else "".join(session.regenerate())
        assert len(turns.all_of(session.store, session.conversation.id)) == session.window.turns[-1]
        np.testing.assert_allclose(loaded.seat.feed([5]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", ["qwen3", "gemma3"])
def test_a_first_message_that_is_longer_than_the_context_and_stopped_was_never_seen(
    make_chats: MakeChats, arch: str
) -> None:
    """The second model looks through a sliding window, which keeps no more than it looks at."""
    chats = make_chats("token", arch, ctx_size=256)
    with chats.open() as (session, _):
        list(session.ask("Short.", reply=[5, 6, 7]))
        expected = session.seat.state()
    with chats.open(new=True) as (session, _):

        def stop_late(done: int, total: int) -> None:
            if done > 400:
                session.stop()

        with pytest.raises(Cancelled):
            list(session.ask("word " * 400, progress=stop_late))
        session.start()
        assert session.window.turns == [] and session.n_turns == 0
        assert session.context_filled[0] == len(session.window.head)
        list(session.ask("Short.", reply=[5, 6, 7]))
        assert_agree(session)
        assert relative(session.seat.state(), expected) <= 1e-5


def test_turns_left_the_window_before_a_message_was_stopped_and_come_back(make_chats: MakeChats) -> None:
    with make_chats(ctx_size=256).open() as (session, loaded):
        for text in ("I am Ana.", "I like tea."):
            say(session, text)

        def stop_late(done: int, total: int) -> None:
            if done > 300:
                session.stop()

        with pytest.raises(Cancelled):
            session.remember("word " * 400, progress=stop_late)
        say(session, "Good night.")
        assert session.window.turns == [1, 2, 3]
        assert_agree(session)
        assert_replays(session, loaded)


# commands of a chat, and whether each has happened although it was interrupted while it fed
COMMANDS: dict[str, Callable[[Talk], object]] = {
    "/system": lambda talk: slash_actions.system(talk, "You are terse."),
    "/clear": lambda talk: slash_actions.clear(talk, ""),
    "/new": lambda talk: slash_actions.new(talk, ""),
    "/undo": lambda talk: slash_actions.undo(talk, ""),
    "/model": lambda talk: slash_actions.model(talk, f"{talk.request.model} {talk.request.adapter}"),
    "/set think": lambda talk: slash_set.set_option(talk, "think off"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_after_ctrl_c_in_a_command_prompt_store_and_model_agree(
    make_chats: MakeChats, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    chats = make_chats()
    request = Request(threads=1, ctx_size=512, options={"max_tokens": "8", "seed": "1"}, **chats.settings)
    with Store.open(chats.database) as store, Talk(store, request) as talk:
        talk.ready(lambda done, total: None)
        talked(talk.session)
        feed = Seat.feed
        before = talk.session, talk.session.n_turns, talk.session.prompt.system

        def pressed(seat: Seat, tokens: Any, **how: Any) -> Any:
            if how.get("write") is False:
                os.kill(os.getpid(), signal.SIGINT)
            return feed(seat, tokens, **how)

        happened = True
        with monkeypatch.context() as patch:
            patch.setattr(Seat, "feed", pressed)
            patch.setattr("deltamem_cli.session.window.Window.cut", lambda window, turn: False)
            if name == "/new":  # it feeds while the user types
                patch.setattr(talk, "start", lambda: None)
            try:
                COMMANDS[name](talk)
            except (KeyboardInterrupt, EngineError):
                happened = False
        told = capsys.readouterr().err
        talk.ready(lambda done, total: None)
        session = talk.session
        if happened:
            assert told
        else:
            assert (session, session.n_turns, session.prompt.system) == before and not told
        assert (session.prompt.system or "") == (talk.request.system or "")
        assert_agree(session)
        say(session, "And now?")
        assert_agree(session)
