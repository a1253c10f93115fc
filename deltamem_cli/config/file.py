"""The configuration file: where it is, what stands in it, and how it is replaced as a whole. Knows no setting by name."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltamem_cli import paths
from deltamem_cli.config.errors import ConfigError

FILE_NAME = "config.toml"
_LEFT_OVER = 10.0  # seconds after which nobody is writing any more; it takes milliseconds

# (identity of the file as it was read, what it said): one command asks for many settings
_last: tuple[tuple[Any, ...], dict[str, Any]] | None = None


def location() -> Path:
    return paths.config_dir() / FILE_NAME


def read() -> dict[str, Any]:
    """What the file says, unchecked; nothing when there is no file. Raises ConfigError."""
    global _last
    path = location()
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(path, error) from error
    identity = (path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    if _last is None or _last[0] != identity:
        _last = identity, parse(read_text(path), path)
    return _last[1]


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}): save it as UTF-8, or begin anew without it.") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def parse(text: str, path: Path) -> dict[str, Any]:
    """The document in `text`; `path` is what errors name. Raises ConfigError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Correct it with: dmem config edit") from error


def write(make: Callable[[], str]) -> None:
    """Puts what `make` returns in the file's place, at once and private. Raises ConfigError.

    Whoever reads sees the old text or the new one; whoever else writes waits, so `make` may start from what is there.
    """
    path = location().resolve()  # what a link points to is replaced, not the link
    draft = path.with_name(f"{path.name}.new")  # who has made it may write; taking the file's place ends that
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _make_alone(draft)
        try:
            with os.fdopen(file, "w", encoding="utf-8") as new:
                new.write(make())
                new.flush()
                os.fsync(file)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
    except OSError as error:
        raise ConfigError(
            f"{path} could not be written ({error.strerror}): make its folder writable, or set DMEM_HOME to another one."
        ) from error


def _make_alone(draft: Path) -> int:
    """The open draft, made by nobody else. One that is left over from a process that died is taken away."""
    while True:
        with suppress(FileExistsError):
            return os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _LEFT_OVER:
                draft.unlink()
        time.sleep(0.01)


def write_private(path: Path, text: str) -> None:
    """Raises OSError."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} could not be read ({error.strerror}): make it a file that you may read, or remove it.")
