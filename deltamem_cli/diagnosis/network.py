"""Whether anything reached for the network: listens to what Python itself reports of sockets."""

from __future__ import annotations

import os
import sys
from typing import Any

from deltamem_cli import config
from deltamem_cli.diagnosis.checks import Check
from deltamem_cli.errors import DeltamemError

_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"})


class Listener:
    """Hears from its making on what is tried. Python lets no listener go again, so make one per process."""

    def __init__(self) -> None:
        self._tried: list[tuple[str, tuple[Any, ...]]] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            self._tried.append((event, arguments))

    def check(self) -> Check:
        """Broken when anything tried to use the network while the listener was on, but for the RPC servers that are set."""
        servers = _servers()
        for event, arguments in self._tried:
            if not any(_is_for(server, event, arguments) for server in servers):
                return Check("network", "broken", f"tried during this check: {event}{arguments!r}", "please report it")
        if servers:
            reached = ", ".join(f"{host}:{port}" for host, port in servers)
            return Check(
                "network", "ok", f"used during this check for nothing but the RPC servers that are set: {reached}"
            )
        offline = "; DMEM_OFFLINE forbids even that" if os.environ.get("DMEM_OFFLINE") else ""
        return Check(
            "network",
            "ok",
            f"not used during this check; only dmem model pull and benchmarks without --data use it{offline}",
        )


def _servers() -> list[tuple[str, int]]:
    from deltamem_cli.engine.remote import addresses

    try:
        return addresses(config.value("rpc") or "")
    except DeltamemError:
        return []


def _is_for(server: tuple[str, int], event: str, arguments: tuple[Any, ...]) -> bool:
    """A connection has the number of a host where the setting may have its name."""
    host, port = server
    if event == "socket.getaddrinfo":
        return arguments[:2] == (host, port)
    return event == "socket.connect" and arguments[1][1:2] == (port,)
