"""Runs a call of C that calls itself once per letter of a word, with a stack of that depth; knows nothing of models."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from deltamem_cli.engine.errors import EngineError

T = TypeVar("T")

_LONG = 4096  # letters: what an ordinary stack holds several times over
_LONGEST = 200_000
_BYTES = 2048  # of stack for a letter; measured: 300 to 600
_lock = threading.Lock()  # the size of stacks is one setting for all threads


def run_for(text: str, work: Callable[[], T]) -> T:
    """What `work`, which splits `text` into words, returns or raises. Raises EngineError for a word without end."""
    longest = max((len(run) for run in re.findall(rf"\S{{{_LONG},}}|\s{{{_LONG},}}", text)), default=0)
    if not longest:
        return work()
    refused = EngineError(
        f"The text has {longest:,} characters in a row without a space or line break, too many to read: "
        "break them into lines, or leave them out."
    )
    if longest > _LONGEST:
        raise refused
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that waits)
            failure.append(error)

    with _lock:
        before = threading.stack_size(longest * _BYTES + (8 << 20))
        try:
            thread = threading.Thread(target=run, name="llama_tokenize")
            thread.start()
        except RuntimeError:  # so much address space is not to be had
            raise refused from None
        finally:
            threading.stack_size(before)
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
