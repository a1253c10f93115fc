"""What Ollama's clients ask of the models and of the server itself."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deltamem_cli import __version__
from deltamem_cli.errors import DeltamemError
from deltamem_cli.models.facts import Facts, parts, read_facts
from deltamem_cli.server.problems import Problem, invalid
from deltamem_cli.server.requests.body import read_json
from deltamem_cli.server.requests.service import Service, model_names, service
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.request import chosen_template

# Clients read from it what they can ask for: this is the one whose interface is followed here.
_OLLAMA_VERSION = "0.12.0"
_NEVER = "9999-12-31T23:59:59Z"


async def tags(request: Request) -> Response:
    """GET /api/tags: the model, and for each profile the same with its memory."""
    shared = service(request)
    described = await shared.places.run(lambda: _described(shared))
    return JSONResponse({"models": [described | _named(name) for name in await model_names(request)]})


async def running(request: Request) -> Response:
    """GET /api/ps: there is one model, and it is loaded as long as the server runs."""
    shared = service(request)
    described = await shared.places.run(lambda: _described(shared))
    length = shared.places.loaded.engine.n_ctx_seq
    loaded = {"expires_at": _NEVER, "size_vram": 0, "context_length": length}
    return JSONResponse({"models": [described | _named(shared.model) | loaded]})


async def show(request: Request) -> Response:
    """POST /api/show"""
    body = await read_json(request)
    name = body.get("model") or body.get("name")
    if not name:
        raise invalid("model is missing.", "model")
    shared = service(request)
    shared.named(name)

    def read() -> dict[str, Any]:
        described, facts, model = _described(shared), _facts(shared), shared.places.loaded.engine.model
        prompt = Prompt(model, None, chosen_template(shared.places.request))
        return {
            "modelfile": "",
            "license": facts.license or "",
            "parameters": "\n".join(f"{key} {value}" for key, value in shared.places.loaded.options.items()),
            "template": prompt.used.source,
            "details": described["details"],
            "model_info": {
                "general.architecture": facts.architecture,
                "general.basename": facts.name,
                "general.parameter_count": facts.parameters,
                f"{facts.architecture}.context_length": facts.context_length,
                f"{facts.architecture}.embedding_length": facts.embedding_length,
                f"{facts.architecture}.block_count": facts.layers,
            },
            "capabilities": ["completion", *_abilities(prompt)],
            "modified_at": described["modified_at"],
        }

    return JSONResponse(await shared.places.run(read))


def _abilities(prompt: Prompt) -> list[str]:
    found = ["thinking"] if prompt.used.can_switch_thinking else []
    try:
        prompt.changed(tools=[])
    except DeltamemError:
        return found
    return ["tools", *found]


def _facts(shared: Service) -> Facts:
    return read_facts(parts(shared.places.loaded.engine.model.path))


def _described(shared: Service) -> dict[str, Any]:
    """In a thread."""
    files, facts = parts(shared.places.loaded.engine.model.path), _facts(shared)
    changed = max(file.stat().st_mtime for file in files)
    return {
        "modified_at": datetime.fromtimestamp(changed, timezone.utc).isoformat(),
        "size": sum(file.stat().st_size for file in files),
        "digest": shared.places.loaded.model.fingerprint,
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": facts.architecture,
            "families": [facts.architecture],
            "parameter_size": _size(facts.parameters),
            "quantization_level": facts.quantization,
        },
    }


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


def _named(name: str) -> dict[str, str]:
    return {"name": f"{name}:latest", "model": f"{name}:latest"}


async def version(request: Request) -> Response:
    """GET /api/version"""
    return JSONResponse({"version": _OLLAMA_VERSION, "dmem": __version__})


async def is_running(request: Request) -> Response:
    """GET / of what is no browser."""
    return PlainTextResponse("Ollama is running")


async def unsupported(request: Request) -> Response:
    """What changes Ollama's models, and embeddings."""
    what = request.url.path.removeprefix("/api/").partition("/")[0]
    raise Problem(501, f"{what} is not supported here: this server has the one model that it was started with.")


ROUTES = [
    Route("/api/tags", tags),
    Route("/api/ps", running),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/version", version),
    *(
        Route(f"/api/{what}", unsupported, methods=["POST", "DELETE", "HEAD"])
        for what in ("pull", "push", "create", "copy", "delete", "embed", "embeddings", "blobs/{digest}")
    ),
]
