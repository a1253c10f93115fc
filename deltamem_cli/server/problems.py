"""What goes wrong with a request: a status and a sentence, spelled out as the interface at its path does."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from deltamem_cli.engine import Cancelled, EngineError
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.store.errors import ConversationBusy, FingerprintMismatch, InvalidName, NotFound, StoreError


class Problem(Exception):
    """A request that can't be done. status: of HTTP. kind, code: OpenAI's words for it. param: which part of the request."""

    def __init__(self, status: int, sentence: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.code, self.param = code, param

    @property
    def kind(self) -> str:
        """OpenAI's type of error."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def invalid(sentence: str, param: str | None = None) -> Problem:
    """For a request that says what makes no sense."""
    return Problem(400, sentence, param=param)


def of_error(error: DeltamemError) -> Problem:
    """What an error from below means for who asked."""
    sentence = str(error)
    if isinstance(error, NotFound):
        return Problem(404, sentence, code="not_found")
    if isinstance(error, ConversationBusy):
        return Problem(409, sentence, code="conversation_busy")
    if isinstance(error, FingerprintMismatch):
        return Problem(409, sentence, code="memory_of_another_model")
    if isinstance(error, InvalidName):
        return Problem(400, f"{sentence}.", code="invalid_name", param="profile")
    if isinstance(error, StoreError):
        return Problem(507 if "full" in sentence else 500, sentence, code="not_saved")
    if isinstance(error, Cancelled):
        return Problem(503, "The server is ending, so this was not answered: ask again.", code="server_ending")
    if isinstance(error, (UsageError, EngineError)):
        return Problem(400, sentence)
    return Problem(400, sentence)


def error_document(problem: Problem) -> dict[str, Any]:
    """An error as OpenAI spells it out."""
    said = {"message": problem.sentence, "type": problem.kind, "param": problem.param, "code": problem.code}
    return {"error": said}


def problem_response(path: str, problem: Problem) -> Response:
    """The answer to a request that can't be done, as the interface at `path` spells it out.

    path: of the ASGI scope. A URL would be made with the Host header, which may be one that makes none.
    """
    document = error_document(problem)
    if path == "/api" or path.startswith("/api/"):  # Ollama's
        document = {"error": problem.sentence}
    more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "5"}}
    return JSONResponse(document, problem.status, headers=more.get(problem.status))
