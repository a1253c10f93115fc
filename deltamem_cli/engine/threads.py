"""How many threads are worth using."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


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


def _siblings(core: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(core)
