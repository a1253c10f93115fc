"""What the model sees of a conversation is what the chat template would show it, and the system prompt is not written."""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_support import Chats, assert_agree, relative, say
from conftest import LoadModel, MakeModel

from deltamem_cli.engine import ChatTemplate, EngineError, Model
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.replay import replay
from deltamem_cli.session.thinking import KNOWN
from deltamem_cli.store import states, turns

ROOT = Path(__file__).parents[1]
SYSTEM = "Answer in French"
TALK = [("user", "I am Ana"), ("assistant", "Bonjour"), ("user", "Who am I"), ("assistant", "Ana"), ("user", "Why so")]
GENERATES = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + GENERATES
MERGED = (
    "{% set ns = namespace(lead='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.lead = m.content ~ '\n\n' %}{% else %}"
    "<|im_start|>{{ m.role }}\n{{ ns.lead }}{{ m.content }}<|im_end|>\n{% set ns.lead = '' %}{% endif %}"
    "{% endfor %}" + GENERATES
)
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
IGNORES = "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + GENERATES
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content if c.type == 'text' %}{{ c.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}" + GENERATES
)


@pytest.fixture(scope="module")
def public_templates() -> dict[str, str]:
    """All that the pinned source distribution carries."""
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "native" / "prepare.py")
    assert spec and spec.loader
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    archive = prepare.obtain(prepare.read_pins()["llama_cpp_python"], ROOT / "build" / "downloads")
    found = {}
    with tarfile.open(archive) as sdist:
        for member in sdist:
            if member.name.endswith(".jinja") and "/models/templates/" in member.name:
                file = sdist.extractfile(member)
                assert file
                found[Path(member.name).name] = file.read().decode()
    return found


@pytest.fixture
def model(tiny_model: MakeModel, loaded: LoadModel) -> Model:
    found: Model = loaded(tiny_model("qwen3"))
    return found


def prompt_of(model: Model, source: str, system: str | None = None) -> Prompt:
    return Prompt(model, system, ChatTemplate(source, "the chat template"))


def seen(prompt: Prompt, talk: Sequence[tuple[str, str]]) -> tuple[str, list[str]]:
    """What the model sees of `talk` as the window holds it, and what of it may be written."""
    head, opening, begin, close = frame(prompt)
    pieces = []
    for number, (role, content) in enumerate(talk):
        if role == "user":
            pieces.append(prompt.model.text(said(prompt, content)[0 if number else opening :], special=True))
        else:
            pieces.append(content + close)
    return head + "".join(pieces) + begin, pieces


@cache  # each is asked for with many talks
def said(prompt: Prompt, text: str) -> Sequence[int]:
    return prompt.user(text).tokens


@cache
def frame(prompt: Prompt) -> tuple[str, int, str, str]:
    """Head, number of tokens of the opening, beginning of a reply and end of it."""
    head, begin, close = (
        prompt.model.text(tokens, special=True) for tokens in (prompt.head(), prompt.begin(), prompt.close())
    )
    return head, len(prompt.opening()), begin, close


def around(text: str, talk: Sequence[tuple[str, str]]) -> list[str]:
    """What stands before the first message, between replies and messages, and at the end: before an earlier reply
    templates put empty thoughts and the like, which the model wrote itself.
    """
    parts, at = [], 0
    for role, content in talk:
        start = text.index(content, at)
        if role == "user":
            parts.append(text[at:start])
        at = start + len(content)
    return [*parts, text[at:]]


def test_every_public_template_shows_each_message_where_it_puts_it(
    model: Model, public_templates: dict[str, str]
) -> None:
    assert len(public_templates) > 60
    served = 0
    for name, source in public_templates.items():
        for system in (None, SYSTEM):
            prompt = prompt_of(model, source, system)
            try:
                prompt.head()
            except EngineError as error:  # wants functions that nobody gives it
                assert name == "fireworks-ai-llama-3-firefunction-v2.jinja", (name, error)
                continue
            served += 1
            for talk in (TALK[:1], TALK[:3], TALK, TALK[2:], TALK[4:]):  # the last two: after turn 1 left
                text, written = seen(prompt, talk)
                wanted = prompt._render(talk, reply=True)
                if wanted.find(SYSTEM) > wanted.find(talk[0][1]) >= 0:  # it would move on with every message
                    assert name == "mistralai-Mistral-Nemo-Instruct-2407.jinja"
                    wanted = prompt._render(talk[:1], reply=True)
                    assert text.startswith(wanted[: wanted.index(talk[0][1])])
                else:
                    assert around(text, talk) == around(wanted, talk), (name, system, talk)
                assert text.count(SYSTEM) == (system is not None), (name, system)
                assert not any(SYSTEM in piece for piece in written), name
    assert served > 120


@pytest.mark.parametrize("source", [MERGED, REFUSES, IGNORES])
def test_a_system_prompt_in_the_first_message_stays_when_that_leaves(chats: Chats, tmp_path: Path, source: str) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(source)

    def visible(session: ChatSession) -> str:
        window = session.window
        tokens = [*window.head, *(token for stretch in window.stretches for token in stretch.tokens)]
        return session.engine.model.text(tokens, special=True)

    lead = f"<|im_start|>user\n{SYSTEM}\n\n"
    with chats.open(template=file, system=SYSTEM, ctx_size=256) as (session, loaded):
        say(session, "I am Ana, and I live in Rome.")
        assert visible(session).startswith(lead + "I am Ana")
        for number in range(2, 7):
            say(session, f"This is what I say as number {number}, to fill the window.")
            assert_agree(session)
        first = session.window.turns[0]
        assert first > 1
        assert visible(session).startswith(lead + f"This is what I say as number {first}")
        assert visible(session).count("<|im_start|>user") == len(session.window.turns)
        every = turns.all_of(session.store, session.conversation.id)
        for turn in every:
            text = session.engine.model.text(turn.messages[0].tokens, special=True)
            assert text.startswith("<|im_start|>user\n") and SYSTEM not in text
        session.undo()
        assert_agree(session)
        session.set_system("Sing!")
        assert visible(session).startswith("<|im_start|>user\nSing!\n\nThis is what I say")
        session.set_system(None)
        assert visible(session).startswith("<|im_start|>user\nThis is what I say")
        assert loaded.adapter is not None
        again = replay(session.store, session.conversation.id, session.seat, model=loaded.model, adapter=loaded.adapter)
        for turn in turns.all_of(session.store, session.conversation.id):
            stored = states.after(session.store, session.conversation.id, turn.number)
            assert stored and relative(again[turn.number].snapshot.state, stored.state) <= 0.01  # type: ignore[union-attr]


def test_what_is_remembered_takes_no_system_prompt_along(chats: Chats, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(MERGED)
    written = []
    for system in (None, "You are terse. " * 12):
        with chats.open(template=file, system=system, new=True) as (session, _):
            session.remember("Rex.")
            written.append(session.stats.written_tokens)
    assert written[1] <= written[0]


@pytest.mark.parametrize(("source", "said"), [(CHATML, False), (REFUSES, False), (IGNORES, True)])
def test_a_template_without_a_place_for_the_system_prompt_is_named(model: Model, source: str, said: bool) -> None:
    prompt = prompt_of(model, source, SYSTEM)
    assert SYSTEM in model.text(prompt.head(), special=True)
    assert bool(prompt.why_no_system) == said
    assert prompt_of(model, source).why_no_system is None


def test_a_template_may_want_contents_in_parts(model: Model) -> None:
    assert seen(prompt_of(model, PARTS, SYSTEM), TALK) == seen(prompt_of(model, CHATML, SYSTEM), TALK)


def test_a_template_may_refuse_a_conversation_that_ends_with_a_reply(model: Model) -> None:
    refuses = "{% if messages[-1].role != 'user' %}{{ raise_exception('user must be last') }}{% endif %}" + CHATML
    assert seen(prompt_of(model, refuses), TALK) == seen(prompt_of(model, CHATML), TALK)


def test_a_message_is_shown_as_the_template_puts_it(model: Model) -> None:
    trims = prompt_of(model, CHATML.replace("m.content", "m.content | trim"))
    plain = prompt_of(model, CHATML)
    assert trims.user("  Hello. \n").tokens == plain.user("Hello.").tokens
    assert plain.user("  Hello. \n").tokens != plain.user("Hello.").tokens


@pytest.mark.parametrize("source", [CHATML, "{{ bos_token }}" + CHATML, "{{ bos_token }}{{ bos_token }}" + CHATML])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_the_first_token_stands_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, source: str, adds: bool, system: str | None
) -> None:
    monkeypatch.setattr(Model, "adds_bos", adds)
    head = prompt_of(model, source, system).head()
    assert head.count(model.bos) == (1 if adds or "bos" in source else 0)
    assert model.bos not in head[1:]


def test_marks_of_thoughts_count_where_the_template_or_the_vocabulary_has_them(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [mark.open for mark in prompt_of(model, CHATML).thinking] == ["<think>"]
    named = prompt_of(model, CHATML + "{# [THINK] #}")
    assert "[THINK]" in [mark.open for mark in named.thinking]
    opens: Any = prompt_of(model, CHATML.replace("assistant\n", "assistant\n[THINK]"))
    assert opens.marks.begun == "[THINK]" and len(KNOWN) > 10
