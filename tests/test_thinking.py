"""What a model thinks is told from what it answers; it is not written, not seen later, and stays with its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_support import GRANULARITIES, Chats, MakeChats, assert_agree, relative, say, state_bytes

from deltamem_cli.engine import EngineError, Seat
from deltamem_cli.errors import DeltamemError
from deltamem_cli.session import beginning
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.replay import replay
from deltamem_cli.session.reply import Reply
from deltamem_cli.session.thinking import KNOWN, Mark, Splitter, Thought, control, parted
from deltamem_cli.store import states, turns, wiping
from deltamem_cli.store.records import THINKING

REPLY = "<think>\nShe is Ana. So: Ana!\n</think>\n\nYou are Ana. I am sure."
THOUGHT, ANSWER = "She is Ana. So: Ana!", "You are Ana. I am sure."
TURN = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
OPENS = (
    "{% for message in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
SWITCHES = (
    "{% for message in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def answer(session: ChatSession, text: str, reply: str = REPLY) -> tuple[str, str]:
    """Gives the model its reply. Returns what was thought and what was answered, as it came."""
    return parted(session.ask(text, reply=session.engine.model.tokenize(reply)))


def assert_replays(session: ChatSession, model: Any, adapter: Any) -> None:
    again = replay(session.store, session.conversation.id, session.seat, model=model, adapter=adapter)
    for turn in turns.all_of(session.store, session.conversation.id):
        stored = states.after(session.store, session.conversation.id, turn.number)
        assert relative(again[turn.number].snapshot.state, stored.state) <= 0.01


@pytest.mark.parametrize(
    ("begun", "reply", "thought", "answered"),
    [
        ("", REPLY, "She is Ana. So: Ana!\n", ANSWER),
        ("", "\n <think>a</think>b", "a", "b"),
        ("", "No tags.", "", "No tags."),
        ("", "  <b>bold</b>", "", "  <b>bold</b>"),
        ("", "<thin ice", "", "<thin ice"),
        ("", "I <think>so</think>.", "", "I <think>so</think>."),  # only at the beginning
        ("", "<think>a</thin>b</think>c</think>", "a</thin>b", "c</think>"),
        ("", "<think>never ends </thi", "never ends </thi", ""),
        ("", "<thi", "", "<thi"),
        ("<think>\n", "a\n</think>\nb", "a\n", "b"),
        ("<think>\n\n</think>\n\n", "b", "", "b"),
        ("<think>\n\n</think>\n\n", "<think>b", "", "<think>b"),
        ("", "", "", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_tags_are_found_however_the_reply_is_cut(
    begun: str, reply: str, thought: str, answered: str, size: int
) -> None:
    splitter = Splitter(begun)
    pieces = [piece for i in range(0, len(reply), size) for piece in splitter.add(reply[i : i + size])]
    pieces += splitter.finish()
    assert parted(pieces) == (thought, answered) == (splitter.thought, splitter.answer)
    assert [isinstance(piece, Thought) for piece in pieces] == sorted(
        (isinstance(piece, Thought) for piece in pieces), reverse=True
    )


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("mark", KNOWN, ids=lambda mark: mark.open)
def test_the_marks_of_all_known_models_are_found(mark: Mark, size: int) -> None:
    for reply, wanted in [
        (f"{mark.open}He lies.{mark.close}{mark.label}Hello!", ("He lies.", "Hello!")),
        (f"{mark.label}Hello!", ("", "Hello!")),
        ("Hello!", ("", "Hello!")),
        (mark.open[:-1], ("", mark.open[:-1])),
    ]:
        splitter = Splitter("", KNOWN)
        pieces = [piece for i in range(0, len(reply), size) for piece in splitter.add(reply[i : i + size])]
        assert parted([*pieces, *splitter.finish()]) == wanted
    opened = Splitter(f"{mark.open}\n", KNOWN)
    pieces = [*opened.add(f"He lies.{mark.close}{mark.label}Hello!"), *opened.finish()]
    assert parted(pieces) == ("He lies.", "Hello!")


@pytest.mark.parametrize("begun", [False, True])
def test_marks_that_are_control_tokens_part_a_reply_and_others_are_no_text(chats: Chats, begun: bool) -> None:
    opens, closes = "<|im_start|>", "<|im_end|>"
    with chats.open() as (session, _):
        model = session.engine.model
        reply = Reply(
            session.seat,
            begun=opens if begun else "",
            first_span=0,
            write_answer=True,
            write_thinking=False,
            marks=[Mark(control(opens), control(closes))],
        )
        tokens = model.tokenize(f"{'' if begun else opens}He lies.{closes}Hel<|endoftext|>lo!{closes}", special=True)
        for token in tokens:
            reply.take(token)
        reply.finish()
        assert (reply.thought, reply.text) == ("He lies.", "Hello!")
        thought = tokens[: reply.n_thinking]
        assert model.text(thought, special=True).endswith(closes)
        assert reply.spans == [-1] * len(thought) + [0] * (len(tokens) - len(thought))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_thought_is_kept_apart_and_leaves_the_window(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open() as (session, _):
        thought, answered = answer(session, "Who am I?")
        assert (thought.strip(), answered) == (THOUGHT, ANSWER)
        turn = turns.get(session.store, session.conversation.id, 1)
        assert [(message.role, message.text) for message in turn.messages] == [
            ("user", "Who am I?"),
            (THINKING, THOUGHT),
            ("assistant", ANSWER),
        ]
        model = session.engine.model
        assert model.text(turn.messages[1].tokens) == "<think>\nShe is Ana. So: Ana!\n</think>\n\n"
        assert session.window.tokens(1) == [*turn.messages[0].tokens, *turn.messages[2].tokens]
        assert session.stats.thinking_tokens == len(turn.messages[1].tokens)
        assert_agree(session)
        say(session, "The next turn works.")
        assert_agree(session)


def test_what_looks_like_a_tag_and_is_none_belongs_to_the_answer(chats: Chats) -> None:
    with chats.open() as (session, _):
        for number, reply in enumerate(["<thin> ice.", " <th"], 1):
            assert answer(session, "What?", reply) == ("", reply)
            messages = turns.get(session.store, session.conversation.id, number).messages
            assert [message.role for message in messages] == ["user", "assistant"] and messages[1].text == reply
            assert session.stats.thinking_tokens == 0
            assert_agree(session)


def test_a_thought_that_is_written_shares_no_sentence_with_the_answer(make_chats: MakeChats) -> None:
    with make_chats("sentence_mean").open(remember_thinking=True) as (session, _):
        answer(session, "What?", "<think>One. Two</think>Three. Four.")
        _, thought, said = turns.get(session.store, session.conversation.id, 1).messages
        assert len(set(thought.spans)) == 2 and set(thought.spans).isdisjoint(said.spans)
        assert sorted(set(said.spans)) == [max(thought.spans) + 1, max(thought.spans) + 2]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_thoughts_are_fed_with_writing_off(
    make_chats: MakeChats, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_chats(granularity).open() as (session, _):
        fed: list[tuple[list[int], list[bool], bool]] = []
        feed = Seat.feed

        def watched(seat: Seat, tokens: list[int], **options: Any) -> Any:
            before = seat.state().tobytes()
            result = feed(seat, tokens, **options)
            spans = options.get("spans") or [0] * len(tokens)
            written = [options["write"] and span >= 0 for span in spans]
            fed.append((list(tokens), written, seat.state().tobytes() != before))
            return result

        monkeypatch.setattr(Seat, "feed", watched)
        answer(session, "Who am I?")
        thoughts = turns.get(session.store, session.conversation.id, 1).messages[1]
        each = [pair for tokens, written, _ in fed for pair in zip(tokens, written, strict=True)]
        written = [token for token, is_written in each if is_written]
        if granularity == "token":
            assert [token for token, is_written in each if not is_written] == thoughts.tokens
            assert all(changed == any(of_tokens) for _, of_tokens, changed in fed)
        else:
            assert set(thoughts.spans) == {-1}
        assert len(written) > 20
        assert session.stats.written_tokens == sum(
            len(m.tokens) if m.spans is None else sum(span >= 0 for span in m.spans)
            for m in turns.get(session.store, session.conversation.id, 1).messages
            if m.role != THINKING
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_thoughts_are_written_when_that_is_wanted(make_chats: MakeChats, granularity: str) -> None:
    with make_chats(granularity).open(remember_thinking=True) as (session, loaded):
        answer(session, "Who am I?")
        thoughts = turns.get(session.store, session.conversation.id, 1).messages[1]
        assert thoughts.spans is None or min(thoughts.spans) >= 0
        wanted = state_bytes(session)
        assert_agree(session)
        answer(session, "And now?")
        assert_replays(session, loaded.model, loaded.adapter)
    with make_chats(granularity).open(new=True) as (session, _):
        answer(session, "Who am I?")
        assert state_bytes(session) != wanted


@pytest.mark.parametrize("arch", ["qwen3", "gemma3"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_replay_of_turns_with_thoughts_reproduces_every_state(
    make_chats: MakeChats, granularity: str, arch: str
) -> None:
    chats = make_chats(granularity, arch, ctx_size=256)
    with chats.open() as (session, _):
        answer(session, "Hello. I am Ana!")
        answer(
            session, "What? Why?", "<think>" + "Hm. Let me see! " * 25 + "</think>Because."
        )  # longer than the window
        say(session, "No thought here.")
        answer(session, "Only thoughts?", "<think>I will never")
        answer(session, "To make again.")
        list(session.regenerate())
        session.set_system("You are terse.")
        answer(session, "With a system prompt.", "  <html> is no thought.")
        assert_agree(session)
    with chats.open() as (session, loaded):
        answer(session, "A new day.")
        session.undo()
        answer(session, "A new night.")
        assert_agree(session)
        assert_replays(session, loaded.model, loaded.adapter)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_turn_with_thoughts_is_forgotten_like_any_other(
    make_chats: MakeChats, granularity: str, tmp_path: Path
) -> None:
    with make_chats(granularity).open() as (session, loaded):
        answer(session, "I am Ana.")
        answer(session, "The secret?", "<think>The xylophone.</think>I will not tell.")
        answer(session, "I like tea.")
        session.forget([2])
        assert session.window.turns == [1, 3]
        assert_agree(session)
        assert_replays(session, loaded.model, loaded.adapter)
        say(session, "The end.")
        assert_agree(session)
        wiping.wipe(session.store, lambda typed: None)
    assert not any(b"xylophone" in path.read_bytes() for path in tmp_path.rglob("memory.db*") if path.is_file())


def test_the_next_session_is_shown_no_thoughts(chats: Chats) -> None:
    with chats.open() as (session, _):
        answer(session, "Who am I?")
        first = session.window.tokens(1)
    with chats.open() as (session, _):
        assert session.window.turns == [1] and session.window.tokens(1) == first
        assert beginning.tokens(turns.get(session.store, session.conversation.id, 1)) == first
        session.set_system("Be brief.")
        assert session.window.tokens(1) == first


class Script:
    """Draws what it was given, token by token, then the end."""

    def __init__(self, session: ChatSession, reply: str) -> None:
        model = session.engine.model
        end = next(token for token in range(model.n_vocab) if model.is_end(token))
        self._tokens = iter([*model.tokenize(reply), end])

    def sample(self) -> int:
        return next(self._tokens)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("how", ["stop", "close"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_stopped_in_the_middle_of_a_thought_all_still_agree(
    make_chats: MakeChats, granularity: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_chats(granularity).open(options={"seed": "1"}) as (session, loaded):
        with monkeypatch.context() as patched:
            patched.setattr(Seat, "sampler", lambda seat, *_: Script(session, REPLY))
            shown = ""
            pieces = session.ask("Who am I?")
            for piece in pieces:
                assert isinstance(piece, Thought)
                shown += piece
                if "Ana" in shown:
                    session.stop() if how == "stop" else pieces.close()
        turn = turns.get(session.store, session.conversation.id, 1)
        assert turn.interrupted and turn.messages[1].text == shown and turn.messages[2].text == ""
        assert_agree(session)
        session.settings = type(session.settings)(max_tokens=8)
        say(session, "Go on.")
        assert_agree(session)
        assert_replays(session, loaded.model, loaded.adapter)


def test_a_drawn_reply_is_split_like_a_given_one(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    with chats.open(options={"seed": "1"}) as (session, _):
        with monkeypatch.context() as patched:
            patched.setattr(Seat, "sampler", lambda seat, *_: Script(session, REPLY))
            drawn = list(session.ask("Who am I?"))
        first = turns.get(session.store, session.conversation.id, 1).messages
        written = state_bytes(session)
        session.undo()
        answer(session, "Who am I?")
        given = turns.get(session.store, session.conversation.id, 1).messages
        assert [(m.role, m.text, m.tokens, m.spans) for m in first] == [
            (m.role, m.text, m.tokens, m.spans) for m in given
        ]
        assert parted(drawn)[0].strip() == THOUGHT
        assert np.allclose(np.frombuffer(written, np.float32), session.seat.state().ravel(), rtol=0, atol=1e-4)


def template(folder: Path, text: str) -> Path:
    file = folder / "template.jinja"
    file.write_text(text)
    return file


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_template_may_begin_the_thought_itself(make_chats: MakeChats, granularity: str, tmp_path: Path) -> None:
    with make_chats(granularity).open(template=template(tmp_path, OPENS)) as (session, loaded):
        thought, answered = answer(session, "Who am I?", REPLY.partition("\n")[2])
        assert (thought.strip(), answered) == (THOUGHT, ANSWER)
        user, thoughts, said = turns.get(session.store, session.conversation.id, 1).messages
        text = session.engine.model.text
        assert text(user.tokens, special=True).endswith("<|im_start|>assistant\n")
        assert text(thoughts.tokens).startswith("<think>\n") and "think" not in text(said.tokens)
        assert thoughts.spans is not None and set(thoughts.spans) == {-1}
        answer(session, "And now?", "Only thoughts.")
        assert turns.get(session.store, session.conversation.id, 2).messages[2].text == ""
        assert_agree(session)
        assert_replays(session, loaded.model, loaded.adapter)


def test_thinking_is_switched_on_and_off_where_the_template_can(chats: Chats, tmp_path: Path) -> None:
    with chats.open(template=template(tmp_path, SWITCHES)) as (session, loaded):
        answer(session, "One.")
        assert session.prompt.begin() == []
        session.set_think(False)
        assert session.prompt.marks.begun == "<think>\n\n</think>\n\n"
        assert answer(session, "Two.", "At once.") == ("", "At once.")
        roles = [message.role for message in turns.get(session.store, session.conversation.id, 2).messages]
        assert roles == ["user", THINKING, "assistant"]  # the empty thought was fed, so it is kept for a replay
        session.set_think(None)
        answer(session, "Three.")
        assert_agree(session)
        assert_replays(session, loaded.model, loaded.adapter)
    with chats.open(new=True, template=template(tmp_path, SWITCHES), think=False) as (session, _):
        assert session.prompt.begin()


def test_a_template_without_a_switch_says_so(chats: Chats) -> None:
    with chats.open() as (session, _):
        say(session, "One.")
        for think in (True, False):
            with pytest.raises(EngineError, match="can't switch thinking on or off: leave it as it is"):
                session.set_think(think)
        assert session.window.turns == [1]
        session.set_think(None)
        assert_agree(session)
    with pytest.raises(DeltamemError, match="can't switch thinking"), chats.open(think=True):
        pass
