"""Keeps what is made for a model within the memory that this machine has left; knows nothing of models.

Linux promises more memory than there is, and ends whoever uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MEMINFO, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, asking for more bytes than are available fails. Other systems than Linux refuse by themselves, or kill."""
    room = available()
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        room = None
    if room is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    limits = [taken + room, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def available() -> int | None:
    """Bytes that this process can take beside others, which go on growing; None where it can't be told."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # of a container, which sees its own group as the root
        most, now = ((_GROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        found.append(max(0, int(most) - int(now)))
    return min(found) * 9 // 10 if found else None
