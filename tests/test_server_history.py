"""What a client's history means for what is stored, and which conversation a request is about."""

from __future__ import annotations

from typing import Any

import pytest

from deltamem_cli.server.conversations import addressing
from deltamem_cli.server.conversations.history import History, Plan, Said, plan
from deltamem_cli.server.problems import Problem

ONE, TWO, THREE = (("a", "A"), ("b", "B"), ("c", "C"))


def stored(*exchanges: tuple[str, str], chat: int | None = None, first: int = 1) -> list[Said]:
    return [Said(number, user, reply, chat) for number, (user, reply) in enumerate(exchanges, first)]


def test_what_is_stored_already_is_not_fed_again() -> None:
    assert plan(History("c", (ONE, TWO)), stored(ONE, TWO), "mirror") == Plan()
    assert plan(History("c", (ONE, TWO)), stored(ONE, TWO), "goes_on") == Plan(chat=1)


def test_what_the_client_has_and_nobody_stored_is_fed() -> None:
    assert plan(History("c", (ONE, TWO)), stored(ONE), "mirror") == Plan(feed=(TWO,))
    assert plan(History("c", (ONE, TWO)), [], "goes_on") == Plan(feed=(ONE, TWO))


def test_an_edited_message_goes_back_to_the_turn_before_it() -> None:
    assert plan(History("other", (ONE,)), stored(ONE, TWO, THREE), "mirror") == Plan(undo=2)
    assert plan(History("other", (("x", "X"),)), stored(ONE, TWO), "mirror") == Plan(undo=1, feed=(("x", "X"),))


def test_a_reply_asked_for_again_takes_the_old_turn_back() -> None:
    assert plan(History("b", (ONE,)), stored(ONE, TWO), "mirror") == Plan(undo=2)
    assert plan(History("a"), stored(ONE), "mirror") == Plan(undo=1)


def test_a_client_that_left_out_its_oldest_turns_goes_on() -> None:
    assert plan(History("d", (TWO, THREE)), stored(ONE, TWO, THREE), "mirror") == Plan()


def test_white_space_around_a_text_is_no_edit() -> None:
    assert plan(History("b", (("a ", " A\n"),)), stored(ONE), "mirror") == Plan()


def test_a_single_message_that_is_not_the_first_one_is_beside_the_conversation() -> None:
    assert plan(History("### Task: a title"), stored(ONE, TWO), "mirror") is None


def test_a_new_chat_of_a_memory_takes_nothing_back() -> None:
    assert plan(History("hello"), stored(ONE, TWO), "goes_on") == Plan()
    assert plan(History("x", (("hello", "hi"),)), stored(ONE, TWO), "goes_on") == Plan(feed=(("hello", "hi"),))


def test_a_request_for_a_title_is_told_by_what_it_quotes() -> None:
    said = stored(("My dog is Rex.", "A fine name."))
    assert plan(History("Title for: USER: My dog is Rex. ASSISTANT: A fine name."), said, "goes_on") is None
    assert plan(History("My dog is Rex."), said, "goes_on") == Plan()


def test_turns_of_another_chat_are_never_taken_back() -> None:
    """Chat one is asked again while chat two was held after it: its turn is shown, not the other's undone."""
    both = [*stored(ONE, TWO, chat=1), *stored(THREE, chat=3, first=3)]
    assert plan(History("again", (ONE,)), both, "goes_on") == Plan(show=[1], chat=1)
    assert plan(History("again", (ONE,)), both[:2], "goes_on") == Plan(undo=2, chat=1)
    mixed = [*stored(ONE, chat=1), *stored(THREE, chat=2, first=2), *stored(TWO, chat=1, first=3)]
    assert plan(History("again", (ONE,)), mixed, "goes_on") == Plan(undo=3, show=[1], chat=1)


def test_turns_whose_text_was_not_kept_fit_any() -> None:
    assert plan(History("c", (ONE, TWO)), [Said(1, None, None), Said(2, None, None)], "mirror") == Plan()


def test_a_client_that_sends_what_is_new_alone_appends() -> None:
    assert plan(History("a"), stored(ONE, TWO), "append") == Plan()


@pytest.mark.parametrize(
    ("headers", "body", "conversation", "mode"),
    [
        ({"x-dmem-conversation": "c", "x-openwebui-chat-id": "o"}, {"user": "u"}, "c", "goes_on"),
        ({"x-openwebui-chat-id": "o", "x-session-id": "s"}, {}, "o", "mirror"),
        ({"session_id": "s"}, {"conversation": "c"}, "s", "mirror"),
        ({}, {"conversation": {"id": "c"}, "user": "u"}, "c", "goes_on"),
        ({}, {"metadata": {"conversation": "m"}, "prompt_cache_key": "k"}, "m", "goes_on"),
        ({}, {"prompt_cache_key": "k", "user": "u"}, "k", "mirror"),
        ({}, {"user": "u"}, "u", "goes_on"),
    ],
)
def test_the_first_name_that_is_there_counts(
    headers: dict[str, str], body: dict[str, Any], conversation: str, mode: str
) -> None:
    found = addressing.find(headers, body, "work")
    assert found
    assert (found.conversation, found.profile, found.mode) == (conversation, "work", mode)


def test_a_profile_alone_is_its_last_conversation() -> None:
    for headers, body, profile in (
        ({"x-dmem-profile": "work", "x-openwebui-chat-id": "o"}, {}, None),
        ({}, {"metadata": {"profile": "work"}, "user": "u"}, None),
        ({}, {}, "work"),
    ):
        assert addressing.find(headers, body, profile) == addressing.Address(None, "work", "goes_on")


def test_nothing_named_is_no_memory() -> None:
    assert addressing.find({}, {}, None) is None


@pytest.mark.parametrize("body", [{"user": 3}, {"metadata": []}, {"conversation": "x" * 1000}])
def test_a_name_that_can_be_none_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Problem):
        addressing.find({}, body, None)


def test_equal_names_in_two_profiles_are_two_conversations() -> None:
    address = addressing.Address("chat", None, "mirror")
    assert next(address.derived_ids("a")) != next(address.derived_ids("b"))
