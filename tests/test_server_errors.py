"""Errors of HTTP itself: each in the form of the interface that its path belongs to, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="Starlette's test client needs httpx")

from starlette.testclient import TestClient

from deltamem_cli.server.app import build
from deltamem_cli.server.guard import Guard, Rules
from deltamem_cli.server.requests import body

KEY = {"Authorization": "Bearer mine"}
PAGE = {**KEY, "Origin": "http://app.example"}


@pytest.fixture
def http() -> Iterator[TestClient]:
    """Of an application that has no model: nothing here comes as far as that."""
    app = build(cast("Any", None))
    rules = Rules({"testserver"}, ["http://app.example"], {"mine": None})
    with TestClient(Guard(app, rules), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "method, path, headers, data, status, words",
    [
        ("GET", "{}/nothing", KEY, b"", 404, "/nothing: see /openapi.json"),
        ("GET", "{}", KEY, b"", 404, ": see /openapi.json"),
        ("POST", "{}/dmem/ask", KEY, b"{}", 404, "/dmem/ask: see /openapi.json"),
        ("GET", "{}/page/no", KEY, b"", 404, "/page/no: see /openapi.json"),
        ("PUT", "{}/chat/completions", KEY, b"", 405, "use POST"),
        ("GET", "{}/nothing", {}, b"", 401, "An API key is needed: send one as Authorization: Bearer KEY."),
        ("GET", "{}/nothing", {"X-Api-Key": "his"}, b"", 401, "This API key is not one of the server's"),
        ("GET", "{}/nothing", {**KEY, "Host": "evil"}, b"", 421, "The host evil is not this server's"),
        ("GET", "{}/nothing", {**KEY, "Host": "["}, b"", 421, "The host [ is not this server's"),
        ("GET", "{}/nothing", {**KEY, "Host": "evil/api/x?"}, b"", 421, "is not this server's"),
        ("GET", "{}/nothing", {**KEY, "Origin": "http://evil"}, b"", 403, "allow them with --allow-origin"),
        ("POST", "{}/chat/completions", KEY, b"{", 400, "The body is not JSON"),
        ("POST", "{}/chat/completions", KEY, b"\xff", 400, "The body is not UTF-8: send JSON in UTF-8."),
        ("POST", "{}/chat/completions", KEY, b"[]", 400, "The body must be a JSON object."),
        ("POST", "{}/chat/completions", KEY, b" " * 1001, 413, "send less at once"),
        ("POST", "{}/chat/completions", {**KEY, "Content-Length": "9" * 30}, b"", 413, "send less at once"),
    ],
)
@pytest.mark.parametrize("prefix", ["/v1", "/api", ""])
def test_an_error_has_the_form_of_the_interface_at_its_path(
    http: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
    method: str,
    path: str,
    headers: dict[str, str],
    data: bytes,
    status: int,
    words: str,
) -> None:
    monkeypatch.setattr(body, "LARGEST_BODY", 1000)
    path = path.format(prefix)
    if "/chat" in path:
        path = {"": "/v1/responses", "/api": "/api/chat"}.get(prefix, path)
    done = http.request(method, path or "/nothing", headers=headers, content=data)
    assert done.status_code == status, done.text
    error = done.json()["error"]
    if prefix == "/api":
        assert words in error
    else:
        assert words in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_what_is_not_allowed_names_what_is(http: TestClient) -> None:
    for path, allowed in (("/v1/models", {"GET", "HEAD"}), ("/api/pull", {"POST", "DELETE", "HEAD"})):
        done = http.patch(path, headers=KEY)
        assert set(done.headers["allow"].split(", ")) == allowed


def test_a_page_that_may_ask_can_read_what_went_wrong(http: TestClient) -> None:
    for headers in (PAGE, {**PAGE, "Authorization": "Bearer his"}):
        done = http.get("/v1/nothing", headers=headers)
        assert done.status_code in (404, 401)
        assert done.headers["access-control-allow-origin"] == "http://app.example"
