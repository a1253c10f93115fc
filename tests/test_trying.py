"""A model that llama.cpp ends the process for is refused in a sentence, and what ends dmem all the same is told in one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import odd_models
import pytest
from conftest import MakeAdapter, MakeModel

from deltamem_cli.engine import EngineError, try_out, trying
from deltamem_cli.session.loading import load
from deltamem_cli.session.request import Request

NAME, LIMIT = "m.gguf", 400


@pytest.fixture
def forged(tiny_model: MakeModel, tmp_path: Path) -> Callable[..., Path]:
    """forged(arch, key, value): a tiny model whose header says another number."""

    def forge(arch: str, key: str, value: int) -> Path:
        data = bytearray(tiny_model(arch).read_bytes())
        name = f"{arch}.{key}".encode()
        at = data.index(name) + len(name) + 4  # the type of the value
        data[at : at + 4] = value.to_bytes(4, "little")
        (tmp_path / NAME).write_bytes(data)
        return tmp_path / NAME

    return forge


def refusal(path: Path) -> str:
    with pytest.raises(EngineError) as error:
        try_out(path)
    said = str(error.value)
    assert said.startswith(NAME) and said.endswith(".") and said.isprintable() and len(said) < LIMIT, said
    assert "/" not in said, "where llama.cpp was built is nobody's business"
    return said


def test_a_header_that_llama_cpp_ends_the_process_for_is_refused(forged: Callable[..., Path], home: Path) -> None:
    said = refusal(forged("qwen3", "rope.dimension_count", 1024))
    assert "gives up on it (qwen3.cpp:" in said and "name another with --model" in said


def test_what_fails_only_when_a_token_is_fed_is_refused(forged: Callable[..., Path], home: Path) -> None:
    assert "ops.cpp" in refusal(forged("gemma3", "rope.dimension_count", 512))


def test_a_vocabulary_that_cannot_spell_every_letter_is_refused(home: Path, tmp_path: Path) -> None:
    """C++ throws there, and nobody catches."""
    assert "gives up on it" in refusal(
        odd_models.llama(tmp_path / NAME, vocabulary=odd_models.vocabulary_without_bytes)
    )


def test_a_refusal_of_llama_cpp_is_what_it_was(home: Path, tmp_path: Path, tiny_model: MakeModel) -> None:
    (tmp_path / NAME).write_bytes(tiny_model("qwen3").read_bytes()[:5000])
    with pytest.raises(EngineError, match="can't be loaded .*check that it is a complete GGUF file"):
        try_out(tmp_path / NAME)


@pytest.mark.parametrize("command", [["memory", "remember", "I like tea."], ["bench"], ["eval", "recall"]])
def test_every_command_that_loads_a_model_says_so(
    command: list[str],
    forged: Callable[..., Path],
    tiny_model: MakeModel,
    tiny_adapter: MakeAdapter,
    dmem: Callable[..., str],
) -> None:
    model, adapter = forged("qwen3", "rope.dimension_count", 1024), tiny_adapter(tiny_model("qwen3"))
    said = dmem(*command, "-m", str(model), "--adapter", str(adapter), code=1)
    assert "gives up on it" in said and said.count("\n") == 1


def test_a_model_is_tried_once_and_again_only_when_it_changed(
    tiny_model: MakeModel, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / NAME
    path.write_bytes(tiny_model("qwen3").read_bytes())
    try_out(path)
    asked = []
    monkeypatch.setattr(trying, "_why_not", asked.append)
    try_out(path)
    path.rename(path.with_name("renamed.gguf"))
    try_out(path.with_name("renamed.gguf"))
    assert not asked
    path.write_bytes(tiny_model("llama").read_bytes())
    try_out(path)
    assert asked == [path]


def test_without_a_record_nothing_is_written(tiny_model: MakeModel, home: Path) -> None:
    try_out(tiny_model("qwen3"), remember=False)
    assert not home.exists()


def test_ask_notes_that_a_model_can_be_loaded_though_it_keeps_nothing_else(
    tiny_model: MakeModel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(model=tiny_model("qwen3"), memory=False, temporary=True, note_model=True, threads=1)
    with ExitStack() as stack:
        load(stack, request)
    assert sorted(file.name for file in home.rglob("*") if file.is_file()) == ["fingerprints.json", "tried.json"]
    monkeypatch.setattr(trying, "_why_not", lambda path: "tried again")
    with ExitStack() as stack:
        load(stack, request)


def test_the_starter_is_loaded_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltamem_cli import paths

    monkeypatch.setattr(trying, "_why_not", lambda path: "tried")
    try_out(paths.starter_model())


def test_a_model_that_takes_for_ever_is_given_up(
    tiny_model: MakeModel, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import signal, sys\nsignal.setitimer(signal.ITIMER_PROF, 0.1)\nwhile True: pass\n")
    monkeypatch.setattr(trying, "_WORKER", worker)
    (tmp_path / NAME).write_bytes(tiny_model("qwen3").read_bytes())
    assert "it takes too long" in refusal(tmp_path / NAME)
    worker.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(trying, "_SECONDS", 0.2)
    assert "it takes too long" in refusal(tmp_path / NAME)


ABORT = """
from deltamem_cli.bindings import native
from deltamem_cli import ending
ending.put_right.append(lambda: print("put right", flush=True))
ending.put_right.append(lambda: 1 // 0)
lib = native().lib
lib.ggml_abort(b"/where/it/was/built/ops.c", 12, b"it broke")
"""
THROW = """
import sys; from pathlib import Path
from deltamem_cli.engine import Model
Model(Path(sys.argv[1])).tokenize("\\u2602")
"""


@pytest.mark.parametrize(
    ("code", "words"), [(ABORT, "ops.c:12: it broke"), (THROW, "an error that it does not handle")]
)
def test_what_ends_the_process_is_told_in_one_sentence(code: str, words: str, tmp_path: Path) -> None:
    model = odd_models.llama(tmp_path / NAME, vocabulary=odd_models.vocabulary_without_bytes)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, model], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"llama.cpp gave up ({words})") and done.stderr.count("\n") == 1
    assert "/where" not in done.stderr
    assert done.stdout == ("put right\n" if code == ABORT else "")
