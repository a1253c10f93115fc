"""Folders, pipes and links to nothing where a file is asked for: each is called what it is."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")

READ = {
    "model": ["ask", "-m", "{}", "Hello."],
    "its adapter": ["ask", "--adapter", "{}", "Hello."],
    "shown model": ["model", "show", "{}"],
    "shown adapter": ["adapter", "show", "{}"],
    "default adapter": ["adapter", "default", "starter", "{}"],
    "base": ["adapter", "convert", ".", "-o", "x.gguf", "--base", "{}"],
    "backup": ["log", "restore", "{}"],
    "bundle": ["memory", "import", "{}"],
}
ODD = {
    "folder": "is a folder",
    "folder.gguf": "is a folder",
    "pipe.gguf": "is a pipe or a device",
    "nothing.gguf": "is a link to a file that does not exist",
    "none.gguf": "does not exist",
    "file/x.gguf": "can't be reached (Not a directory)",
    "x" * 256 + ".gguf": "File name too long",
}


@pytest.mark.parametrize("arguments", READ.values(), ids=list(READ))
def test_what_is_no_file_is_called_what_it_is(
    dmem: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing.gguf").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, why in ODD.items():
        said = dmem(*(argument.format(tmp_path / name) for argument in arguments), code=1)
        assert why in said and str(tmp_path / name)[:100] in said, said


def test_a_folder_that_could_be_a_repository_s_name_is_called_a_folder(
    dmem: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "owner/model is a folder" in dmem("model", "show", "owner/model", code=1)


@pytest.mark.parametrize("arguments", [["log", "list"], ["config", "set", "threads", "2"], ["memory", "remember", "x"]])
def test_a_home_that_is_no_folder_is_named(
    dmem: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "file"))
    assert f"{tmp_path / 'file'} is not a folder" in dmem(*arguments, code=1)


def test_the_reason_why_conversations_can_t_be_read_is_no_error_number(
    dmem: Callable[..., str], tmp_path: Path
) -> None:
    said = dmem("eval", "recall", "--data", str(tmp_path), code=1)
    assert f"{tmp_path} cannot be read (Is a directory)" in said
