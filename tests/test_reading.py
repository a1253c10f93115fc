"""Files, pipes and devices that have no end or no beginning: a sentence, and nothing is waited for in silence."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_support import dmem as program
from chat_support import environment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither FIFOs nor /dev/zero")

SOURCES = {
    "template": ["ask", "--template", "{}", "Hello."],
    "text": ["memory", "remember", "-f", "{}"],
    "cases": ["eval", "recall", "--data", "{}"],
}
FILES = {
    "bundle": ["memory", "import", "{}"],
    "model": ["model", "import", "{}"],
    "adapter": ["adapter", "merge", "{}", "{}", "-o", "merged.gguf"],
    "database": ["log", "list", "-d", "{}"],
    "answers": ["eval", "talk", "--limit", "1", "--answers", "{}"],
}


def run(home: Path, arguments: list[str], source: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(*(argument.format(source) for argument in arguments)),
        check=False,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [*SOURCES.values(), *FILES.values()], ids=[*SOURCES, *FILES])
def test_a_device_without_end_is_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, arguments, "/dev/zero")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "/dev/zero" in done.stderr and "Unexpected error" not in done.stderr


@pytest.mark.parametrize("arguments", [*SOURCES.values(), *FILES.values()], ids=[*SOURCES, *FILES])
def test_a_file_of_enormous_size_is_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "large.jsonl"
    with file.open("wb") as large:
        large.truncate(1 << 31)  # takes no room on the disk
    done = run(tmp_path, arguments, file)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert str(file) in done.stderr and "Unexpected error" not in done.stderr


def test_a_configuration_of_enormous_size_is_one_sentence(home: Path, dmem: Callable[..., str]) -> None:
    home.mkdir()
    with (home / "config.toml").open("wb") as large:
        large.truncate(1 << 31)
    assert "larger than 64 MB" in dmem("config", "list", code=1)


@pytest.mark.parametrize("arguments", FILES.values(), ids=list(FILES))
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, arguments: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = run(tmp_path, arguments, tmp_path / "pipe")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(tmp_path / "pipe") in done.stderr


@pytest.mark.parametrize("arguments", SOURCES.values(), ids=list(SOURCES))
def test_what_comes_late_from_a_pipe_is_waited_for_aloud_and_read(tmp_path: Path, arguments: list[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(
        program(*(argument.format(pipe) for argument in arguments)),
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stderr and f"Waiting for the end of {pipe}" in waiting.stderr.readline()
        pipe.write_bytes(b"\0")
        assert str(pipe) in waiting.stderr.read()  # what it says makes no sense
        assert waiting.wait(60) == 1


@pytest.mark.parametrize("arguments", [["ask", "Hello."], ["chat", "Hello."], ["memory", "remember"]])
def test_standard_input_that_does_not_end_is_waited_for_aloud(tmp_path: Path, arguments: list[str]) -> None:
    with subprocess.Popen(
        program(*arguments), env=environment(tmp_path), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        try:
            assert waiting.stderr and "Waiting for the end of standard input" in waiting.stderr.readline()
        finally:
            waiting.kill()


@pytest.mark.parametrize("arguments", [["ask", "Hello."], ["memory", "remember"]])
def test_standard_input_without_end_is_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    file = os.open("/dev/zero", os.O_RDONLY)
    try:
        done = subprocess.run(
            program(*arguments),
            check=False,
            env=environment(tmp_path),
            stdin=file,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        os.close(file)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Standard input can't be read" in done.stderr
