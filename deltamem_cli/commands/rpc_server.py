"""`dmem rpc-server`: this machine computes layers for models that run on others."""

from __future__ import annotations

import ipaddress
import signal
from typing import Annotated

import typer

from deltamem_cli.commands.options.model import ThreadsOption
from deltamem_cli.terminal.output import note

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def rpc_server(
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 50052,
    threads: ThreadsOption = None,
) -> None:
    """Compute layers for models on other machines.

    Starts llama.cpp's RPC server, with this machine's GPUs or, if it has none, its CPU. The others name it with --rpc and
    must have the same version of dmem. It ends with Ctrl-C.

    Anyone who can reach it can use it and may be able to harm this machine, as it knows no passwords and trusts what it is
    sent: listen on an address that only you can reach.

    \b
    Examples:
      dmem rpc-server --host 10.0.0.2
      dmem chat --rpc 10.0.0.2:50052
    """
    from deltamem_cli import config
    from deltamem_cli.bindings import native
    from deltamem_cli.engine.remote import serve
    from deltamem_cli.engine.threads import default_threads

    if not _only_here(host):
        note(f"{host} may be open to others: anyone who can reach it can use this server, and may harm this machine.")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would wait for the server to return, which it does not
    serve(native(), host, port, threads or config.value("threads") or default_threads())


def _only_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
