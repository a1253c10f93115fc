"""Runs a long call of C in a thread, so that Ctrl-C can stop it; knows nothing of models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def run_interruptible(work: Callable[[], T], cancel: Callable[[], None]) -> T:
    """What `work` returns or raises. An exception here, as of a signal, calls `cancel` and waits until work is over."""
    result: list[T] = []
    failure: list[BaseException] = []
    # Not join(): interrupted, Python 3.10 to 3.12 take a running thread for finished.
    done, begun = threading.Event(), threading.Lock()

    def run() -> None:
        if not begun.acquire(blocking=False):
            return  # given up before it began
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that waits)
            failure.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=run, name="llama_decode").start()
        done.wait()
    except BaseException:
        if not begun.acquire(blocking=False):
            # Nobody may touch what work uses before it is over, however often Ctrl-C is pressed.
            while not done.is_set():
                cancel()
                with suppress(BaseException):
                    done.wait()
        raise
    if failure:
        raise failure[0]
    return result[0]
