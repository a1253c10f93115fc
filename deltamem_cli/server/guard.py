"""Who may ask: hosts, origins and keys, before any route sees a request. Logs nothing.

A page in a browser can send requests to this machine, also under a name of its own that leads here (DNS rebinding). So the
Host header must be one of a list, and a request that tells its Origin must come from the server's own page or an allowed one.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltamem_cli.server.problems import Problem, problem_response

SAME_USER = "same_user"  # in a request's state: it came by the Unix socket
# What a page may send from elsewhere; the last are OpenAI's SDK's.
_HEADERS = re.compile(
    r"(?:authorization|content-type|accept|openai-[\w-]+|session_id|x-(?:dmem|openwebui|session|stainless|api)-[\w-]+)"
)
_OPEN = re.compile(r"/(?:page/[\w.-]+)?")  # the page itself asks for the key


@dataclass(frozen=True)
class Rules:
    """hosts: as the Host header has them. origins: of pages elsewhere. keys: each with the profile it is bound to, if any."""

    hosts: Collection[str]
    origins: Collection[str] = ()
    keys: Mapping[str, str | None] = field(default_factory=dict)


class Guard:
    """Around an application. Who comes by the Unix socket is the same user, whom its folder has let in."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self.n_running = 0  # requests
        self.last = time.monotonic()  # when one last came or was done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        self.n_running, self.last = self.n_running + 1, time.monotonic()
        try:
            await self._let_through(scope, receive, send)
        finally:
            self.n_running, self.last = self.n_running - 1, time.monotonic()

    async def _let_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("state", {}).get(SAME_USER):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = ", ".join(headers.getlist("origin")) if "origin" in headers else None
        try:
            self._check_host(headers)
            if self._from_elsewhere(origin, headers["host"]):
                if scope["method"] == "OPTIONS":
                    await self._preflight(headers, origin or "")(scope, receive, send)
                    return
                send = _allowing(origin or "", send)  # from here on the page may also read what went wrong
            scope.setdefault("state", {})["profile"] = self._profile(scope, headers)
        except Problem as problem:
            await problem_response(scope["path"], problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._rules.hosts:
            said = ", ".join(hosts)[:100] or "none"
            raise Problem(421, f"The host {said} is not this server's: allow it with --allow-host.", code="wrong_host")

    def _from_elsewhere(self, origin: str | None, host: str) -> bool:
        """Whether a page of another origin asks. Raises Problem for one that may not."""
        if origin is None or origin in (f"http://{host}", f"https://{host}"):
            return False
        if origin not in self._rules.origins:
            raise Problem(
                403, f"Pages of {origin[:100]} may not ask: allow them with --allow-origin.", code="wrong_origin"
            )
        return True

    def _preflight(self, headers: Headers, origin: str) -> Response:
        asked = [name.strip() for name in headers.get("access-control-request-headers", "").lower().split(",")]
        allowed = [name for name in asked if _HEADERS.fullmatch(name)]
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
                "Access-Control-Allow-Headers": ", ".join(allowed),
                "Access-Control-Max-Age": "600",
                "Vary": "Origin",
            },
        )

    def _profile(self, scope: Scope, headers: Headers) -> str | None:
        """The profile that the request's key is bound to, if any. Raises Problem for a key that is none."""
        if not self._rules.keys:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = (key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        found = None
        for known, profile in self._rules.keys.items():  # all of them: the time taken must not tell how near a guess is
            if hmac.compare_digest(known.encode(), given):
                found = (profile,)
        if found is None:
            if scope["method"] == "GET" and _OPEN.fullmatch(scope["path"]):
                return None
            what = "This API key is not one of the server's" if given else "An API key is needed"
            raise Problem(401, f"{what}: send one as Authorization: Bearer KEY.", code="invalid_api_key")
        return found[0]


def _allowing(origin: str, send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(b"access-control-allow-origin", origin.encode("latin-1", "replace")), (b"vary", b"Origin")]
            more.append((b"access-control-expose-headers", b"X-Dmem-Conversation"))
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sent


def hosts_of(host: str, port: int) -> set[str]:
    """What a client's Host header may say of a server that listens there: any of this machine's own names for loopback."""
    loopback = ("localhost", "127.0.0.1", "[::1]")
    shown = f"[{host}]" if ":" in host else host
    names = {*loopback, shown.lower()}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())
