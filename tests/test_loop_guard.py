"""A reply that goes round in circles is ended, once said, and what was shown is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chat_support import MakeChats, assert_agree

from deltamem_cli.engine.loops import LONGEST_PART, SHORTEST, is_looping
from deltamem_cli.session.window import Window
from deltamem_cli.store import turns
from deltamem_cli.terminal.one_reply import warn_of_loop

SENTENCE = list(range(10, 22))


def test_a_sentence_that_is_said_three_times_is_a_loop() -> None:
    assert is_looping([1, 2, *SENTENCE * 3], 3)
    assert not is_looping([1, 2, *SENTENCE * 2], 3)
    assert not is_looping([*SENTENCE * 3, 1], 3)
    assert not is_looping(SENTENCE * 3, 4) and is_looping(SENTENCE * 4, 4)
    assert not is_looping(SENTENCE * 30, 0)
    longest = list(range(LONGEST_PART))
    assert is_looping(longest * 3, 3) and not is_looping([*longest, 999] * 3, 3)


def test_few_short_repeats_are_no_loop() -> None:
    assert not is_looping([5] * (SHORTEST - 1), 3) and is_looping([5] * SHORTEST, 3)
    assert not is_looping([5, 6] * (SHORTEST // 2 - 1), 3)
    assert not is_looping([], 3)


@pytest.fixture
def circling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the model say one sentence again and again."""

    def reply(
        self: Window, turn: int, sampling: Any, *, write: bool, take: Any, max_tokens: int, **_: Any
    ) -> Iterator[int]:
        for count in range(max_tokens):
            token = SENTENCE[count % len(SENTENCE)]
            self.feed(turn, [token], write=write, spans=[take(token)])
            yield token

    monkeypatch.setattr(Window, "reply", reply)


@pytest.mark.usefixtures("circling")
def test_a_looping_reply_ends_and_is_kept_as_it_was_shown(make_chats: MakeChats) -> None:
    with make_chats().open(options={"max_tokens": "100"}) as (session, _):
        shown = "".join(session.ask("Tell me more."))
        assert session.stats.looped and not session.stats.interrupted
        assert session.stats.reply_tokens == 3 * len(SENTENCE)
        assert turns.get(session.store, session.conversation.id, 1).messages[1].text == shown
        assert_agree(session)
        told = warn_of_loop(session) or ""
        assert "-o loop_guard 0" in told and "/set loop_guard 0" in told


@pytest.mark.usefixtures("circling")
def test_the_guard_can_be_turned_off(make_chats: MakeChats) -> None:
    with make_chats().open(options={"max_tokens": "100", "loop_guard": "0"}) as (session, _):
        list(session.ask("Tell me more."))
        assert session.stats.reply_tokens == 100 and not session.stats.looped
        assert warn_of_loop(session) is None
