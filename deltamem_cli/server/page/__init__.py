"""GET /: the page, for a browser; its files beside it. Nothing in them comes from elsewhere, and nothing may."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from deltamem_cli.server.ollama import models

FOLDER = Path(__file__).parent
_TYPES = {"style.css": "text/css", "script.js": "text/javascript"}
_HEADERS = {
    # blob: pictures of a memory, which are fetched with a key
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


async def root(request: Request) -> Response:
    """The page for a browser; for others the line that Ollama's clients look for."""
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(FOLDER / "index.html", media_type="text/html", headers=_HEADERS)
    return await models.is_running(request)


async def file(request: Request) -> Response:
    """A file of the page."""
    name = request.path_params["name"]
    if name not in _TYPES:
        raise HTTPException(404)
    return FileResponse(FOLDER / name, media_type=_TYPES[name], headers=_HEADERS)


ROUTES = [Route("/", root), Route("/page/{name}", file)]
