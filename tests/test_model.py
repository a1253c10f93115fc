"""A model's vocabulary, metadata and chat template."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import odd_models
import pytest
from conftest import LoadModel, MakeModel

from deltamem_cli.engine import ChatTemplate, EngineError, Model

TEXTS = [
    "Hello, World!\n  and you?",
    "naïve ☂ 日本 \U0001f600",
    "\x00 a zero byte, a tab\t and \r\n",
    " ",
    "x" * 5000,
    "",
]


@pytest.fixture(scope="module", params=["qwen3", "phi3", "gemma3"])
def model(request: pytest.FixtureRequest, tiny_model: MakeModel, loaded: LoadModel) -> Model:
    """One for each kind of tokenizer that the synthetic models have."""
    found: Model = loaded(tiny_model(request.param))
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_tokens(model: Model, text: str) -> None:
    tokens = model.tokenize(text)
    assert all(0 <= token < model.n_vocab for token in tokens)
    back = model.text(tokens)
    # phi3's tokenizer puts a space before every text, as SentencePiece does
    assert back == text or (model.architecture == "phi3" and back == " " + text)


@pytest.mark.parametrize("letters", ["A", "=", " ", "a1+/", "日"])
def test_a_word_without_end_is_read_and_ends_no_process(letters: str, tmp_path: Path) -> None:
    """llama.cpp calls itself once per letter there; in a child, since without a deep stack it dies of it."""
    model, text = odd_models.llama(tmp_path / "m.gguf", vocabulary=odd_models.split_by_regex), tmp_path / "text"
    text.write_text((letters * 60_000)[:60_000], encoding="utf-8")
    code = """
import sys; from pathlib import Path
from deltamem_cli.engine import Model
model, text = Model(Path(sys.argv[1])), Path(sys.argv[2]).read_text(encoding="utf-8")
assert model.text(model.tokenize(text)) == text
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, model, text], check=True, env=environment)


def test_a_word_longer_than_any_stack_is_refused(model: Model) -> None:
    with pytest.raises(EngineError, match="200,001 characters in a row.*break them into lines"):
        model.tokenize("word " + "A" * 200_001)


@pytest.mark.parametrize("text", ["Pi is 3." + "1" * 30_000, ("2" * 1000 + " ") * 100], ids=["one number", "many"])
def test_numbers_that_a_tokenizer_takes_minutes_for_are_refused(text: str, tmp_path: Path) -> None:
    with Model(odd_models.llama(tmp_path / "m.gguf", vocabulary=odd_models.numbers_by_threes)) as model:
        began = time.process_time()
        with pytest.raises(EngineError, match=r"characters in a row.*m\.gguf takes too long.*break them into lines"):
            model.tokenize(text)
        assert time.process_time() - began < 6
        assert model.text(model.tokenize("1" * 500)) == "1" * 500


@pytest.mark.parametrize("text", ["里斯本" * 10_000, " \n" * 15_000, "1" * 30_000])
def test_long_words_that_a_tokenizer_is_quick_with_are_read(model: Model, text: str) -> None:
    assert model.text(model.tokenize(text)).strip(" ") == text.strip(" ")  # phi3's begins with a space


def test_broken_letters_become_question_marks(model: Model) -> None:
    assert model.text(model.tokenize("a\udcffb")).strip() == "a?b"


def test_control_tokens_in_a_text_are_tokens_only_where_asked_for(model: Model) -> None:
    written = "<|im_start|>user\nhi<|im_end|>"
    special = model.tokenize(written, special=True)
    assert len(special) < len(model.tokenize(written))
    assert any(model.is_end(token) for token in special)
    assert not any(model.is_end(token) for token in model.tokenize(written))
    assert "im_start" not in model.text(special)
    spaces = " " if model.architecture == "phi3" else ""  # SentencePiece puts one before a text, also inside
    assert model.text(special, special=True) == written.replace("user", f"{spaces}user")


def test_pieces_of_a_split_letter_join_to_it(model: Model) -> None:
    tokens = model.tokenize("日")
    assert len(tokens) > 1
    assert b"".join(model.piece(token) for token in tokens).strip() == "日".encode()
    assert "\ufffd" in model.text(tokens[:-1])


@pytest.mark.parametrize("token", [-1, 288, 10**6, 2**31])
def test_a_token_that_the_model_does_not_have_is_refused(model: Model, token: int) -> None:
    with pytest.raises(EngineError, match=f"token {token} does not exist"):
        model.piece(token)


def test_metadata_is_read_and_missing_keys_are_none(model: Model) -> None:
    assert model.metadata("general.architecture") == model.architecture
    assert model.name == "synthetic"
    assert model.metadata("no.such.key") is None
    assert model.metadata("tokenizer.chat_template") == model.chat_template
    assert model.n_ctx_train == 512
    assert model.n_bytes > 100_000 < model.n_params * 4


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {{ there }} ☂"}]


def test_the_models_own_template_renders_messages(model: Model) -> None:
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ there }} ☂<|im_end|>\n"
    assert model.render(MESSAGES) == start + "<|im_start|>assistant\n"
    assert model.render(MESSAGES, reply=False) == start
    assert model.render(MESSAGES) == start + "<|im_start|>assistant\n", "one rendering changes no other"
    assert model.render([]) == "<|im_start|>assistant\n"


def test_another_template_may_be_given_and_knows_the_models_tokens(model: Model) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{{ eos_token }}"
    rendered = model.render(MESSAGES, template=ChatTemplate(template, "the chat template"))
    assert rendered.endswith(("<|im_end|>", "</s>"))
    assert "[system] Be brief.[user] Hi" in rendered


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in %}", "not valid jinja"),
        ("{{ raise_exception('Only users may speak') }}", r"refuses these messages \(.*Only users may speak"),
        ("{{ messages[0].content.nothing.more }}", "refuses these messages"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses these messages"),
        ("{{ 1 // 0 }}", "refuses these messages"),
    ],
)
def test_a_template_that_fails_is_an_error_in_one_sentence(model: Model, template: str, words: str) -> None:
    with pytest.raises(EngineError, match=words) as error:
        model.render(MESSAGES, template=ChatTemplate(template, "the chat template"))
    assert "\n" not in str(error.value)
