"""The end of the terminal reaches what is open, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable

import pytest

from deltamem_cli.terminal.interrupts import ending_in_order


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


STUCK = """
import asyncio, ctypes, signal, sys, time
from deltamem_cli.terminal.interrupts import ending_in_order, stopping
from deltamem_cli.terminal.last_resort import watch_again
from deltamem_cli.engine.interruptible import run_interruptible

def stuck():
    print("here", flush=True)
    lock = ctypes.create_string_buffer(256)
    for _ in range(2):  # the second time it waits for itself, which no signal interrupts
        ctypes.CDLL(None).pthread_mutex_lock(lock)

async def loop():
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, print)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
"""
HELD_UP = {
    "loading": "with ending_in_order(): stuck()",
    "a short call": "with ending_in_order(), stopping(print): stuck()",
    "a long call": "with stopping(lambda: None): run_interruptible(stuck, lambda: None)",
    "after a reply": "with ending_in_order():\n  with stopping(print): pass\n  stuck()",
    "after a prompt": "with ending_in_order():\n  asyncio.run(loop())\n  watch_again()\n  stuck()",
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of others")
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_a_library_that_does_not_return_holds_up_the_end_for_a_second_at_most(number: int) -> None:
    children = {}
    try:
        for where, code in HELD_UP.items():
            children[where] = subprocess.Popen([sys.executable, "-c", STUCK + code], stdout=subprocess.PIPE)
        for child in children.values():
            assert child.stdout and child.stdout.readline() == b"here\n"
        time.sleep(0.1)
        began = time.monotonic()
        for child in children.values():
            child.send_signal(number)
        assert {where: child.wait(10) for where, child in children.items()} == dict.fromkeys(HELD_UP, 128 + number)
        assert time.monotonic() - began < 3  # on a machine that is busy
    finally:
        for child in children.values():
            child.kill()
            child.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of others")
@pytest.mark.parametrize("code", ["with ending_in_order():", "with stopping(lambda: None):"])
def test_what_is_stored_on_the_way_out_has_the_time_for_it(code: str) -> None:
    way_out = "\n  try:\n    print('here', flush=True)\n    time.sleep(0.5)\n  finally:\n    time.sleep(2)\n    print('stored')\n"
    with subprocess.Popen([sys.executable, "-c", STUCK + code + way_out], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"here\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == b"stored\n"
        assert child.wait(10) == 128 + signal.SIGTERM


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of others")
def test_what_nohup_lets_pass_goes_on_passing() -> None:
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nwith stopping(print): signal.raise_signal(signal.SIGHUP)\n"
    assert subprocess.run([sys.executable, "-c", STUCK + code], capture_output=True, check=True).stdout == b""
