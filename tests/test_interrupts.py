"""The end of the terminal reaches what is open, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Callable

import pytest

from deltamem_cli.commands.interrupts import ending_in_order


class Thing:
    pass


def at_once() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def while_an_object_is_cleared_away() -> None:
    """As chance had it once: Python drops what is raised here."""
    thing = Thing()
    weakref.finalize(thing, at_once)
    del thing


@pytest.mark.parametrize("send", [at_once, while_an_object_is_cleared_away])
def test_the_end_of_the_terminal_is_not_lost(send: Callable[[], None]) -> None:
    handler = signal.getsignal(signal.SIGHUP)
    with pytest.raises(SystemExit) as left, ending_in_order():
        send()
        time.sleep(10)
        pytest.fail("It did not end.")
    assert left.value.code == 128 + signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) is handler


def test_the_end_of_the_terminal_waits_until_what_is_open_is_closed() -> None:
    with pytest.raises(SystemExit) as left, ending_in_order():
        while_an_object_is_cleared_away()
    assert left.value.code == 128 + signal.SIGHUP
    time.sleep(0.2)  # sent again, it would end this process


def test_what_fails_for_another_reason_while_an_object_is_cleared_away_is_still_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda lost: reported.append(lost.exc_type))
    with ending_in_order():
        thing = Thing()
        kept = weakref.ref(thing, lambda _: 1 // 0)
        del thing
    assert kept() is None
    assert reported == [ZeroDivisionError]
