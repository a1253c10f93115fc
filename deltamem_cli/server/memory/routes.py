"""The memory as an interface, under /v1/memory/: the words of `dmem memory` and `dmem log`, with the same answers."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltamem_cli.pictures.shapes import Picture
from deltamem_cli.pictures.svg import svg
from deltamem_cli.server.memory import arguments, changes, stored
from deltamem_cli.server.memory.arguments import Field
from deltamem_cli.server.problems import invalid
from deltamem_cli.server.requests.service import bound_profile, service
from deltamem_cli.session import documents, looking
from deltamem_cli.store import bundle, conversations, portable, profiles, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Conversation

Said = Mapping[str, Any]
SVG, FILE = "image/svg+xml", "application/zip"
_PRIVATE = {"Cache-Control": "no-store"}


async def list_(request: Request, said: Said) -> Response:
    """List the conversations, latest first, and the profiles."""
    bound = bound_profile(request)
    name = stored.profile_name(request, said) if said["profile"] or bound else None

    def work(store: Store) -> dict[str, Any]:
        profile = profiles.get(store, name) if name and (bound is None or profiles.find(store, name)) else None
        found = conversations.all_of(store, profile) if profile or not name else []
        return {
            "profile": bound or service(request).profile,
            "profiles": [bound] if bound else [one.name for one in profiles.all_of(store)],
            "conversations": [documents.facts(one) for one in found[: said["limit"]]],
            "more": max(0, len(found) - said["limit"]),
        }

    return _json(await stored.look(request, work))


async def show(request: Request, said: Said) -> Response:
    """Show the transcript of a conversation."""

    def work(store: Store, found: Conversation) -> dict[str, Any]:
        with store.reading():
            every = (
                turns.all_of(store, found.id) if said["turn"] is None else [turns.get(store, found.id, said["turn"])]
            )
            return documents.transcript(found, every)

    return _json(await stored.read(request, said, work))


async def inspect(request: Request, said: Said) -> Response:
    """Inspect the memory: every layer's numbers, or with Accept: image/svg+xml a picture of them and of their course."""
    drawn = _wants_picture(request)
    look = await stored.read(request, said, lambda store, found: looking.inspect(store, found, course=drawn))
    if drawn:
        return _picture(look.picture(said["columns"]))
    return _json(documents.inspected(look, looking.only_layer(look.layers, said["layer"])))


async def history(request: Request, said: Said) -> Response:
    """List the turns and how each one changed the memory."""
    return _json(
        await stored.read(request, said, lambda store, found: documents.history(found, *looking.history(store, found)))
    )


async def diff(request: Request, said: Said) -> Response:
    """Show how the memory changed from one turn to another, in numbers or with Accept: image/svg+xml as a picture."""
    found = await stored.read(
        request, said, lambda store, found: looking.difference(store, found, said["before"], said["after"])
    )
    if _wants_picture(request):
        return _picture(found.picture(said["columns"]))
    return _json(documents.difference(found, looking.only_layer(found.layers, said["layer"])))


async def export(request: Request, said: Said) -> Response:
    """Export a conversation's memory as a file, which import takes."""

    def work(store: Store, found: Conversation) -> tuple[str, bytes]:
        taken = bundle.read(store, found, transcript=said["transcript"])
        if not taken.turns and taken.initial is None:
            raise invalid(f"Conversation {found.id} has no turns and no memory, so there is nothing to export.")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory.dmem"
            portable.save(path, taken)
            return found.id, path.read_bytes()

    id_, data = await stored.read(request, said, work)
    return Response(
        data, media_type=FILE, headers={**_PRIVATE, "Content-Disposition": f'attachment; filename="{id_}.dmem"'}
    )


def _changing(change: Callable[[Request, Said], Awaitable[dict[str, Any]]]) -> Handler:
    async def handle(request: Request, said: Said) -> Response:
        return _json(await change(request, said))

    handle.__doc__ = change.__doc__
    return handle


def _json(document: dict[str, Any]) -> Response:
    return JSONResponse(document, headers=_PRIVATE)


def _wants_picture(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return request.url.path.endswith(".svg") or (SVG in accepted and "application/json" not in accepted)


def _picture(picture: Picture) -> Response:
    # opened by itself in a browser, a picture is a page: one that may do nothing
    safe = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Vary": "Accept"}
    return Response(svg(picture), media_type=SVG, headers={**_PRIVATE, **safe})


Handler = Callable[[Request, Said], Awaitable[Response]]


@dataclass(frozen=True)
class Operation:
    """A word of the interface. fields: of the query, or of a POST's body unless that is a file. gives: media types."""

    word: str
    handle: Handler
    fields: Sequence[Field]
    method: str = "GET"
    takes: str = "application/json"
    gives: Sequence[str] = ("application/json",)

    @property
    def path(self) -> str:
        """Of its route."""
        return f"/v1/memory/{self.word}"

    @property
    def in_query(self) -> bool:
        """Whether the fields stand there."""
        return self.method == "GET" or self.takes != "application/json"

    def route(self) -> Route:
        """What Starlette serves it by."""

        async def answer(request: Request) -> Response:
            return await self.handle(request, await arguments.read(request, self.fields, in_query=self.in_query))

        answer.__doc__ = self.handle.__doc__
        return Route(self.path, answer, methods=[self.method])


_CONVERSATION = Field(
    "conversation", "string", "Its id, a part of that, or the client's own name. Default: the profile's last."
)
_PROFILE = Field("profile", "string", "Default: the API key's, else the server's.")
_WHICH = (_CONVERSATION, _PROFILE)
_EXPECT = Field(
    "expect",
    "texts",
    "When the turns that are meant were created, as history tells it, in their order: 409 if they are others by now.",
)
_DRY_RUN = Field("dry_run", "boolean", "Only say what would be done.", False)
_LAYER = Field("layer", "integer", "Only this layer's numbers.")
_COLUMNS = Field("columns", "integer", "Layers beside each other in a picture.", 6, least=1)
_DIFF = (
    Field("before", "integer", "First turn; 0 is the beginning.", required=True),
    Field("after", "integer", "Second turn.", required=True),
    *_WHICH,
    _LAYER,
    _COLUMNS,
)
_TEXTS = Field("transcript", "boolean", "Include the text.", False)

OPERATIONS = (
    Operation("list", list_, (_PROFILE, Field("limit", "integer", "Most conversations to list.", 200, least=1))),
    Operation("show", show, (*_WHICH, Field("turn", "integer", "Only this turn.", least=1))),
    Operation("inspect", inspect, (*_WHICH, _LAYER, _COLUMNS), gives=("application/json", SVG)),
    Operation("inspect.svg", inspect, (*_WHICH, _COLUMNS), gives=(SVG,)),
    Operation("history", history, _WHICH),
    Operation("diff", diff, _DIFF, gives=("application/json", SVG)),
    Operation("diff.svg", diff, tuple(field for field in _DIFF if field is not _LAYER), gives=(SVG,)),
    Operation("export", export, (*_WHICH, _TEXTS), gives=(FILE,)),
    Operation("import", _changing(changes.import_), (_PROFILE, _DRY_RUN), "POST", takes="application/octet-stream"),
    Operation(
        "undo",
        _changing(changes.undo),
        (*_WHICH, Field("turns", "integer", "How many.", 1, least=1), _EXPECT, _DRY_RUN),
        "POST",
    ),
    Operation(
        "forget",
        _changing(changes.forget),
        (*_WHICH, Field("turns", "array", "Numbers of the turns.", required=True, least=1), _EXPECT, _DRY_RUN),
        "POST",
    ),
    Operation(
        "reset",
        _changing(changes.reset),
        (
            *_WHICH,
            Field("transcript", "boolean", "Delete the turns and their text too.", False),
            Field("all", "boolean", "Every conversation of the profile.", False),
            _DRY_RUN,
        ),
        "POST",
    ),
    Operation(
        "copy",
        _changing(changes.copy),
        (
            *_WHICH,
            Field("to", "string", "Target profile, or NEW for the same one.", required=True),
            Field("at", "integer", "Branch after this turn. Default: the last.", least=1),
            Field("state_only", "boolean", "Copy the memory without the turns.", False),
            _DRY_RUN,
        ),
        "POST",
    ),
    Operation("scrub", _changing(changes.scrub), (), "POST"),
    Operation(
        "probe",
        _changing(changes.probe),
        (
            *_WHICH,
            Field("question", "string", "What to ask the memory.", required=True),
            Field("options", "object", "How the reply is drawn, such as temperature and max_tokens."),
        ),
        "POST",
    ),
    Operation(
        "remember",
        _changing(changes.remember),
        (
            *_WHICH,
            Field("text", "string", "What to remember.", required=True),
            Field("new", "boolean", "Start a new conversation.", False),
            Field("log", "boolean", "Save the text too; false: the memory alone.", True),
        ),
        "POST",
    ),
    Operation(
        "rename",
        _changing(changes.rename),
        (*_WHICH, Field("title", "string", "The title; empty: the first message is its heading again.", required=True)),
        "POST",
    ),
    Operation(
        "delete",
        _changing(changes.delete),
        (
            Field("conversation", "string", "Its id, a part of that, or the client's own name.", required=True),
            _PROFILE,
            _DRY_RUN,
        ),
        "POST",
    ),
)

ROUTES = [operation.route() for operation in OPERATIONS]
