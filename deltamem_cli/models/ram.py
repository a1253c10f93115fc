"""Whether a model fits into this machine's memory."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from deltamem_cli import config
from deltamem_cli.models.facts import Facts

# What llama.cpp needs besides weights and KV cache for a model of a few billion parameters, and Python with it.
_WORKING = 300_000_000
_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Memory:
    """Of this machine, in bytes."""

    total: int
    available: int  # without pushing other programs out

    def verdict(self, needed: int) -> str:
        """yes: fits beside what runs; tight: only when other programs make room; no: more than the machine has."""
        if needed <= self.available * 0.9:
            return "yes"
        return "tight" if needed <= self.total * 0.9 else "no"


def needed(size: int, facts: Facts) -> int:
    """Bytes that a model of `size` on disk takes with a context as it is configured."""
    said = config.value("ctx_size")
    context = facts.context_length if said == 0 else said or _DEFAULT_CONTEXT
    if facts.context_length:
        context = min(context, facts.context_length)
    return size + context * facts.cache_bytes + _WORKING


def of_machine() -> Memory | None:
    """None where it cannot be told."""
    if sys.platform == "win32":
        return _of_windows()
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    available = total
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except OSError:
        pass  # macOS: what other programs would give up is not to be had without their help
    limit = _limit_of_container()
    return Memory(min(total, limit or total), min(available, limit or available))


def _limit_of_container() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _of_windows() -> Memory | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "file", "file_free", "virtual", "virtual_free", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined,unused-ignore]
        return None
    return Memory(status.total, status.available)
