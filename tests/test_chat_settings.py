"""What a chat tells of how its model is run, and what /set changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_support import Chats, Dmem, Terminal, dmem

from deltamem_cli.commands.chat import slash_set
from deltamem_cli.commands.chat.open_chat import Talk
from deltamem_cli.commands.memory.forget import _as_written
from deltamem_cli.errors import UsageError
from deltamem_cli.session.request import Request
from deltamem_cli.store import conversations, turns
from deltamem_cli.store.database import Store

SWITCHES = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% if enable_thinking is defined and not "
    "enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)


def test_the_terminal_shows_what_was_chosen_and_sets_what_can_be_set(tiny: Dmem, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(SWITCHES)
    options = ["--threads", "1", "-fa", "off", "-o", "max_tokens", "4", "-o", "seed", "5", "--template", template]
    with Terminal(dmem("chat", *tiny.model, *tiny.adapter, *options), tiny.env) as chat:
        chat.line("Hello.")
        chat.expect(r"\(thinking\)(?s:.*)\(done thinking\)")
        chat.line("/stats")
        chat.expect(r"reply .*tokens? of it thinking")
        chat.expect(r"runs on  1 thread, CPU only, KV cache f16, flash attention off")
        chat.line("/set think off")
        chat.expect(r"think +off\s+show_thinking +on\s+remember_thinking +off")
        chat.line("/set show-thinking off")
        chat.expect(r"show_thinking +off")
        chat.line("/set think maybe")
        chat.expect(r"think is maybe: it must be on or off or auto")
        chat.line("/show")
        chat.expect(r"template +the chat template \S*template.jinja")
        chat.expect(r"thinking +think off, show_thinking off, remember_thinking off")
        chat.expect("hardware +1 thread")
        chat.line("Hello again.")
        chat.line("/exit")
        assert chat.wait() == 0
        assert chat.shown.count("(done thinking)") == 1


def test_set_changes_what_the_next_turn_does(tiny: Dmem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMEM_HOME", str(tiny.home))
    template = tmp_path / "template.jinja"
    template.write_text(SWITCHES)
    model, adapter = tiny.model[1], tiny.adapter[1]
    request = Request(
        model=model, adapter=adapter, template=template, threads=1, ctx_size=256, options={"max_tokens": 4, "seed": 5}
    )
    with Store.memory() as store, Talk(store, request) as talk:
        talk.session.start()
        list(talk.session.ask("One."))
        slash_set.set_option(talk, "remember_thinking on")
        list(talk.session.ask("Two."))
        slash_set.set_option(talk, "think=off")
        list(talk.session.ask("Three."))
        one, two, three = (turn.messages for turn in turns.all_of(store, talk.session.conversation.id))
        assert set(one[1].spans) == {-1} and two[1].spans is None
        assert one[2].text == "" and three[2].text  # all is thought, and with thinking off all is answered
        assert talk.request.think is False
        for wrong in ("think maybe", "show_thinking auto", "remember_thinking 3"):
            with pytest.raises(UsageError, match="it must be on or off"):
                slash_set.set_option(talk, wrong)
        fed: list[int] = []
        talk.set_system(
            "Be kind.", lambda done, total: fed.append(done)
        )  # what is visible is read anew, and that is shown
        assert fed
        talk.switch_model(model, adapter, lambda done, total: None)
        assert talk.session.prompt.template is None and talk.session.prompt.think is None
        assert talk.session.settings.remember_thinking


def test_turns_are_replayed_as_they_were_run(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"ctx_size": 256, "cache_type_k": "f32", "cache_type_v": "bf16", "flash_attention": "off"}
    with chats.open(**written) as (session, _):
        list(session.ask("One."))
        cid = session.conversation.id
    with Store.open(chats.database) as store:
        talk = conversations.get(store, cid)
        found = _as_written(store, talk, Request(cid=cid))
        assert {name: getattr(found, name) for name in written} == written
        assert _as_written(store, talk, Request(cid=cid, cache_type_k="f16")).cache_type_k == "f16"
        # what a foreign file says is checked when it is used, but must be of the right kind
        store.execute("UPDATE turns SET settings = ?", ['{"ctx_size": "x", "cache_type_k": 1}'])
        assert _as_written(store, talk, Request(cid=cid)) == Request(cid=cid)
