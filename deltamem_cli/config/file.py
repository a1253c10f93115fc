"""The configuration file: where it is, what stands in it, and how it is replaced as a whole. Knows no setting by name."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltamem_cli import files, paths, reading
from deltamem_cli.config.errors import ConfigError
from deltamem_cli.text import decoded, whole

FILE_NAME = "config.toml"
_PATIENCE = 10.0  # seconds; another one's change takes milliseconds

# (identity of the file as it was read, what it said): one command asks for many settings
_last: tuple[tuple[Any, ...], dict[str, Any]] | None = None


def location() -> Path:
    """The path of the configuration file, which need not exist."""
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
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device may have no end
        raise ConfigError(f"{path} could not be read (it is not a file): make it a readable file, or remove it.")
    identity = (path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    if _last is None or _last[0] != identity:
        _last = identity, parse(read_text(path), path)
    return _last[1]


def read_text(path: Path) -> str:
    """The file's text, with line feeds only. Raises ConfigError when it is not UTF-8 or can't be read."""
    try:
        return decoded(reading.whole_file(path), "strict").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}): save it as UTF-8, or start over without it.") from error
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
    except RecursionError:
        raise ConfigError(f"{path} nests its values too deeply. Correct it with: dmem config edit") from None
    except ValueError as error:  # TOMLDecodeError is one, and so is what int() says of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}. Correct it with: dmem config edit") from error


def write(make: Callable[[], str]) -> None:
    """Puts what `make` returns in the file's place, at once and private. Raises ConfigError.

    Whoever reads sees the old text or the new one; whoever else writes waits, so `make` may start from what is there.
    """
    path = location().resolve()  # what a link points to is replaced, not the link
    try:
        files.make_folder(path.parent)
        with _alone(path):
            files.write(path, _utf8(make(), path).encode())
    except (FileExistsError, NotADirectoryError) as error:
        raise _no_folder(path.parent) from error
    except OSError as error:
        raise ConfigError(
            f"{path} could not be written ({error.strerror}): make its folder writable, or set DMEM_HOME to another one."
        ) from error


def _utf8(text: str, path: Path) -> str:
    if text != whole(text):
        raise ConfigError(
            f"{path} must be UTF-8, and the new value is not: write it in UTF-8; you may have to rename a file."
        )
    return text


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other dmem writes the file inside. Raises ConfigError when one does not come to an end."""
    lock = path.with_name(f"{path.name}.lock")
    deadline = time.monotonic() + _PATIENCE
    while (file := files.take_lock(lock)) is None:
        if time.monotonic() > deadline:
            raise ConfigError(f"{path} is being changed by another dmem that doesn't finish: close that one.")
        time.sleep(0.01)
    try:
        yield
    finally:
        files.drop_lock(lock, file)


def _no_folder(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a folder, so dmem can't keep its files there: set DMEM_HOME to a folder.")


def _unreadable(path: Path, error: OSError) -> ConfigError:
    if isinstance(error, NotADirectoryError):
        return _no_folder(path.parent)
    return ConfigError(f"{path} could not be read ({error.strerror}): make it a readable file, or remove it.")
