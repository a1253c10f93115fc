"""What lies on the disk: folders, who may read them, room, and the database. Changes nothing."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from deltamem_cli import paths
from deltamem_cli.config import file as config_file
from deltamem_cli.diagnosis.checks import Check
from deltamem_cli.errors import DeltamemError
from deltamem_cli.store import migrations
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import WAY_OUT

_LEAST_FREE = 100_000_000  # bytes


def folder() -> Check:
    """Whether the data folder is one that can be written to."""
    path = paths.data_dir()
    if path.exists() and not path.is_dir():
        return Check("data folder", "broken", f"{path} is a file", "move it away, or set DMEM_HOME to a folder")
    there = _existing(path)
    try:
        with tempfile.TemporaryFile(dir=there):  # asks for more than permissions: a read-only or full disk refuses too
            pass
    except OSError as error:
        found = f"{there} can't be written to ({error.strerror})"
        return Check("data folder", "broken", found, f"make {there} writable, or set DMEM_HOME to another folder")
    return Check("data folder", "ok", f"{path}" if path.exists() else f"{path}, created by the first chat")


def permissions(database: Path) -> Check:
    """Others may neither read nor list what is remembered and typed."""
    if os.name != "posix":
        return Check("permissions", "ok", "as the system's folders have them")
    private = [database, Path(f"{database}-wal"), Path(f"{database}-shm"), paths.data_dir() / "history"]
    files = [path for path in (*private, config_file.location()) if _is_open(path)]
    folders = [path for path in dict.fromkeys((paths.data_dir(), paths.config_dir())) if _is_open(path)]
    if not files and not folders:
        return Check("permissions", "ok", "only you can read the stored data")
    advice = "; ".join(
        f"chmod {mode} {' '.join(map(str, wrong))}" for mode, wrong in (("700", folders), ("600", files)) if wrong
    )
    # in an open folder names can be seen, and no contents
    return Check(
        "permissions",
        "broken" if files else "warning",
        f"others can read {', '.join(map(str, [*folders, *files]))}",
        advice,
    )


def disk(database: Path) -> Check:
    """Whether there is room for the database to grow to twice its size."""
    there = _existing(database.parent)
    free = shutil.disk_usage(there).free
    # deleting for good writes the database anew beside itself
    wanted = max(_LEAST_FREE, 2 * database.stat().st_size if database.is_file() else 0)
    found = f"{free / 1e9:,.1f} GB free at {there}"
    if free < wanted:
        return Check("disk", "warning", found, f"free some space: at least {wanted / 1e9:.1f} GB")
    return Check("disk", "ok", found)


def database(path: Path) -> Check:
    """Whether the database is sound and can be written to."""
    if not path.exists():
        return Check("database", "ok", f"{path}, created by the first chat")
    try:
        with Store.look(path) as store:
            problems = store.check()
            if problems:
                more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
                return Check("database", "broken", f"{path} is damaged: {', '.join(problems[:3])}{more}", WAY_OUT)
            if store.layout < migrations.LATEST:
                found = f"{path} has layout {store.layout}; the next command upgrades it to {migrations.LATEST}"
                return Check("database", "ok", found)
            counts = ", ".join(
                f"{number:,} {what.removesuffix('s') if number == 1 else what}"
                for what, number in store.counts().items()
            )
    except DeltamemError as error:
        return Check("database", "broken", str(error), f"see which file this is: dmem log path; {WAY_OUT}")
    if not os.access(path, os.W_OK):
        return Check("database", "broken", f"{path} can't be written to", f"make it yours: chown $USER {path}")
    return Check("database", "ok", f"{path} is sound: {counts}")


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _is_open(path: Path) -> bool:
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    except OSError:  # not there, or closed even to us
        return False
