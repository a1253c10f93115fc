"""The end of the process when the native library gives up: what must be put right is, and one sentence is said.

It is called from within abort(), so it can't raise: the process is over when it returns.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

put_right: list[Callable[[], None]] = []  # called in turn, the last first, such as what gives the terminal back
_first = threading.Lock()


def say(reason: str) -> None:
    """What the person is told. Replaced where a process answers to another one."""
    print(
        f"llama.cpp gave up ({reason}), so dmem had to end, and what was complete is kept: run it again, with --debug "
        "to see more.",
        file=sys.stderr,
        flush=True,
    )


def at_once(message: str) -> NoReturn:
    """Ends the process with exit code 1. message: llama.cpp's own, with a line of its source in front."""
    if not _first.acquire(blocking=False):
        time.sleep(60)  # several threads give up together, and the first of them ends all
    try:
        for action in reversed(put_right):
            with suppress(Exception):
                action()
        with suppress(Exception):
            sys.stdout.flush()
        say(" ".join(re.sub(r"^\S*[/\\](?=[^/\\]+:\d+: )", "", message).split()))
    finally:
        os._exit(1)
