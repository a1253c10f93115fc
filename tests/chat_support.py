"""Chats for tests: sessions on tiny random models, and the real program in a real pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import Self

from deltamem_cli import build, cli
from deltamem_cli.engine import fingerprint, remembered
from deltamem_cli.session import beginning, opening
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import Loaded
from deltamem_cli.session.request import Request
from deltamem_cli.store import states, turns
from deltamem_cli.store.database import Store

PROMPT = r">>>\s*$"
OPTIONS = {"max_tokens": "8", "seed": "1"}
GRANULARITIES = ["token", "message_mean", "sentence_mean"]


@dataclass
class Chats:
    """Opens sessions over one database. settings: what every Request gets."""

    database: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def open(self, **changes: Any) -> Iterator[tuple[ChatSession, Loaded]]:
        request = Request(**{"threads": 1, "ctx_size": 512, "options": OPTIONS, **self.settings, **changes})
        with ExitStack() as stack:
            store = stack.enter_context(Store.open(self.database))
            yield opening.open_chat(stack, store, request)


MakeChats = Callable[..., Chats]


def as_if_tried(*models: Path) -> None:
    """Spares the programs of this DMEM_HOME to load these models in a process of its own first."""
    remembered.write("tried", {fingerprint(model): build.upstream() for model in models})


def say(session: ChatSession, text: str) -> str:
    return "".join(session.ask(text))


def assert_agree(session: ChatSession) -> None:
    """What is stored, what the engine holds and what the model sees are one and the same."""
    stored = turns.all_of(session.store, session.conversation.id)
    latest = states.latest(session.store, session.conversation.id)
    assert session.n_turns == (stored[-1].number if stored else 0)
    assert session.seat.state().tobytes() == (latest.state.tobytes() if latest else bytes(session.seat.state().nbytes))
    assert session.is_started
    assert [(number, list(tokens)) for number, tokens in session.view.turns] == session.window.shown
    seen = session.window.turns
    assert seen == [turn.number for turn in stored if turn.number in seen]
    for turn in stored:
        tokens = beginning.tokens(turn)
        if turn.number in seen:
            visible = session.window.tokens(turn.number)
            assert visible == tokens[-len(visible) :]
    assert session.window.n_past == len(session.window.head) + sum(len(s.tokens) for s in session.window.stretches)


def state_bytes(session: ChatSession) -> bytes:
    return session.seat.state().tobytes()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def environment(home: Path, **changes: str) -> dict[str, str]:
    """Of a program of its own: nothing of the tester's settings, one folder for all that it writes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DMEM_", "NO_COLOR", "EDITOR", "VISUAL"))}
    return {
        **kept,
        "DMEM_HOME": str(home),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        **changes,
    }


def dmem(*arguments: object) -> list[str]:
    """The installed command, of the environment that runs the tests."""
    script = Path(sysconfig.get_path("scripts")) / ("dmem.exe" if os.name == "nt" else "dmem")
    assert script.is_file(), f"{script} is missing: install the package as the README says (pip install -e '.[dev]')"
    return [str(script), *map(str, arguments)]


class Terminal:
    """A program in a pseudo-terminal. expect() waits for what it shows; control sequences are taken out of that."""

    def __init__(self, argv: list[str], env: dict[str, str], *, cwd: Path | None = None) -> None:
        import fcntl
        import pty
        import termios

        self.pid, self._file = pty.fork()
        if self.pid == 0:
            try:
                if cwd:
                    os.chdir(cwd)
                os.execvpe(argv[0], argv, env)
            finally:
                os._exit(127)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.shown = ""  # everything
        self._seen = 0  # of what is plain in it, by expect()
        self.code: int | None = None

    def send(self, text: str) -> None:
        os.write(self._file, text.encode())

    def line(self, text: str) -> None:
        """Types a line, waiting for the prompt first."""
        self.expect(PROMPT)
        self.send(text + "\r")

    def expect(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Waits until `pattern` stands in what was shown since the last match; takes it and what is before it."""
        deadline = time.monotonic() + timeout
        while True:
            found = re.compile(pattern).search(plain(self.shown), self._seen)
            if found:
                self._seen = found.end()
                return found
            if time.monotonic() > deadline or not self._read(0.2):
                raise AssertionError(f"{pattern!r} was not shown, but:\n{plain(self.shown)[-3000:]}")

    def _read(self, seconds: float) -> bool:
        """False when the program is gone."""
        if select.select([self._file], [], [], seconds)[0]:
            try:
                data = os.read(self._file, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.shown += data.decode("utf-8", "replace")
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 60) -> int:
        """The exit code, or minus the number of the signal that ended it."""
        deadline = time.monotonic() + timeout
        while self.code is None:
            self._read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise AssertionError(f"It does not end; it shows:\n{plain(self.shown)[-3000:]}")
        return self.code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            self.kill()
            self.wait()
        os.close(self._file)


class Dmem:
    """The program with one home folder and one model."""

    def __init__(self, home: Path, model: Path | None, adapter: Path) -> None:
        self.home = home
        self.model = ["-m", str(model)] if model else []
        self.adapter = ["--adapter", str(adapter)]
        self.env = environment(home)

    def chat_arguments(self, *arguments: str, tokens: int = 8) -> list[str]:
        options = ["--threads", "1", "-o", "max_tokens", str(tokens), "-o", "seed", "1"]
        return dmem("chat", *self.model, *self.adapter, *options, *arguments)

    def terminal(self, *arguments: str, tokens: int = 8, **env: str) -> Terminal:
        return Terminal(self.chat_arguments(*arguments, tokens=tokens), {**self.env, **env})

    def run(self, *arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            list(arguments),
            check=False,
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            errors="replace",
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def chat(self, *arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.run(*self.chat_arguments(*arguments), code=code, stdin=stdin)

    def here(self, *arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """The same command line in this process, where a process of its own is not what is tested."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            found = cli.main(list(arguments))
        shown, told = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
        assert found == code and "Traceback" not in told, told
        return subprocess.CompletedProcess(arguments, found, shown, told)

    def chat_here(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.here(*self.chat_arguments(*arguments)[1:], code=code)

    def json(self, *arguments: str) -> Any:
        """What a command says with --json."""
        return json.loads(self.here(*arguments, "--json").stdout)


def plain(text: str) -> str:
    """Without control sequences."""
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>78]|\x1b\].*?\x07", "", text)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
