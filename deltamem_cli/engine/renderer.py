"""The process that renders chat templates (template_worker.py): started when needed, ended when it takes too long."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock, Timer
from typing import Any

SECONDS = 5.0  # on the clock; that of the processor stops it before, where the system has one
_START_SECONDS = 30.0  # until it is ready: a busy machine starts processes slowly
_WORKER = Path(__file__).with_name("template_worker.py")


class Stopped(Exception):
    """The process ended, or was ended, before it answered."""


class Renderer:
    """One process for all templates; one that ended is replaced at the next call. Any thread may call."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # after a fork the pipes are still those of the process that made them
        self._ready = False

    def start(self) -> None:
        """Lets the process get ready beside whatever the caller does next. Raises OSError."""
        with self._lock:
            self._running()

    def ask(self, question: Mapping[str, Any]) -> dict[str, str]:
        """See template_worker.py. Raises Stopped, and OSError when no process can be started."""
        with self._lock:
            process = self._running()
            assert process.stdin and process.stdout
            try:
                if not self._ready:
                    self._read(process, _START_SECONDS)
                    self._ready = True
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                answer: dict[str, str] = json.loads(self._read(process, SECONDS))
            except (OSError, ValueError):  # a broken pipe; half a line or none
                self._end()
                raise Stopped from None
            except BaseException:  # Ctrl-C: the next answer would be that of this question
                self._end()
                raise
            return answer

    def _read(self, process: subprocess.Popen[str], seconds: float) -> str:
        """A line, or what there is of it after `seconds`; then the process has ended."""
        assert process.stdout
        timer = Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            return process.stdout.readline()
        finally:
            timer.cancel()

    def close(self) -> None:
        """Ends the worker process; only the process that started it does."""
        with self._lock:
            if self._owner == os.getpid():
                self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._process and self._owner == os.getpid() and self._process.poll() is not None:
            self._end()
        if self._process is None or self._owner != os.getpid():
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # signals of the terminal are not for it; it ends with its input
            )
            self._owner, self._ready = os.getpid(), False
            assert self._process.stdin
            self._process.stdin.write(json.dumps([str(Path(path or ".").absolute()) for path in sys.path]) + "\n")
            self._process.stdin.flush()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with process:  # closes the pipes and waits
            pass


RENDERER = Renderer()
atexit.register(RENDERER.close)
