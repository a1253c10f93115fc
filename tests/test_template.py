"""A chat template is a stranger's program: it renders what transformers would, and what it takes is bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deltamem_cli.engine import ChatTemplate, EngineError
from deltamem_cli.engine.renderer import RENDERER, Renderer, Stopped

GREEDY = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 10**(10**8) }}",
    "{{ ('a'*10**9)|length }}",
    "{{ 'a'*10**8 }}",
    "{{ '%2000000000d'|format(1) }}",
    "{{ '{:2000000000}'.format(1) }}",
    "{{ 'a'.center(2*10**9) }}",
    "{{ lipsum(n=100000) }}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
]
USER = [{"role": "user", "content": "Hello."}]


def render(source: str, messages: list[dict[str, Any]] = USER, **variables: object) -> str:
    return ChatTemplate(source, "the chat template of x.gguf").render(messages, reply=True, **variables)


@pytest.mark.parametrize("source", GREEDY)
def test_a_template_that_takes_all_time_or_memory_is_stopped(source: str) -> None:
    render("")  # the process is there
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"^The chat template of x.gguf takes too much time or memory: use another"):
        render(source)
    assert time.monotonic() - start < 10
    assert render("{{ messages[0].content }}") == "Hello."  # the next one is served


def test_a_template_is_stopped_in_the_middle_of_a_long_line_of_python() -> None:
    """Only the system can do that, so a fresh process shows whether it was told to."""
    renderer = Renderer()
    with pytest.raises(Stopped):
        renderer.ask({"source": "{{ 10**(10**8) }}", "variables": {}})
    renderer.close()


def test_a_template_without_an_end_in_itself_is_an_error_of_its_own() -> None:
    with pytest.raises(EngineError, match="recursion"):
        render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    with pytest.raises(EngineError, match="not valid jinja"):
        render("{{" + "(" * 30_000 + ")" * 30_000 + "}}")


def test_any_text_comes_back_as_it_is() -> None:
    text = "\udc80 \u2028 \r\n \x00 'quoted' \"twice\" {{ braces }} \U0001f600"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": text}]) == text


def test_the_process_that_renders_is_replaced_when_it_was_ended() -> None:
    assert render("a") == "a"
    process = RENDERER._process
    assert process is not None
    process.kill()
    process.wait()
    assert render("b") == "b"


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_ctrl_c_while_a_template_renders_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
    renderer.ask({"source": "", "variables": {}})

    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Renderer, "_read", interrupted)
        renderer.ask({"source": "old", "variables": {}})
    assert renderer.ask({"source": "new", "variables": {}}) == {"text": "new"}
    renderer.close()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_the_process_that_renders_ends_with_the_one_that_asks() -> None:
    program = (
        "from deltamem_cli.engine.renderer import RENDERER\n"
        "RENDERER.ask({'source': '', 'variables': {}})\n"
        "print(RENDERER._process.pid, flush=True)\n"
        "input()\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert asking.stdout
    pid = int(asking.stdout.readline())
    asking.send_signal(signal.SIGKILL)
    asking.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
