"""Where a server and the commands of the same user meet: a Unix socket in the runtime folder, one for each database."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltamem_cli import config, files, paths
from deltamem_cli.errors import DeltamemError

ASK = "/v1/dmem/ask"
# Settings that decide what answers and what is remembered: where server and command differ, the command loads the model.
_CONFIGURED = (
    "model",
    "adapter",
    "template",
    "system",
    "write",
    "ctx_size",
    "gpu_layers",
    "rpc",
    "tensor_split",
    "threads",
    "replay",
    "cache_type_k",
    "cache_type_v",
    "flash_attention",
    "remember_thinking",
)
_LONGEST = 100  # bytes of a path that every system takes for a socket


def configured() -> dict[str, Any]:
    """Those settings as this process has them, with the options of replies that are set; plain data. Raises ConfigError."""
    found = {name: config.value(name) for name in _CONFIGURED}
    return {**{name: plain(value) for name, value in found.items()}, "options": config.options()}


def plain(value: object) -> object:
    """As JSON has it."""
    return str(value) if isinstance(value, Path) else value


def socket_path(database: Path) -> Path | None:
    """None where there can't be one: no such sockets, no runtime folder, or one that is too deep down."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(database))).hexdigest()[:16]
    try:
        path = paths.runtime_dir() / f"{name}.sock"
    except DeltamemError:
        return None
    return path if len(os.fsencode(path)) <= _LONGEST else None


def connect(database: Path) -> socket.socket | None:
    """A connection to the server of `database`, if one runs."""
    path = socket_path(database)
    if path is None or not _is_private(path.parent):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def listen(database: Path) -> socket.socket | None:
    """A socket for commands to find; None when there can't be one, or another server has it. close() it with leave()."""
    path = socket_path(database)
    if path is None:
        return None
    try:
        files.make_folder(path.parent)
        if not _is_private(path.parent):
            return None
        if living := connect(database):
            living.close()
            return None
        with suppress(FileNotFoundError):
            path.unlink()  # of a server that was killed
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(path))
            path.chmod(0o600)
            listening.listen(64)
        except OSError:
            listening.close()
            return None
    except OSError:
        return None
    return listening


def leave(listening: socket.socket, database: Path) -> None:
    """Closes what listen() made, and removes its file."""
    listening.close()
    if path := socket_path(database):
        path.unlink(missing_ok=True)


def _is_private(folder: Path) -> bool:
    """Whether nobody else could have put a socket there."""
    try:
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
