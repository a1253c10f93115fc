"""GET /openapi.json: every route of the application as OpenAPI 3.1, made from the routes themselves.

Fields are told of the memory's interface. Those of OpenAI's and Ollama's are described by OpenAI and Ollama.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import deltamem_cli
from deltamem_cli.server.memory.routes import OPERATIONS, Operation

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_REPEATED = re.compile(r"^[A-Z]+ /\S*\s*")  # method and path, which stand beside it
_TAGS = (("/v1/memory/", "Memory"), ("/v1/", "OpenAI"), ("/api/", "Ollama"), ("/", "Page"))
_HIDDEN = "/v1/dmem/"  # for dmem's own commands
_PROBLEM = {
    "description": "What could not be done, in a sentence.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_COMPONENTS = {
    "schemas": {
        "Problem": {
            "type": "object",
            "properties": {
                "error": {
                    "type": "object",
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    },
                }
            },
        }
    },
    "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
}


async def openapi(request: Request) -> Response:
    """This description."""
    return JSONResponse(document(request.app.routes))


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The description of these routes."""
    known = {(operation.path, operation.method): operation for operation in OPERATIONS}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if not isinstance(route, Route) or route.path.startswith(_HIDDEN):
            continue
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            path = _PARAMETER.sub(r"{\1}", route.path)
            operation = known.get((route.path, method))
            paths.setdefault(path, {})[method.lower()] = _described(route, method, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dmem serve",
            "version": deltamem_cli.__version__,
            "description": "Conversations with a memory. /v1/memory/ is the memory's own interface; the others are those "
            "of OpenAI and Ollama, as these describe them.",
        },
        "paths": paths,
        "components": _COMPONENTS,
        "security": [{}, {"key": []}],
    }


def _described(route: Route, method: str, operation: Operation | None) -> dict[str, Any]:
    said = (route.endpoint.__doc__ or "").strip().partition("\n")[0]
    start, tag = next(pair for pair in _TAGS if route.path.startswith(pair[0]))
    summary = _REPEATED.sub("", said) or f"{tag}'s {route.path.removeprefix(start)}"
    gives = operation.gives if operation else ["application/json"]
    content: dict[str, Any] = {kind: {"schema": {"type": "object"}} if kind.endswith("json") else {} for kind in gives}
    described: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", _PARAMETER.sub(r"\1", route.path))]),
        "summary": f"{summary[0].upper()}{summary[1:]}",
        "tags": [tag],
        "responses": {"200": {"description": "Done.", "content": content}, "default": _PROBLEM},
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    if operation and operation.in_query:
        parameters += [
            {
                "name": field.name,
                "in": "query",
                "description": field.help,
                "required": field.required,
                "schema": field.schema(),
            }
            for field in operation.fields
        ]
    if parameters:
        described["parameters"] = parameters
    if method == "POST":
        described["requestBody"] = {"required": True, "content": _body(operation)}
    return described


def _body(operation: Operation | None) -> dict[str, Any]:
    if operation is None:
        return {"application/json": {"schema": {"type": "object"}}}
    if operation.in_query:
        return {operation.takes: {}}
    required = [field.name for field in operation.fields if field.required]
    schema = {
        "type": "object",
        "properties": {field.name: {**field.schema(), "description": field.help} for field in operation.fields},
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }
    return {operation.takes: {"schema": schema}}


ROUTES = [Route("/openapi.json", openapi)]
