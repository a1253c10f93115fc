"""Questions and answers where a chat template puts more around them than marks."""

from training_support import need

need("faker")


import pytest

from deltamem_cli.engine.template import ChatTemplate
from deltamem_cli.episodes import Message, Question
from deltamem_cli.synthetic import write_model
from deltamem_cli.training.encode import Encoder
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
TOLD = [Message("user", "I live in Paris.", "Paris", "city"), Message("assistant", "Good.")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    tokenizer = GGUFTokenizer(write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", seed=1))
    tokenizer.template = ChatTemplate(THINKING, "the chat template")
    return Encoder(tokenizer)


def words(encoder: Encoder, tokens: list[int]) -> str:
    return b"".join(encoder.tokenizer.piece(t) for t in tokens).decode()


@pytest.mark.parametrize("shown", [[], TOLD])
def test_an_empty_thought_belongs_to_what_opens_the_reply(encoder: Encoder, shown: list[Message]) -> None:
    q = encoder.question("", Question("Where?", "Your city is Paris.", "Paris", "city"), shown=shown)
    assert words(encoder, q.head).endswith("</think>\n\n")
    assert words(encoder, q.answer).startswith("Your city is Paris.")
    assert words(encoder, [q.answer[i] for i in q.value_at]).strip() == "Paris"


@pytest.mark.parametrize("shown", [[], TOLD])
def test_the_whole_turn_of_the_question_is_written(encoder: Encoder, shown: list[Message]) -> None:
    q = encoder.question("", Question("Where?", "Your city is Paris.", "Paris", "city"), shown=shown)
    assert words(encoder, q.prompt[q.opening :]).strip() == "<|im_start|>user\nWhere?<|im_end|>"
    assert ("Good." in words(encoder, q.prompt[: q.opening])) == bool(shown)
