"""How a reply is written where stdout is no terminal."""

from __future__ import annotations

import sys

import pytest

from deltamem_cli.terminal.reply_view import Plain


class Writes:
    """Stdout of a pipe, with what each write was."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> None:
        self.parts.append(text)

    def flush(self) -> None: ...


def test_a_reply_goes_into_a_pipe_in_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Writes()
    monkeypatch.setattr(sys, "stdout", out)
    view = Plain()
    for piece in ("On", "e\ntw", "o", "\n\nthr", "ee"):
        view.add(piece)
    view.close()
    assert out.parts == ["One\n", "two\n\n", "three\n"]
