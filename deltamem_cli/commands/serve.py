"""`dmem serve`: the memory behind other programs."""

from __future__ import annotations

import typer

from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    AdapterOption,
    ContextOption,
    Hardware,
    ModelOption,
    grouped,
)

app = typer.Typer()


@app.command()
@grouped
def serve(
    model: ModelOption = None,
    adapter: AdapterOption = None,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen at."),
    port: int = typer.Option(11435, "--port", min=0, max=65535, help="Port to listen at; 0: any that is free."),
    parallel: int = typer.Option(4, "--parallel", min=1, max=64, help="Conversations that are answered at once."),
) -> None:
    """Serve the memory to other programs, through the interfaces of OpenAI and Ollama."""
    import asyncio
    import socket
    import time
    from contextlib import ExitStack
    from dataclasses import asdict, replace

    from deltamem_cli import config
    from deltamem_cli.server.app import build
    from deltamem_cli.server.places import Places
    from deltamem_cli.server.service import Service
    from deltamem_cli.server.serving import Server
    from deltamem_cli.session.loading import load
    from deltamem_cli.session.request import Request, settle
    from deltamem_cli.store.location import default_path
    from deltamem_cli.terminal.output import note

    with ExitStack() as stack:
        request = Request(
            profile=str(config.value("profile")), model=model, adapter=adapter, ctx_size=ctx_size, **asdict(hardware)
        )
        listening = stack.enter_context(socket.create_server((host, port)))
        loaded = load(stack, request, seats=parallel)
        # the model is the server's, whatever profiles say of theirs
        request = replace(request, model=settle(request, None).model)
        name = request.model if isinstance(request.model, str) and "/" not in request.model else loaded.model.name

        async def run() -> None:
            places = Places(loaded, request, default_path())
            service = Service(places, name, request.profile, int(time.time()), frozenset([loaded.model.name]))
            at, number = listening.getsockname()[:2]
            note(f"Serving {name} at http://{at}:{number}")
            await Server(build(service), places).serve_and_close([listening])

        asyncio.run(run())
