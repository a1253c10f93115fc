"""The command's side of warm.py: asks a running server of the same user. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from deltamem_cli.errors import DeltamemError
from deltamem_cli.server.same_user.meeting import ASK, configured, connect, plain
from deltamem_cli.session.thinking import Thought

_OWN = ("cid", "new", "template", "replay_tokens")  # what takes a session of its own


@dataclass
class Stats:
    """As TurnStats has them."""

    interrupted: bool = False
    looped: bool = False


@dataclass
class WarmTurn:
    """A reply on its way from the server. document: what documents.asked() tells of it, when it is over."""

    connection: socket.socket
    answer: BinaryIO
    stats: Stats = field(default_factory=Stats)
    document: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = False
    context_filled: tuple[int, int] = (0, 0)
    _dropped: bool = False

    def pieces(self) -> Generator[str, None, None]:
        """The reply as it grows, what is thought as Thoughts. Raises DeltamemError."""
        with self.connection, self.answer:
            for line in self.answer:
                said = json.loads(line)
                if "error" in said:
                    raise DeltamemError(said["error"])
                if "end" in said:
                    self._finish(**said["end"])
                    return
                yield Thought(said["thought"]) if "thought" in said else said["piece"]
        # nothing came of the end: it was stopped here, or the server was
        self.stats.interrupted = True

    def stop(self) -> None:
        """The server keeps what it has said by now, as interrupted. Safe in a signal handler."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def take_dropped(self) -> bool:
        """Whether turns have left the window."""
        return self._dropped

    def _finish(
        self,
        interrupted: bool,
        looped: bool,
        dropped: bool,
        writes: bool,
        context: tuple[int, int],
        document: Mapping[str, Any],
    ) -> None:
        self.stats = Stats(interrupted, looped)
        self._dropped, self.writes, self.context_filled, self.document = dropped, writes, context, document


def ask(database: Path, text: str, request: Mapping[str, Any]) -> WarmTurn | None:
    """The reply to `text`; None when no server runs that would answer as this process would.

    request: fields of session.request.Request that are not as by default. Raises DeltamemError as the server does.
    """
    if any(request.get(name) not in (None, False) for name in _OWN) or request.get("think") is not None:
        return None
    if bool(request.get("temporary")) == bool(request.get("memory", True)):  # a copy of a memory, or a chat without
        return None
    connection = connect(database)
    if connection is None:
        return None
    said = {name: _whole_path(name, value) for name, value in request.items() if value is not None}
    body = json.dumps({"text": text, "request": said, "configured": configured()}).encode()
    try:
        # HTTP/1.0: the answer ends with the connection, and comes in no other wrapping
        head = f"POST {ASK} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        answer = connection.makefile("rb")
        status = int(answer.readline().split()[1])
        while answer.readline().strip():
            pass
        if status == 200:
            return WarmTurn(connection, answer)
        error = json.loads(answer.read())["error"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        connection.close()  # a server that ends, or another program
        return None
    connection.close()
    if error.get("code") in ("other", "server_ending", "overloaded"):
        return None
    raise DeltamemError(error["message"])


def _whole_path(name: str, value: object) -> object:
    if name in ("model", "adapter") and os.path.exists(str(value)):
        return os.path.abspath(str(value))
    return plain(value)
