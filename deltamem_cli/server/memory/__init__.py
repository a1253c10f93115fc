"""The memory as an interface, with the words of `dmem memory`."""

from deltamem_cli.server.memory.routes import ROUTES

__all__ = ["ROUTES"]
