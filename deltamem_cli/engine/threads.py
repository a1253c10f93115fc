"""How many threads are worth using on this machine."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from pathlib import Path


def default_threads() -> int:
    """One per core that this process may use and that other programs leave free at this moment. At least 1.

    All threads wait for the slowest at every operator, so one that shares its core with another program slows all of
    them down; one thread less costs little.
    """
    cores = physical_cores()
    share_busy = min(_others_running() / (os.cpu_count() or 1), 1.0)
    return max(1, round(cores * (1 - share_busy)))


def physical_cores() -> int:
    """Cores this process may use, counting the two threads of one core once. At least 1.

    Heeds the processor affinity and, in a container, the quota of time: more threads than that are stopped in turn.
    """
    quota = cpu_quota()
    cores = _cores()
    return max(1, cores if quota is None else min(cores, math.floor(quota)))


def _cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    if platform.system() == "Darwin":
        try:  # efficiency cores slow the others down: every operator waits for the slowest thread
            return int(subprocess.check_output(["sysctl", "-n", "hw.perflevel0.physicalcpu"], text=True))
        except (OSError, ValueError, subprocess.CalledProcessError):
            return len(allowed) // 2
    siblings = [_siblings(core) for core in allowed]
    if None in siblings:  # Windows does not tell by a file; most processors have two threads per core
        return len(allowed) if len(allowed) <= 4 else len(allowed) // 2
    return len(set(siblings))


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors' worth of time that this process's control groups grant, the least of them; None: no limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _quota_v1
        else:
            continue
        # A container sees its own group as the root of the tree, whatever path the kernel names.
        group = base / path.lstrip("/")
        for folder in [group, *group.parents][: len(group.parts) - len(base.parts) + 1]:
            limit = read(folder)
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


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


def _siblings(core: int) -> str | None:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return None
