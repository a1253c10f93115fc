"""What is written of a conversation, and questions and answers where a chat template puts more around them than marks."""

from training_support import need

need("faker")


import random
from pathlib import Path

import pytest

from deltamem_cli.engine.template import ChatTemplate
from deltamem_cli.episodes import Fact, Question, Utterance
from deltamem_cli.episodes.conversation import draw_conversation
from deltamem_cli.training.encode import EncodedSession, Encoder
from deltamem_cli.training.tokens import GGUFTokenizer

# as Qwen3's, which puts an empty thought before the last reply, and SmolLM3's, which tells the date
THINKING = """{% if messages[0].role != 'system' %}<|im_start|>system
It is {{ strftime_now('%Y') }}.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOLD = [Utterance("user", "I live in Paris.", (Fact("city", "Paris"),)), Utterance("assistant", "Good.")]


@pytest.fixture(scope="module")
def plain(base: Path) -> Encoder:
    """With a template of marks alone."""
    return Encoder(GGUFTokenizer(base))


@pytest.fixture(scope="module")
def encoder(base: Path) -> Encoder:
    tokenizer = GGUFTokenizer(base)
    tokenizer.template = ChatTemplate(THINKING, "the chat template")
    return Encoder(tokenizer)


def words(encoder: Encoder, tokens: list[int]) -> str:
    return b"".join(encoder.tokenizer.piece(t) for t in tokens).decode()


def written(encoder: Encoder, session: EncodedSession) -> str:
    return words(encoder, [t for t, writes in zip(session.tokens, session.writes, strict=True) if writes])


def asking(message: str) -> str:
    """A message of the user with its marks, up to where the reply begins."""
    return f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_what_the_user_says_is_written_with_its_marks_and_nothing_else(plain: Encoder, system: str) -> None:
    rng = random.Random(0)
    for _ in range(8):
        said = draw_conversation(rng, 3, talk_turns=1, updates=1, asks=1).sessions[0]
        session = plain.session(system, said)
        assert written(plain, session) == "".join(asking(m.content) for m in said[::2])
        for n, message in enumerate(said):
            begin, end = session.place_of(n)
            assert session.writes[begin:end] == [message.role == "user"] * (end - begin)
            assert message.content in words(plain, session.tokens[begin:end])


def test_another_reply_changes_nothing_that_is_written(plain: Encoder) -> None:
    said = draw_conversation(random.Random(1), 3).sessions[0]
    other = [m if m.role == "user" else Utterance("assistant", "Something else, at length.") for m in said]
    assert written(plain, plain.session("", said)) == written(plain, plain.session("", other))


def test_the_values_of_all_facts_of_a_message_are_told_ones(plain: Encoder) -> None:
    facts = (Fact("dog", "Rex"), Fact("city", "Rome"))
    said = [Utterance("user", "My dog is Rex. I live in Rome.", facts), Utterance("assistant", "Rex, in Rome!")]
    session = plain.session("", said)
    told = [t for t, content in zip(session.tokens, session.content, strict=True) if content]
    assert words(plain, told).replace(" ", "") == "RexRome"


@pytest.mark.parametrize("shown", [[], TOLD])
@pytest.mark.parametrize("system", ["", "Be kind."])
def test_a_question_is_written_with_its_marks_and_its_answer_is_not(
    plain: Encoder, system: str, shown: list[Utterance]
) -> None:
    q = plain.question(system, Question("Where?", "You live in Paris.", "Paris", "city"), shown=shown)
    begin, end = q.written
    assert words(plain, q.prompt[begin:end] + q.head) == asking("Where?")
    assert end == len(q.prompt)
    assert ("Good." in words(plain, q.prompt[:begin])) == bool(shown)
    # from the value on, what was answered before it is part of the prompt, and not written
    part = q.at_value()
    assert part.written == q.written
    assert words(plain, part.prompt[end:] + part.head).strip() == "You live in"


def test_the_same_words_are_answered_with_another_value_as_if_they_had_been_asked_for_it(plain: Encoder) -> None:
    rng = random.Random(0)
    for _ in range(8):
        episode = draw_conversation(rng, 2, unknown=1)
        for asked in episode.questions:
            first = plain.question("", asked)
            for other in (Question(asked.content, "It is Zanzibar, I think.", "Zanzibar", asked.kind),
                          Question(asked.content, "I don't know.", "", asked.kind)):  # fmt: skip
                assert plain.answered(first, other) == plain.question("", other)


@pytest.mark.parametrize("shown", [[], TOLD])
def test_an_empty_thought_belongs_to_what_opens_the_reply(encoder: Encoder, shown: list[Utterance]) -> None:
    q = encoder.question("", Question("Where?", "Your city is Paris.", "Paris", "city"), shown=shown)
    assert words(encoder, q.prompt + q.head).endswith(asking("Where?") + "<think>\n\n</think>\n\n")
    assert words(encoder, q.answer).startswith("Your city is Paris.")
    assert words(encoder, [q.answer[i] for i in q.value_at]).strip() == "Paris"


@pytest.mark.parametrize("shown", [[], TOLD])
def test_the_whole_turn_of_the_question_is_written(encoder: Encoder, shown: list[Utterance]) -> None:
    q = encoder.question("", Question("Where?", "Your city is Paris.", "Paris", "city"), shown=shown)
    begin, end = q.written
    assert words(encoder, q.prompt[begin:end]).startswith(asking("Where?"))
    assert ("Good." in words(encoder, q.prompt[:begin])) == bool(shown)
