"""`dmem serve`: the memory behind other programs."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_cli.commands.finding import profile_name
from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    AdapterOption,
    ContextOption,
    Hardware,
    ModelOption,
    SystemOption,
    TemplateOption,
    WriteOption,
    grouped,
)
from deltamem_cli.commands.options.stored import DatabaseOption
from deltamem_cli.errors import DeltamemError, UsageError

if TYPE_CHECKING:
    import socket

    from deltamem_cli.server.guard import Rules
    from deltamem_cli.session.request import Request

app = typer.Typer(add_completion=False, rich_markup_mode=None)

DEFAULT_PORT = 11435  # beside Ollama's
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@app.command()
@grouped
def serve(
    profile: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--profile",
            metavar="NAME",
            help="Profile of conversations whose client names none.  [config: profile]",
            autocompletion=completion.profiles,
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = DEFAULT_PORT,
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", min=1, max=64, help="Conversations answered at the same time.")
    ] = 4,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY[=PROFILE]",
            help="Only serve requests with this key; with PROFILE, only that profile's memory. Repeatable.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="File with one KEY or KEY=PROFILE per line.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="HOST[:PORT]", help="Also accept this Host header. Repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="URL", help="Let web pages of this origin ask. Repeatable."),
    ] = None,
    idle: Annotated[
        str | None, typer.Option("--idle", metavar="TIME", help="Exit after this long without a request, such as 15m.")
    ] = None,
    write: WriteOption = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    template: TemplateOption = None,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    database: DatabaseOption = None,
) -> None:
    """Serve the memory to other programs, through the APIs of OpenAI and Ollama and a web page.

    Each conversation of each client keeps its own memory, in the same database as dmem chat. While the server runs,
    dmem ask uses its model instead of loading one. Ctrl-C stops it; replies in progress are saved as far as they got.

    \b
    Examples:
      dmem serve
      dmem serve -m qwen3-4b --parallel 2 --idle 15m
      dmem serve --host 0.0.0.0 --api-key-file keys.txt --allow-host laptop.local:11435
    """
    from deltamem_cli.session.request import Request

    rules = _rules(host, api_key, api_key_file, allow_host, allow_origin)
    seconds = _seconds(idle)
    request = Request(
        profile=profile_name(profile),
        model=model,
        adapter=adapter,
        system=system,
        template=template,
        write=write,
        ctx_size=ctx_size,
        **asdict(hardware),
    )
    _check_installed()
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(host, port))
        _serve(stack, listening, request, rules, parallel, seconds, database)


def _serve(
    stack: ExitStack,
    listening: socket.socket,
    request: Request,
    rules: Rules,
    parallel: int,
    idle: float | None,
    database: Path | None,
) -> None:
    import asyncio
    import time

    from deltamem_cli.models import STARTER
    from deltamem_cli.server.app import build
    from deltamem_cli.server.conversations.places import Places
    from deltamem_cli.server.guard import Guard, hosts_of
    from deltamem_cli.server.requests.service import Service
    from deltamem_cli.server.same_user import meeting
    from deltamem_cli.server.serving import Server
    from deltamem_cli.session.loading import load
    from deltamem_cli.session.request import settle
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.location import default_path
    from deltamem_cli.terminal.output import note, printable

    where = database or default_path()
    Store.open(where).close()  # what is wrong with it is said before the model is loaded
    loaded = load(stack, request, seats=parallel)
    if loaded.why_no_memory:
        note(printable(f"Memory is off: {loaded.why_no_memory}"))
    if loaded.why_no_gpu:
        note(loaded.why_no_gpu)
    # model and template are the server's, whatever profiles say of theirs
    settled = settle(request, None)
    request = replace(request, model=settled.model or STARTER, template=settled.template)
    path = Path(str(request.model))
    name = path.stem if path.suffix == ".gguf" else path.name
    address, port = listening.getsockname()[:2]
    rules = replace(rules, hosts={*hosts_of(address, port), *rules.hosts})
    sockets = [listening]
    if (meeting_place := meeting.listen(where)) is not None:
        stack.callback(meeting.leave, meeting_place, where)
        sockets.append(meeting_place)

    async def run() -> None:
        places = Places(loaded, request, where)
        service = Service(places, name, request.profile, int(time.time()), frozenset([loaded.model.name]))
        guard = Guard(build(service), rules)
        shown = f"[{address}]" if ":" in address else address
        note(printable(f"Serving {name} at http://{shown}:{port} (Ctrl-C to stop)"))
        await Server(guard, places, idle=idle).serve_and_close(sockets)

    asyncio.run(run())


def _rules(
    host: str,
    api_key: list[str] | None,
    api_key_file: Path | None,
    allow_host: list[str] | None,
    allow_origin: list[str] | None,
) -> Rules:
    import ipaddress

    from deltamem_cli.commands.text_file import file_text
    from deltamem_cli.server.guard import Rules

    lines = list(api_key or [])
    if api_key_file is not None:
        lines += [line.strip() for line in file_text(api_key_file).splitlines()]
    keys = {}
    for line in filter(lambda line: line and not line.startswith("#"), lines):
        key, _, bound = line.partition("=")
        if not key:
            raise UsageError("An API key is empty: give it as KEY or KEY=PROFILE.")
        keys[key.strip()] = profile_name(bound.strip()) if bound.strip() else None
    if api_key_file is not None and not keys:
        raise UsageError(f"{api_key_file} has no API key: write one per line.")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback and not keys:
        raise UsageError(f"Everybody on the network could read your memory at {host}: add --api-key or --api-key-file.")
    for origin in allow_origin or []:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UsageError(f"{origin} is not an origin: give it as http://HOST:PORT, without a path.")
    return Rules({name.lower() for name in allow_host or []}, frozenset(allow_origin or []), keys)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text.strip())
    if not found or not int(found[1]):
        raise UsageError(f"{text} is not a time: write it as 90s, 15m or 2h.")
    return float(int(found[1]) * _SECONDS[found[2] or "s"])


def _listen(host: str, port: int) -> socket.socket:
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise DeltamemError(
            f"Can't listen on {host}:{port} ({error.strerror or error}): choose another with --port or --host."
        ) from None


def _check_installed() -> None:
    from importlib.util import find_spec

    if not (find_spec("starlette") and find_spec("uvicorn")):
        raise DeltamemError("dmem serve needs Starlette and uvicorn: pip install 'deltamem-cli[serve]'")
