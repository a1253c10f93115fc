"""Whether anything reached for the network: listens to what Python itself reports of sockets."""

from __future__ import annotations

import os
import sys
from typing import Any

from deltamem_cli.diagnosis.checks import Check

_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"})


class Listener:
    """Hears from its making on what is tried. Python lets no listener go again, so make one per process."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            self.tried.append(f"{event}{arguments!r}")

    def check(self) -> Check:
        """Broken when anything tried to use the network while the listener was on."""
        if self.tried:
            return Check("network", "broken", f"tried during this check: {self.tried[0]}", "please report it")
        offline = "; DMEM_OFFLINE forbids even that" if os.environ.get("DMEM_OFFLINE") else ""
        return Check("network", "ok", f"not used during this check; only dmem model pull uses it{offline}")
