"""The file of a message in the user's editor: gone afterwards, however it ended, and nobody else's business."""

from __future__ import annotations

import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_support import PROMPT, Dmem, dmem

from deltamem_cli.commands import editor
from deltamem_cli.errors import DeltamemError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system wants temporary files."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """use(code): $EDITOR runs this Python, which knows the file as `path`."""

    def make(code: str) -> str:
        script = tmp_path / "editor.py"
        script.write_text(f"import os, pathlib, sys\npath = pathlib.Path(sys.argv[1])\n{code}\n")
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
        return f"{sys.executable} {script}"

    return make


def test_a_message_and_what_an_editor_puts_beside_it_are_private_and_gone_afterwards(
    folder: Path, use: Callable[[str], str]
) -> None:
    use(
        "path.with_name('message.md~').write_text('old'); path.write_text(path.read_text() + f'{path.parent.stat().st_mode:o}')"
    )
    mode = editor.edited("said ").removeprefix("said ")
    assert stat.S_IMODE(int(mode, 8)) == 0o700
    assert list(folder.iterdir()) == []
    use("sys.exit(1)")
    with pytest.raises(DeltamemError, match="The editor failed"):
        editor.edited("said")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("keys", ["/edit a secret\r", "a secret\x18\x05"])
def test_a_message_that_a_kill_left_is_removed_at_the_next_start(
    tiny: Dmem, folder: Path, use: Callable[[str], str], keys: str
) -> None:
    command = use("os.kill(os.getppid(), 9)")
    (folder / "dmem-message-of-mine").write_text("no folder")
    tiny.env["TMPDIR"] = str(folder)
    with tiny.terminal(EDITOR=command) as chat:
        chat.expect(PROMPT)
        chat.send(keys)
        assert chat.wait() == -9
    assert "a secret" in next(folder.glob("*/message.md")).read_text()
    tiny.run(*dmem("log", "list"))
    assert [path.name for path in folder.iterdir()] == ["dmem-message-of-mine"]


def test_a_message_that_is_being_written_stays(folder: Path, use: Callable[[str], str]) -> None:
    use("from deltamem_cli.commands.editor import remove_left; remove_left(); path.write_text('kept')")
    assert editor.edited("") == "kept"


def test_ctrl_x_ctrl_e_sends_what_was_written_and_a_failure_is_told(tiny: Dmem, use: Callable[[str], str]) -> None:
    command = use(
        "path.write_text(path.read_text() + ' twice\\nsaid\\n') if path.read_text() == 'once' else sys.exit(1)"
    )
    with tiny.terminal(EDITOR=command, VISUAL="") as chat:
        chat.expect(PROMPT)
        chat.send("failing\x18\x05")
        chat.expect("The editor failed")
        chat.expect(r">>> failing\s*$")
        chat.send("\x15once\x18\x05")
        chat.expect(r"said\s+(?!>>>)\S+")
        chat.line("/exit")
        assert chat.wait() == 0
    asked = [turn["messages"][0]["text"] for turn in tiny.json("log", "show")["turns"]]
    assert asked == ["once twice\nsaid"]
