"""Loads a model that was never loaded here in a process of its own first, because llama.cpp ends the process for many
damaged ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from deltamem_cli import build, paths
from deltamem_cli.adapter.parts import parts
from deltamem_cli.bindings import Native
from deltamem_cli.engine import remembered
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.fingerprint import fingerprint

_WORKER = Path(__file__).with_name("trying_worker.py")
_RECORD = "tried"
# The process limits itself where the system lets it; this is for the others, and for files that can't be read.
_SECONDS, _BYTES_PER_SECOND = 60.0, 10e6


def try_out(path: Path, *, remember: bool = True) -> None:
    """Returns for a model that can be loaded; at once when one of these contents was, by this build of llama.cpp.

    With --debug nothing is tried. remember: write that down. Raises EngineError for what can't be loaded, and why.
    """
    if not path.is_file() or _is_starter(path) or Native.log_to_stderr:  # who wants llama.cpp's log gets all of it
        return
    digest, version = fingerprint(path, remember=remember), build.upstream()
    known = remembered.read(_RECORD)
    if known.get(digest) == version:
        return
    if reason := _why_not(path):
        raise EngineError(reason)
    if remember:
        remembered.write(_RECORD, remembered.read(_RECORD) | {digest: version})


def start() -> subprocess.Popen[str]:
    """A process that tries models: see trying_worker.py. Raises OSError."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env=os.environ | {"DELTAMEM_NATIVE_DIR": str(paths.native_dir()), "GGML_NO_BACKTRACE": "1"},
        start_new_session=True,  # Ctrl-C is for the process that asks, which ends this one
    )
    assert process.stdin
    package = Path(__file__).parents[2]  # an editable install is on no path
    process.stdin.write(json.dumps([str(package), *(str(Path(path or ".").absolute()) for path in sys.path)]) + "\n")
    return process


def sentence(path: Path, answer: str, code: int) -> str | None:
    """What became of `path`: None, or why it can't be loaded. answer: the worker's line, code: its exit status."""
    try:
        said = json.loads(answer)
    except ValueError:
        said = {"gave up": _fate(code)}
    if "gave up" not in said:
        refused: str | None = said.get("refused")
        return refused
    return (
        f"{path.name} can't be loaded, because llama.cpp gives up on it ({said['gave up'][:200]}): it is damaged or of a "
        "kind that this version does not know, so get it again, or name another with --model."
    )


def _why_not(path: Path) -> str | None:
    size = sum(part.stat().st_size for part in parts(path) if part.is_file())
    try:
        process = start()
    except OSError:
        return None  # no process to be had: it is loaded untried
    with process:
        try:
            answer, _ = process.communicate(json.dumps(str(path)) + "\n", timeout=_SECONDS + size / _BYTES_PER_SECOND)
        except subprocess.TimeoutExpired:
            process.kill()
            answer = json.dumps({"gave up": "it takes too long"})
        except BaseException:  # Ctrl-C
            process.kill()
            raise
        return sentence(path, answer, process.wait())


def _fate(code: int) -> str:
    if code == -getattr(signal, "SIGPROF", 0):
        return "it takes too long"
    try:
        return f"it ended with {signal.Signals(-code).name}"
    except ValueError:
        return f"it ended with the code {code}"


def _is_starter(path: Path) -> bool:
    return path.name == paths.STARTER_MODEL and path.resolve() == paths.starter_model().resolve()
