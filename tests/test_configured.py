"""What the commands make of the configuration: each setting arrives where it works, and gives way to what is nearer."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeAdapter, MakeModel

from deltamem_cli import cli, config
from deltamem_cli.session.request import Request, settle
from deltamem_cli.store import conversations, profiles, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Profile


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


PROFILE = Profile(id=1, name="work", model="p.gguf", adapter="pa.gguf", system="profile", options={"top_k": 3})


def test_flag_beats_profile_beats_configuration() -> None:
    for key, text in (("system", "config"), ("model", "c.gguf"), ("adapter", "ca.gguf"), ("options.top_k", "4")):
        config.set_value(key, text)
    config.set_value("options.top_p", "0.5")
    flags = Request(system="flag", model="f.gguf", adapter="fa.gguf", options={"top_k": "2"})
    by_flag, by_profile, by_config = settle(flags, PROFILE), settle(Request(), PROFILE), settle(Request(), None)
    assert [s.system for s in (by_flag, by_profile, by_config)] == ["flag", "profile", "config"]
    assert [str(s.model) for s in (by_flag, by_profile, by_config)] == ["f.gguf", "p.gguf", "c.gguf"]
    assert [str(s.adapter) for s in (by_flag, by_profile, by_config)] == ["fa.gguf", "pa.gguf", "ca.gguf"]
    assert [int(s.options["top_k"]) for s in (by_flag, by_profile, by_config)] == [2, 3, 4]
    assert {s.options["top_p"] for s in (by_flag, by_profile, by_config)} == {0.5}
    assert settle(by_profile, PROFILE) == by_profile


def test_an_adapter_is_used_only_with_the_model_beside_which_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    config.set_value("model", "c.gguf")
    config.set_value("adapter", "ca.gguf")
    assert settle(Request(model="f.gguf"), PROFILE).adapter is None
    assert settle(Request(), Profile(id=1, name="work", model="p.gguf")).adapter is None
    monkeypatch.setenv("DMEM_MODEL", "e.gguf")
    assert settle(Request(), None).adapter is None
    monkeypatch.setenv("DMEM_ADAPTER", "ea.gguf")
    assert str(settle(Request(), None).adapter) == "ea.gguf"


@pytest.mark.parametrize(
    "key, text, field, meant",
    [
        ("ctx_size", "0", "ctx_size", 0),
        ("gpu_layers", "-1", "gpu_layers", -1),
        ("threads", "2", "threads", 2),
        ("replay", "0", "replay_tokens", 0),
    ],
)
def test_numbers_are_taken_from_the_configuration_unless_a_flag_says_zero_or_more(
    key: str, text: str, field: str, meant: int
) -> None:
    config.set_value(key, text)
    assert getattr(settle(Request(), None), field) == meant
    flag: dict[str, Any] = {field: 0 if meant else 1}
    assert getattr(settle(Request(**flag), None), field) == flag[field]


def test_commands_without_flags_do_what_the_configuration_says(
    tiny_model: MakeModel,
    tiny_adapter: MakeAdapter,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("qwen3")
    for key, value in {
        "model": model,
        "adapter": tiny_adapter(model),
        "database": home / "elsewhere.db",
        "profile": "work",
        "system": "You are terse.",
        "threads": 1,
        "ctx_size": 256,
        "replay": 0,
        "cache_type_k": "f32",
        "cache_type_v": "f32",
        "flash_attention": "off",
        "options.max_tokens": 3,
        "options.temperature": 0,
    }.items():
        config.set_value(key, str(value))
    assert cli.main(["memory", "remember", "I like tea.", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "work"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What now?")))
    assert cli.main(["chat"]) == 0
    capsys.readouterr()
    assert cli.main(["log", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["profile"], listed["turns"]) == ("work", 2)
    with Store.open(home / "elsewhere.db") as store:
        conversation = conversations.latest(store, profiles.get(store, "work"))
        assert conversation
        turn = turns.get(store, conversation.id, 2)
    assert turn.reply_tokens == 3
    assert turn.settings["ctx_size"] == 256 and turn.settings["temperature"] == 0
    assert not (home / "memory.db").exists()


def test_a_wrong_option_is_refused_before_the_model_is_loaded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[options]\ntemprature = 1\n")
    assert cli.main(["chat", "-m", "nowhere.gguf", "Hello"]) == 1
    assert "did you mean options.temperature?" in capsys.readouterr().err


def test_history_and_markdown_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from deltamem_cli.commands.chat import history
    from deltamem_cli.terminal import reply_view

    monkeypatch.setattr(reply_view, "can_render", lambda: True)
    assert isinstance(history.open_history(lambda: ("", 1), keep=True), history.PrivateHistory)
    with reply_view.reply_view() as view:
        assert isinstance(view, reply_view.Markdown)
    config.set_value("history", "off")
    config.set_value("markdown", "off")
    assert isinstance(history.open_history(lambda: ("", 1), keep=True), history.PassingHistory)
    with reply_view.reply_view() as view:
        assert isinstance(view, reply_view.Plain)
