"""Standard streams that are closed or full: one sentence where somebody can read it, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from chat_support import Dmem, dmem, environment

from deltamem_cli.store import conversations, turns
from deltamem_cli.store.database import Store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs sh and /dev/full")
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
GONE = [">&-", pytest.param(">/dev/full", marks=FULL)]


def run(redirections: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *dmem(*arguments)],
        check=False,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("arguments", [["config", "list"], ["config", "path"], ["--version"], ["config", "--help"]])
def test_output_that_goes_nowhere_is_one_sentence_and_exit_1(tmp_path: Path, gone: str, arguments: list[str]) -> None:
    done = run(gone, tmp_path, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Standard output can't be written (") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("gone", GONE)
def test_a_turn_whose_reply_could_not_be_written_is_stored(tiny: Dmem, gone: str) -> None:
    hardware = ["--threads", "1", "-o", "max_tokens", "8", "-o", "seed", "5"]
    done = run(gone, tiny.home, "ask", *tiny.model, *tiny.adapter, *hardware, "-p", "work", "Hello.")
    assert done.returncode == 1 and "Standard output can't be written" in done.stderr and done.stderr.count("\n") == 1
    with Store.open(tiny.home / "memory.db") as store:
        talk = conversations.all_of(store)[0]
        assert turns.get(store, talk.id, 1).messages[1].tokens


@pytest.mark.parametrize("gone", ["2>&-", pytest.param("2>/dev/full", marks=FULL)])
def test_notes_that_nobody_can_read_are_no_reason_to_fail(tiny: Dmem, gone: str) -> None:
    hardware = ["--threads", "1", "-o", "max_tokens", "8", "-ngl", "99"]
    done = run(gone, tiny.home, "ask", *tiny.model, *hardware, "Hello.")
    assert done.returncode == 0 and done.stdout
    assert run(gone, tiny.home, "ask", "-m", "none.gguf", "Hello.").returncode == 1
    assert run(gone, tiny.home, "memroy").returncode == 2


def test_closed_input_is_empty_input(tmp_path: Path) -> None:
    assert "There is no question" in run("<&-", tmp_path, "ask").stderr
    assert "The text is empty" in run("<&-", tmp_path, "memory", "remember").stderr
    assert "Unexpected error" not in run("<&- >&- 2>&-", tmp_path, "config", "set", "seed", "1").stderr


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What is printed would go into it."""
    run("<&- >&- 2>&-", tmp_path, "profile", "create", "work")
    assert run("", tmp_path, "profile", "list").stdout.count("work") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "-m", "{}", "Hello."],
        ["ask", "--template", "{}", "Hello."],
        ["memory", "inspect", "-d", "{}"],
        ["memory", "import", "{}"],
        ["model", "show", "{}"],
        ["adapter", "show", "{}"],
        ["adapter", "verify", "{}"],
    ],
)
def test_a_name_that_no_file_system_takes_is_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    name = str(tmp_path / ("a" * 300))
    done = run("", tmp_path, *(argument.format(name) for argument in arguments))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert name in done.stderr and "Unexpected error" not in done.stderr
