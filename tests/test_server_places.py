"""Conversations in the seats of one engine: each as if it were alone, and nothing lost when they take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from server_places import Talk, run, talking

from deltamem_cli.server.conversations.addressing import Address
from deltamem_cli.server.conversations.asking import Answer, Question
from deltamem_cli.server.conversations.history import History
from deltamem_cli.server.problems import Problem
from deltamem_cli.store import conversations, locks, profiles, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.reset import reset

OPTIONS = {"max_tokens": 12, "temperature": 0}


@pytest.fixture
def settings(home: Path, tiny_model: Any, tiny_adapter: Any) -> dict[str, Any]:
    from chat_support import as_if_tried

    home.mkdir()
    model = tiny_model("qwen3")
    as_if_tried(model)
    return {"model": model, "adapter": tiny_adapter(model), "options": OPTIONS, "replay_tokens": 0}


@pytest.fixture
def database(home: Path) -> Path:
    return home / "memory.db"


def state_of(database: Path, id_: str | None) -> bytes:
    assert id_
    with Store.open(database) as store:
        found = states.latest(store, id_)
        return found.state.tobytes() if found else b""


def texts_of(database: Path, id_: str | None) -> list[str]:
    assert id_
    with Store.open(database) as store:
        return [turn.messages[0].text for turn in turns.all_of(store, id_)]


def test_replies_in_one_batch_are_those_of_each_alone(settings: dict[str, Any], database: Path) -> None:
    questions = ["What is a dog?", "Tell me of the sea, and of ships upon it.", "One?", "Why?"]

    async def work() -> None:
        async with talking(database, settings, seats=4) as talk:
            alone = [(await talk.ask(f"alone {q}", q))[0] for q in questions]
            together = await asyncio.gather(*(talk.ask(f"together {q}", q) for q in questions))
            assert [text for text, _ in together] == alone
            for question, (_, finished) in zip(questions, together, strict=True):
                first, second = f"alone {question}", finished.conversation
                other = (await talk.ask(first, "x", mode="append"))[1].conversation
                with Store.open(database) as store:
                    before = states.before(store, str(other), 2)
                    assert before
                    own = states.latest(store, str(second))
                    assert own
                    assert abs(before.state - own.state).max() < 1e-5

    run(work)


def test_a_conversation_goes_on_after_others_had_its_seat(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings, seats=1) as talk:
            first, done = await talk.ask("a", "My dog is Rex.")
            await talk.ask("b", "Something else.")
            await talk.ask(None, "Nobody's.")
            _, after = await talk.ask("a", "And now?", ("My dog is Rex.", first))
            assert (after.conversation, after.turn) == (done.conversation, 2)

    run(work)


def test_more_conversations_than_seats_are_all_answered(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings, seats=2) as talk:
            done = await asyncio.gather(*(talk.ask(f"c{i}", f"Question {i}?") for i in range(9)))
            assert len({finished.conversation for _, finished in done}) == 9
            assert all(finished.turn == 1 for _, finished in done)

    run(work)


def test_questions_to_one_conversation_wait_for_each_other(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            done = await asyncio.gather(*(talk.ask("same", f"Question {i}?", mode="append") for i in range(4)))
            assert sorted(finished.turn or 0 for _, finished in done) == [1, 2, 3, 4]

    run(work)


def test_an_edited_message_leaves_the_state_of_a_conversation_that_never_had_it(
    settings: dict[str, Any], database: Path
) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            first, done = await talk.ask("edited", "My dog is Rex.")
            second, _ = await talk.ask("edited", "He is old.", ("My dog is Rex.", first))
            await talk.ask("edited", "Third.", ("My dog is Rex.", first), ("He is old.", second))
            _, edited = await talk.ask("edited", "He is young.", ("My dog is Rex.", first))
            assert edited.turn == 2
            await talk.ask("fresh", "My dog is Rex.")
            _, fresh = await talk.ask("fresh", "He is young.", ("My dog is Rex.", first))
            assert fresh.turn == 2
        assert texts_of(database, done.conversation) == ["My dog is Rex.", "He is young."]
        assert state_of(database, edited.conversation) == state_of(database, fresh.conversation)

    run(work)


def test_an_edit_that_is_not_answered_takes_nothing_back(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            first, done = await talk.ask("chat", "My dog is Rex.")
            second, _ = await talk.ask("chat", "He is old.", ("My dog is Rex.", first))
            before = state_of(database, done.conversation)
            with pytest.raises(Problem):
                await talk.ask("chat", "He is young.", ("My dog is Rex.", first), grammar="root ::= (")
            left = talk.begin("chat", "He is young. " * 500, ("My dog is Rex.", first))
            session = talk.places.warm[0].session
            filled = session.context_filled
            while session.context_filled == filled:  # until it is being read
                await asyncio.sleep(0)
            left.stop()
            with pytest.raises(Problem):
                await left.begin()
            assert texts_of(database, done.conversation) == ["My dog is Rex.", "He is old."]
            assert state_of(database, done.conversation) == before
            _, third = await talk.ask("chat", "Third.", ("My dog is Rex.", first), ("He is old.", second))
            assert third.turn == 3

    run(work)


def test_an_edit_that_is_only_to_be_read_is_answered_and_takes_nothing_back(
    settings: dict[str, Any], database: Path
) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            first, done = await talk.ask("chat", "My dog is Rex.")
            await talk.ask("chat", "He is old.", ("My dog is Rex.", first))
            before = state_of(database, done.conversation)
            text, _ = await talk.ask("chat", "He is young.", ("My dog is Rex.", first), settings={"read_only": True})
            assert texts_of(database, done.conversation) == ["My dog is Rex.", "He is old."]
            assert state_of(database, done.conversation) == before
            assert text

    run(work)


def test_a_request_for_a_title_leaves_the_memory_alone(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            _, done = await talk.ask("chat", "My dog is Rex.")
            before = state_of(database, done.conversation)
            text, beside = await talk.ask("chat", "### Task: Generate a title.")
            assert text
            assert beside.conversation is None
            assert state_of(database, done.conversation) == before
        assert texts_of(database, done.conversation) == ["My dog is Rex."]

    run(work)


def test_what_names_no_conversation_is_stored_nowhere(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            first, _ = await talk.ask(None, "My dog is Rex.")
            _, second = await talk.ask(None, "What?", ("My dog is Rex.", first))
            assert second.stats.context_tokens > 0  # the window of the first was used again
            assert second.stats.written_tokens == 0
        with Store.open(database) as store:
            assert store.counts()["turns"] == 0

    run(work)


def test_read_only_keeps_nothing_of_the_turn(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            _, done = await talk.ask("chat", "My dog is Rex.")
            before = state_of(database, done.conversation)
            _, read = await talk.ask("chat", "Who is Rex?", mode="append", settings={"read_only": True})
            assert (read.turn, state_of(database, done.conversation)) == (None, before)
            (_, read), (_, after) = await asyncio.gather(
                talk.ask("chat", "Who is Rex?", mode="append", settings={"read_only": True}),
                talk.ask("chat", "And now?", mode="append"),
            )
            assert (read.turn, after.turn) == (None, 2)
            with Store.open(database) as store:
                assert turns.get(store, str(done.conversation), 2).context["n_past"] == after.stats.context_tokens
        assert texts_of(database, done.conversation) == ["My dog is Rex.", "And now?"]

    run(work)


def test_a_client_that_leaves_frees_its_seat_and_what_was_said_is_kept(
    settings: dict[str, Any], database: Path
) -> None:
    async def work() -> None:
        async with talking(database, settings, seats=1) as talk:
            answer = talk.begin("chat", "A long story, please.", options={"max_tokens": 200})
            await answer.begin()
            answer.stop()
            _, other = await talk.ask("other", "Next?")
            assert other.turn == 1
            with Store.open(database) as store:
                (turn,) = turns.all_of(store, str(answer.conversation))
                assert turn.interrupted
                assert turn.reply_tokens < 200

    run(work)


def test_a_client_that_leaves_the_line_is_forgotten(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings, seats=1) as talk:
            answer = talk.begin("chat", "A long story, please.", options={"max_tokens": 200})
            await answer.begin()
            waiting = talk.begin("other", "Next?")
            while not talk.places.n_waiting:
                await asyncio.sleep(0)
            waiting.stop()
            with pytest.raises(Problem):
                await waiting.begin()
            assert not talk.places.n_waiting
            answer.stop()
            assert (await talk.ask("third", "And I?"))[1].turn == 1

    run(work)


def test_a_conversation_that_another_program_holds_is_refused_and_the_others_go_on(
    settings: dict[str, Any], database: Path
) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            _, done = await talk.ask("chat", "My dog is Rex.")
            with Store.open(database) as other:
                locks.hold(other, str(done.conversation))
                with pytest.raises(Problem) as refused:
                    await talk.ask("chat", "What?", mode="append")
                assert refused.value.status == 409
                await talk.ask("second", "Hello?")
            _, after = await talk.ask("chat", "What?", mode="append")
            assert after.turn == 2

    run(work)


def test_a_question_of_another_program_is_waited_for(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            _, done = await talk.ask("chat", "My dog is Rex.")
            with Store.open(database) as other:
                locks.hold(other, str(done.conversation), brief=True)
                waiting = asyncio.create_task(talk.ask("chat", "What?", mode="append"))
                await asyncio.sleep(0.4)
                assert not waiting.done()
            assert (await waiting)[1].turn == 2

    run(work)


def test_what_another_program_changed_in_between_is_seen(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            await talk.ask("chat", "One.", mode="append")
            _, done = await talk.ask("chat", "Two.", mode="append")
            with Store.open(database) as store:
                turns.undo(store, str(done.conversation))
            _, after = await talk.ask("chat", "Other two.", mode="append")
            assert after.turn == 2
        assert texts_of(database, done.conversation) == ["One.", "Other two."]

    run(work)


def test_a_memory_that_another_program_reset_or_made_anew_is_seen(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            _, done = await talk.ask("chat", "One.", mode="append")
            await talk.ask("chat", "Two.", mode="append")
            id_ = str(done.conversation)
            with Store.open(database) as store:
                first = states.after(store, id_, 1)
                reset(store, [conversations.get(store, id_)], transcript=False)
            assert not state_of(database, id_)
            _, third = await talk.ask("chat", "Third.", mode="append")
            assert third.turn == 3
            assert state_of(database, id_) == state_of(database, (await talk.ask("other", "Third."))[1].conversation)
            with Store.open(database) as store:  # as a replay does that leaves out turn 2
                turns.replace_after_forgetting(store, id_, [2], {3: turns.Replayed(first)})
            (place,) = (place for place in talk.places.warm if place.key == id_)
            await talk.ask("chat", "Fourth.", mode="append")
            assert place not in talk.places.warm

    run(work)


def test_settings_that_a_profile_was_given_count_from_the_next_question_on(
    settings: dict[str, Any], database: Path
) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            await talk.ask("chat", "One.", mode="append")
            (kept,) = talk.places.warm
            await talk.ask("chat", "Two.", mode="append")
            assert talk.places.warm == [kept]
            with Store.open(database) as store:
                profiles.change(store, "default", system="Be brief.")
            await talk.ask("chat", "Three.", mode="append")
            assert [place.session.prompt.system for place in talk.places.warm] == ["Be brief."]

    run(work)


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_profile_that_was_renamed_is_not_reached_by_its_old_name(
    settings: dict[str, Any], database: Path, name: str | None
) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:

            async def said(text: str) -> str:
                question = Question(History(text), "work", Address(name, "work", "goes_on"))
                answer = Answer(talk.places, question)
                await answer.begin()
                assert [piece async for piece in answer.pieces()]
                return str(answer.conversation)

            first = await said("My dog is Rex.")
            with Store.open(database) as store:
                profiles.rename(store, "work", "home")
            second = await said("Who is my dog?")
            assert second == await said("Really?") != first
        assert texts_of(database, first) == ["My dog is Rex."]
        assert texts_of(database, second) == ["Who is my dog?", "Really?"]

    run(work)


def test_a_database_that_took_the_place_of_another_is_gone_on_with(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            await talk.ask("chat", "Old one.")
            for file in database.parent.glob("memory.db*"):
                if file.is_file():
                    file.unlink()
            for turn, question in enumerate(["One.", "Two."], 1):
                _, done = await talk.ask("chat", question, mode="append")
                assert done.turn == turn
        assert texts_of(database, done.conversation) == ["One.", "Two."]

    run(work)


def test_two_chats_of_one_profile_share_its_memory_and_take_nothing_from_each_other(
    settings: dict[str, Any], database: Path
) -> None:
    async def ask(talk: Talk, question: str, *said: tuple[str, str]) -> str:
        return (await talk.ask("memory", question, *said, mode="goes_on"))[0]

    async def work() -> None:
        async with talking(database, settings) as talk:
            one = await ask(talk, "Chat one.")
            two = await ask(talk, "Chat two.")
            await ask(talk, "More of one.", ("Chat one.", one))
            await ask(talk, "More of two.", ("Chat two.", two))
            await ask(talk, "More of two, edited.", ("Chat two.", two))
            id_ = talk.places.warm[0].key
        assert texts_of(database, id_) == ["Chat one.", "Chat two.", "More of one.", "More of two, edited."]

    run(work)


def test_a_profile_s_conversation_is_the_one_that_a_chat_goes_on_with(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        from deltamem_cli.server.conversations.addressing import Address
        from deltamem_cli.server.conversations.asking import Answer, Question
        from deltamem_cli.server.conversations.history import History

        async with talking(database, settings) as talk:
            for text in ("One.", "Two."):
                answer = Answer(talk.places, Question(History(text), "work", Address(None, "work", "goes_on")))
                await answer.begin()
                assert [piece async for piece in answer.pieces()]
        with Store.open(database) as store:
            (found,) = conversations.all_of(store, profiles.get(store, "work"))
            assert texts_of(database, found.id) == ["One.", "Two."]

    run(work)


def test_a_stop_word_ends_the_reply_and_is_no_part_of_it(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            text, _ = await talk.ask("a", "Say something.")
            word = text[3:6]
            cut, finished = await talk.ask("b", "Say something.", stop=(word,))
            assert cut == text[: text.find(word)]
            assert finished.reason == "stop"
            with Store.open(database) as store:
                (turn,) = turns.all_of(store, str(finished.conversation))
                assert turn.messages[-1].text == cut

    run(work)


def test_a_reply_keeps_to_its_grammar(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            text, finished = await talk.ask("a", "Yes or no?", grammar='root ::= "yes" | "no"')
            assert text in ("yes", "no")
            assert finished.reason == "stop"
            with pytest.raises(Problem) as refused:
                await talk.ask("b", "Yes or no?", grammar="root ::= (")
            assert refused.value.status == 400

    run(work)


def test_a_full_disk_is_told_and_the_conversation_goes_on_when_there_is_room(
    settings: dict[str, Any], database: Path
) -> None:
    async def work() -> None:
        async with talking(database, settings) as talk:
            await talk.ask("chat", "One.", mode="append")
            connection = talk.places.warm[0].store.connection
            (size,) = connection.execute("PRAGMA max_page_count").fetchone()
            connection.execute("PRAGMA max_page_count = 1")
            with pytest.raises(Problem) as refused:
                await talk.ask("chat", "Two. " * 3000, mode="append")
            assert refused.value.status == 507
            connection.execute(f"PRAGMA max_page_count = {size}")
            _, done = await talk.ask("chat", "Other two.", mode="append")
            assert done.turn == 2
        assert texts_of(database, done.conversation) == ["One.", "Other two."]

    run(work)


def test_ending_commits_what_was_said_and_begins_nothing(settings: dict[str, Any], database: Path) -> None:
    async def work() -> None:
        async with talking(database, settings, seats=1) as talk:
            answer = talk.begin("chat", "A long story, please.", options={"max_tokens": 200})
            await answer.begin()
            waiting = talk.begin("other", "Next?")
            while not talk.places.n_waiting:
                await asyncio.sleep(0)
            talk.places.stop_all()
            with suppress(Problem):
                assert [piece async for piece in answer.pieces()]
            with pytest.raises(Problem) as refused:
                await waiting.begin()
            assert refused.value.status == 503
        with Store.open(database) as store:
            (turn,) = turns.all_of(store, str(answer.conversation))
            assert turn.interrupted
            assert store.counts()["turns"] == 1

    run(work)


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_memories_that_write_messages_share_batches_too(
    granularity: str, settings: dict[str, Any], database: Path, tiny_model: Callable[..., Path], tiny_adapter: Any
) -> None:
    adapter = tiny_adapter(tiny_model("qwen3"), write_granularity=granularity)

    async def work() -> None:
        async with talking(database, {**settings, "adapter": adapter}, seats=3) as talk:
            alone = [(await talk.ask(f"alone {i}", f"Question {i}?"))[0] for i in range(3)]
            done = await asyncio.gather(*(talk.ask(f"together {i}", f"Question {i}?") for i in range(3)))
            assert [text for text, _ in done] == alone

    run(work)
