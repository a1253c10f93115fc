"""Mutated chat templates: each is rendered or refused in a sentence, and soon. `--many N`, where it is given: so many."""

from __future__ import annotations

import random
import time

import pytest

from deltamem_cli.engine import ChatTemplate, EngineError
from deltamem_cli.session.prompt import Prompt

SEED = 16
SOURCES = [
    (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set loop_messages = "
        "messages[1:] %}{% else %}{% set s = '' %}{% set loop_messages = messages %}{% endif %}{% for m in loop_messages %}"
        "{% if m.role == 'user' %}[INST] {{ s ~ m.content }} [/INST]{% else %}{{ m.content + eos_token }}{% endif %}"
        "{% set s = '' %}{% endfor %}"
    ),
    (
        "{% macro put(m) %}{{ m.role|upper ~ ': ' ~ m.content ~ '\n' }}{% endmacro %}{% set ns = namespace(n=0) %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ put(m) }}{% endfor %}{{ 'ASSISTANT:' }}"
    ),
]
PARTS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "|",
    "(",
    ")",
    "[",
    "]",
    "''",
    "-",
    " * 3",
    "|length",
    "|tojson",
    "|join",
    "[-1]",
    ".x",
]
GREEDY = [
    "{{ 9**9**9 }}",
    "{{ 'a'*10**9 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
]


def mutated(rng: random.Random) -> str:
    text = rng.choice(SOURCES)
    for _ in range(rng.randint(1, 6)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        end = min(end, at + rng.randint(0, 12))
        text = text[:at] + rng.choice(["", rng.choice(PARTS), text[at:end] * 2]) + text[end:]
    return text + rng.choice(GREEDY) if rng.random() < 0.02 else text


def test_a_mutated_template_is_rendered_or_refused_in_a_sentence(
    pytestconfig: pytest.Config, tiny_model: object, loaded: object
) -> None:
    model = loaded(tiny_model("qwen3"))  # type: ignore[operator]
    many = int(pytestconfig.getoption("--many"))
    rng = random.Random(SEED)
    for number in range(many):
        source = mutated(rng)
        start = time.monotonic()
        try:
            prompt = Prompt(model, "Be brief.", ChatTemplate(source, "the chat template"))
            assert prompt.head() is not None and prompt.user("Hello.").tokens is not None
        except EngineError as error:
            said = str(error)
            assert "\n" not in said and said.endswith("."), (number, source, said)
        assert time.monotonic() - start < 30, (number, source)  # of a few renderings, each bounded for itself
