"""The application: all routes, and errors in each interface's own words."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deltamem_cli.errors import DeltamemError
from deltamem_cli.server import memory, ollama, openai, openapi, page
from deltamem_cli.server.problems import Problem, invalid, of_error, problem_response
from deltamem_cli.server.requests.service import Service
from deltamem_cli.server.same_user import route


def build(service: Service) -> Starlette:
    """The ASGI application that serves `service`."""
    app = Starlette(
        routes=[*openai.ROUTES, *ollama.ROUTES, *memory.ROUTES, *page.ROUTES, *openapi.ROUTES, *route.ROUTES],
        exception_handlers={
            Problem: _problem,
            DeltamemError: _error,
            HTTPException: _http,
            RecursionError: _nested,
            Exception: _unexpected,
        },
    )
    app.state.service = service
    return app


async def _problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_response(request.scope["path"], problem)


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeltamemError)
    return problem_response(request.scope["path"], of_error(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, headers = request.scope["path"], error.headers or {}
    allowed = headers.get("Allow", "another method")
    sentence = {
        404: f"There is nothing at {path[:200]}: see /openapi.json for what there is.",
        405: f"{request.method[:20]} is not allowed at {path[:200]}: use {allowed}.",
    }
    problem = Problem(error.status_code, sentence.get(error.status_code, str(error.detail)))
    response = problem_response(path, problem)
    response.headers.update(headers)
    return response


async def _nested(request: Request, error: Exception) -> Response:
    return problem_response(request.scope["path"], invalid("The request is nested too deeply."))


async def _unexpected(request: Request, error: Exception) -> Response:
    return problem_response(request.scope["path"], Problem(500, f"Unexpected error ({type(error).__name__})."))
