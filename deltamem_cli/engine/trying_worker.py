"""Tries models in a process of its own, run as a script: paths as lines of JSON in, a line for each out.

Of whatever llama.cpp does with a damaged file, this process alone ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from deltamem_cli.engine.model import Model

SECONDS, BYTES_PER_SECOND = 8.0, 100e6  # of the processor; measured: a second for a vocabulary of 250,000 tokens
MEMORY = 2**30  # bytes beyond twice the file's size: some types of weights are laid out anew
# Letters that few vocabularies have, so that they are spelled as bytes, and marks that splitters treat in their own way.
TEXT = "Hello, World!\n\n  I'll\tsay 123 \u00e9\u2602\u65e5\U0001f600\u0301\x00\x7f"


def main() -> None:
    """Load and run the model that stdin names, and answer on stdout with a line of JSON."""
    sys.path[:] = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer

    from deltamem_cli import ending

    ending.say = lambda reason: _put(answers, {"gave up": reason})
    for line in sys.stdin:
        _put(answers, _answer(Path(json.loads(line))))


def _put(answers: TextIO, said: dict[str, str]) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


def _answer(path: Path) -> dict[str, str]:
    """{} for a model that works, {"refused": why} for one that is no model to use; {"gave up": why} comes by itself."""
    from deltamem_cli.bindings import native
    from deltamem_cli.engine import Engine, EngineOptions, Model, Seat
    from deltamem_cli.errors import DeltamemError

    try:
        native()
        _limit(path)
        with Model(path) as model:
            tokens = _read_and_write(model)
            with Engine(model, None, EngineOptions(ctx_size=256, batch=8, threads=1)) as engine:
                seat = Seat(engine)
                seat.feed(tokens)
                if seat.can_shift and len(tokens) > 1:
                    seat.drop(0, 1)
                seat.feed(tokens[:1])
    except DeltamemError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001 (whatever a damaged file makes of Python's part)
        return {"gave up": f"{type(error).__name__}: {error}"}
    return {}


def _read_and_write(model: Model) -> list[int]:
    """Uses all of the vocabulary; returns a few tokens to feed."""
    tokens = [0]
    if model.speaks:
        tokens = model.tokenize(TEXT) or tokens
        for token in range(model.n_vocab):
            model.piece(token, special=True)
        model.chat_template, model.name, model.n_ctx_train  # noqa: B018 (they are read)
    return tokens[:4]


def _limit(path: Path) -> None:
    from deltamem_cli.adapter.parts import parts
    from deltamem_cli.bindings import native

    size = sum(part.stat().st_size for part in parts(path) if part.is_file())
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, SECONDS + size / BYTES_PER_SECOND)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if native().has_gpu:
            return  # drivers take address space that they never fill
        with open("/proc/self/statm", encoding="ascii") as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + 2 * size + MEMORY
        hard: Any = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    except (ImportError, OSError, ValueError):
        pass  # Linux alone counts what a process takes


if __name__ == "__main__":
    main()
