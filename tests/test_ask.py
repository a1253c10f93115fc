"""`dmem ask`: one question, one reply, and nothing else unless a memory is named."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chat_support import Dmem, Terminal, dmem, files, plain

from deltamem_cli import cli
from deltamem_cli.store import conversations, locks, turns
from deltamem_cli.store.database import Store

OPENS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)

LONG = ["-o", "seed", "3", "-o", "temperature", "1"]  # a reply of hundreds of tokens


@dataclass
class Said:
    code: int
    out: str
    err: str


Ask = Callable[..., Said]


def arguments(tiny: Dmem, *more: object, tokens: int = 8) -> list[str]:
    return [*tiny.model, "--threads", "1", "-o", "max_tokens", str(tokens), "-o", "seed", "5", *map(str, more)]


@pytest.fixture
def ask(tiny: Dmem, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    """`dmem ask` in this process."""
    monkeypatch.setenv("DMEM_HOME", str(tiny.home))

    def run(*more: object, stdin: str = "", tokens: int = 8) -> Said:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capfd.readouterr()
        code = cli.main(["ask", *arguments(tiny, *more, tokens=tokens)])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Said(code, out, err)

    return run


def test_nothing_is_remembered_and_nothing_read(ask: Ask, tiny: Dmem) -> None:
    first = ask("My name is Ana.")
    assert first.code == 0 and first.out.strip() and first.err == ""
    assert all(name.startswith("cache/") for name in files(tiny.home))
    assert ask("My name is Ana.").out == first.out  # the seed is the same, so all else must be
    ask("-p", "default", *tiny.adapter, "My name is Ana.")
    before = files(tiny.home)
    assert ask("My name is Ana.").out == first.out
    assert files(tiny.home) == before


def test_a_memory_that_is_named_is_read_and_written(ask: Ask, tiny: Dmem) -> None:
    said = [
        json.loads(ask(*tiny.adapter, *which, "--json", "Hello.").out) for which in (["-p", "work"], ["-p", "work"])
    ]
    assert [one["turn"] for one in said] == [1, 2]
    assert said[0]["conversation"] == said[1]["conversation"] and said[0]["profile"] == "work"
    assert said[0]["memory"]["change"] > 0 and said[1]["memory"]["norm"] != said[0]["memory"]["norm"]
    third = json.loads(ask(*tiny.adapter, "--cid", said[0]["conversation"], "--read-only", "--json", "Hello.").out)
    assert third["turn"] is None and third["conversation"] == said[0]["conversation"]
    with Store.open(tiny.home / "memory.db") as store:
        assert turns.last_number(store, said[0]["conversation"]) == 2
    assert json.loads(ask(*tiny.adapter, "-c", "--json", "Hello.").out)["profile"] == "default"


def test_an_adapter_without_a_memory_works_within_the_question(ask: Ask, tiny: Dmem) -> None:
    document = json.loads(ask(*tiny.adapter, "--json", "Hello.").out)
    assert document["memory"]["change"] > 0 and document["conversation"] is None
    assert not (tiny.home / "memory.db").exists()


def test_what_is_piped_in_comes_before_the_question(ask: Ask) -> None:
    together = json.loads(ask("--json", "What is it?", stdin="A cat.\n").out)
    piped = json.loads(ask("--json", stdin="A cat.\n\nWhat is it?").out)
    assert together["text"] == piped["text"] and together["tokens"] == piped["tokens"]
    words = json.loads(ask("--json", "What", "is", "it?", stdin="A cat.").out)
    assert words["tokens"] == together["tokens"]


def test_json_says_what_there_is_to_say(ask: Ask) -> None:
    said = ask("--json", "Hello.")
    document = json.loads(said.out)
    assert document["tokens"]["prompt"] > 5 and document["tokens"]["reply"] == 8 and document["tokens"]["written"] == 0
    assert (
        document["text"] == ask("Hello.").out.removesuffix("\n") == ask("--no-stream", "Hello.").out.removesuffix("\n")
    )
    assert set(document["seconds"]) == {"load", "prompt", "reply"} and document["seconds"]["reply"] > 0
    assert document["memory"] is None and document["adapter"] is None and document["interrupted"] is False


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ([], 2, "There is no question"),
        (["--read-only", "Hello."], 2, "--read-only is about a memory"),
        (["-n", "Hello."], 2, "--no-log is about a memory"),
        (["-o", "temprature", "1", "Hello."], 2, "did you mean temperature"),
        (["-ctk", "q3", "Hello."], 2, "q3"),
        (["-ctv", "q8_0", "-fa", "off", "Hello."], 1, "only with flash attention, which is off"),
        (["-ctk", "q8_0", "Hello."], 1, "--cache-type-k f16"),
        (["-m", "none.gguf", "Hello."], 1, "none.gguf"),
        (["--think", "Hello."], 1, "can't switch thinking"),
        (["--template", "none.jinja", "Hello."], 1, "none.jinja can't be read"),
        (["-p", "!", "Hello."], 1, "can't be a profile's name"),
    ],
)
def test_what_can_not_be_asked_is_refused_in_one_sentence(ask: Ask, wrong: list[str], code: int, words: str) -> None:
    said = ask(*wrong)
    assert said.code == code and words in said.err and said.out == ""
    if code == 1:
        assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages %}\n{{ m.content", r"template.jinja is not valid jinja (in line 2: "),
        ("{{ messages[0].content }} only", "does not show every message once"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{% for x in range(10**9) %}{% endfor %}", "refuses these messages"),
        ("", "is empty"),
        ("\xff", "is not text"),
    ],
)
def test_a_broken_template_is_refused_in_one_sentence(ask: Ask, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "template.jinja"
    file.write_bytes(text.encode("latin-1"))
    said = ask("--template", file, "Hello.")
    assert said.code == 1 and words in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_template_comes_from_flag_profile_and_configuration(
    ask: Ask, tiny: Dmem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each template puts another number of signs, a token each, before the question."""
    for n in (100, 200, 300):
        (tmp_path / f"{n}.jinja").write_text(
            OPENS.replace("<|im_start|>{{", "<|im_start|>" + "#" * n + "{{").replace("<think>\n", "")
        )

    def tokens(*more: object) -> int:
        prompt: int = json.loads(ask("--json", "Hello.", *more).out)["tokens"]["prompt"]
        return prompt

    plain_tokens = tokens()
    assert tokens("--template", tmp_path / "100.jinja") == plain_tokens + 100
    # a template belongs to the model beside which it is set, so the model is not named by a flag here
    model = tiny.model[1]
    tiny.model = []
    monkeypatch.setenv("DMEM_MODEL", model)
    assert tokens() == plain_tokens
    monkeypatch.setenv("DMEM_TEMPLATE", str(tmp_path / "200.jinja"))
    assert tokens() == plain_tokens + 200
    assert cli.main(["profile", "create", "t", "--template", str(tmp_path / "300.jinja")]) == 0
    assert tokens("-p", "t", "--read-only") == plain_tokens + 300
    assert tokens("-p", "t", "--read-only", "--template", tmp_path / "100.jinja") == plain_tokens + 100
    capfd.readouterr()
    assert cli.main(["profile", "create", "u", "--template", str(tmp_path / "none.jinja")]) == 1
    assert "none.jinja can't be read" in capfd.readouterr().err


def test_a_gpu_that_is_not_there_is_told_of(ask: Ask) -> None:
    said = ask("-ngl", "99", "Hello.")
    assert said.code == 0 and said.out == ask("Hello.").out and "--gpu-layers has no effect" in said.err


def test_thoughts_stay_out_of_the_result(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(OPENS)
    said = ask("--template", file, "Hello.", tokens=12)
    assert (said.code, said.out, said.err) == (0, "", "")
    shown = ask("--template", file, "--show-thinking", "Hello.", tokens=12)
    assert shown.out == "" and "\x1b" not in shown.err
    document = json.loads(ask("--template", file, "--json", "Hello.", tokens=12).out)
    assert (
        document["text"] == ""
        and document["thinking"]
        and document["tokens"]["thinking"] == document["tokens"]["reply"]
    )
    # what is no letter is not sent to a terminal
    assert shown.err.startswith("(thinking)\n") and shown.err.endswith("(done thinking)\n\n")


def test_at_a_terminal_thoughts_are_dimmed_or_hidden(tiny: Dmem, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(OPENS)
    command = dmem("ask", *arguments(tiny, "--template", file, "Hello.", tokens=12))
    with Terminal(command, tiny.env) as shown:
        assert shown.wait() == 0
        assert "\x1b[2m(thinking)" in shown.shown and "(done thinking)" in shown.shown
    with Terminal([*command, "--hide-thinking"], tiny.env) as hidden:
        assert hidden.wait() == 0
        assert "(thinking)" not in hidden.shown and hidden.shown.count("thinking…") == 1
        assert plain(hidden.shown.partition("\x1b[K")[2]).strip() == ""  # nothing is left of the sign


def test_questions_to_one_memory_wait_for_each_other(tiny: Dmem) -> None:
    """Also the first ones, which find no conversation yet: it is this process's turn to begin one."""
    command = dmem("ask", *arguments(tiny, *tiny.adapter, "-p", "work", "--json", "Hello.", tokens=4))
    with Store.open(tiny.home / "memory.db") as store:
        locks.hold(store, "profile-work", brief=True)
        running = [
            subprocess.Popen(
                command,
                env=tiny.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for one in running:
            assert one.stderr is not None
            assert f"Waiting for another question to the same memory (process {os.getpid()}" in one.stderr.readline()
        assert conversations.all_of(store) == []
    ended = [(*one.communicate(timeout=120), one.returncode) for one in running]
    assert [code for _, _, code in ended] == [0] * 3, ended
    assert not any("locked" in err for _, err, _ in ended)
    documents = [json.loads(out) for out, _, _ in ended]
    assert sorted(one["turn"] for one in documents) == [1, 2, 3]
    assert len({one["conversation"] for one in documents}) == 1
    assert not list((tiny.home / "memory.db.locks").iterdir())


def test_a_chat_that_holds_the_memory_is_not_waited_for(ask: Ask, tiny: Dmem) -> None:
    assert ask(*tiny.adapter, "-p", "work", "Hello.").code == 0
    with Store.open(tiny.home / "memory.db") as store:
        talk = conversations.all_of(store)[0]
        locks.hold(store, talk.id)
        began = time.monotonic()
        said = ask(*tiny.adapter, "-p", "work", "Hello.")
        assert said.code == 1 and time.monotonic() - began < 5
        assert f"in use by process {os.getpid()}" in said.err and said.err.count("\n") == 1
        assert ask(*tiny.adapter, "-p", "work", "--read-only", "Hello.").code == 0
    assert ask(*tiny.adapter, "-p", "work", "Hello.").code == 0


def test_ctrl_c_stops_with_130_and_keeps_what_was_shown(tiny: Dmem) -> None:
    command = dmem("ask", *arguments(tiny, *tiny.adapter, "-p", "work", *LONG, "Hello.", tokens=400))
    with subprocess.Popen(command, env=tiny.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as asked:
        assert asked.stdout is not None
        assert asked.stdout.read(1)
        asked.send_signal(signal.SIGINT)
        asked.stdout.read()
        assert asked.wait(60) == 130
    with Store.open(tiny.home / "memory.db") as store:
        talk = conversations.all_of(store)[0]
        assert turns.get(store, talk.id, 1).interrupted


def test_a_broken_pipe_is_quiet_and_the_turn_is_kept(tiny: Dmem) -> None:
    """It shows at the first whole line that is written, so the reply may be complete by then."""
    command = dmem("ask", *arguments(tiny, *tiny.adapter, "-p", "work", *LONG, "Hello.", tokens=400))
    with subprocess.Popen(
        command, env=tiny.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as asked:
        assert asked.stdout is not None and asked.stderr is not None
        asked.stdout.read(1)
        asked.stdout.close()
        assert asked.stderr.read() == b""
        asked.wait(60)
    with Store.open(tiny.home / "memory.db") as store:
        talk = conversations.all_of(store)[0]
        assert turns.get(store, talk.id, 1).messages[1].tokens


def test_every_command_that_loads_a_model_takes_the_same_hardware_options() -> None:
    from typer.main import get_command

    hardware = {"gpu_layers", "threads", "cache_type_k", "cache_type_v", "flash_attention"}
    top: Any = get_command(cli.app)
    memory = top.get_command(None, "memory").commands
    loading = [top.get_command(None, name) for name in ("ask", "chat", "bench")]
    flags = []
    for command in [*loading, *(memory[name] for name in ("probe", "remember", "forget"))]:
        flags.append({tuple(one.opts) for one in command.params if one.name in hardware})
        assert len(flags[-1]) == len(hardware)
    assert all(one == flags[0] for one in flags)
