"""How it looks when a model thinks before it answers: dimmed, or hidden behind a sign that it works; knows no session.

What is thought is no part of the result: at a terminal it stands above the answer; where stdout is a file or a pipe it
goes to stderr, and only when it was asked for.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from deltamem_cli import config
from deltamem_cli.terminal.reply_view import shown

_DIM, _PLAIN, _ERASED = "\x1b[2m", "\x1b[0m", "\r\x1b[K"


class Thoughts:
    """Takes them as they grow; close() when the answer begins, or the reply ends without one."""

    def __init__(self, show: bool | None, *, stream: bool = True) -> None:
        """show: None: as the configuration says, at a terminal. stream: otherwise they are shown when complete."""
        self._out = _where(show)
        self._stream = stream
        self._text = ""
        self._began = False

    def add(self, text: str) -> None:
        """Shows a piece of what is thought, or a sign that the model is thinking."""
        if not text.strip() and not self._text:
            return
        self._text += text
        if self._out is None:
            self._hide()
        elif self._stream:
            self._write(shown(text))

    def close(self) -> None:
        """Ends the thinking, or takes the sign away."""
        if self._out is None:
            if self._began:
                sys.stderr.write(_ERASED)
                sys.stderr.flush()
        elif self._text:
            if not self._stream:
                self._write(shown(self._text))
            self._write(("" if self._text.endswith("\n") else "\n") + "(done thinking)\n\n")
        self._text, self._began = "", False

    def _write(self, text: str) -> None:
        assert self._out is not None
        if not self._began:
            text = f"(thinking)\n{text}"
            self._began = True
        # each piece by itself: whatever else is written meanwhile, an error or a prompt, is not dimmed
        self._out.write(f"{_DIM}{text}{_PLAIN}" if _understands(self._out) else text)
        self._out.flush()

    def _hide(self) -> None:
        if not self._began and _understands(sys.stderr) and sys.stdout.isatty():
            sys.stderr.write(f"{_DIM}thinking…{_PLAIN}")
            sys.stderr.flush()
            self._began = True


def _where(show: bool | None) -> TextIO | None:
    if sys.stdout.isatty():
        return sys.stdout if (config.value("show_thinking") if show is None else show) else None
    return sys.stderr if show else None


def _understands(stream: TextIO) -> bool:
    """Whether it is a terminal that can dim."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb") and not os.environ.get("NO_COLOR")
