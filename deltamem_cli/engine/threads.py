"""How many threads are worth using."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path


def default_threads() -> int:
    """One per core that other programs leave free at this moment. At least 1.

    All threads wait for the slowest at every operator, so one that shares its core with another program slows all of
    them down; one thread less costs little.
    """
    cores = physical_cores()
    share_busy = min(_others_running() / (os.cpu_count() or 1), 1.0)
    return max(1, round(cores * (1 - share_busy)))


def physical_cores() -> int:
    """Cores this process may use, counting the two threads of one core once. At least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    if platform.system() == "Darwin":
        try:  # efficiency cores slow the others down: every operator waits for the slowest thread
            return max(1, int(subprocess.check_output(["sysctl", "-n", "hw.perflevel0.physicalcpu"], text=True)))
        except (OSError, ValueError, subprocess.CalledProcessError):
            return max(1, len(allowed) // 2)
    siblings = {_siblings(core) for core in allowed}
    return max(1, len(siblings))


def _others_running() -> int:
    """Runnable threads of other programs, the least of three looks; 0 where the system does not tell."""
    counts = []
    for _ in range(3):
        try:
            running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
            counts.append(int(running) - 1)  # this one
        except (OSError, ValueError, IndexError):
            return 0
        time.sleep(0.005)
    return max(0, min(counts))


def _siblings(core: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(core)
