"""A Hugging Face hub on this machine, as far as downloads need it: listings, redirects to storage, ranges, checksums.

Large files lie behind a redirect to /storage, as the hub's do; their resolve answers name a Xet hash too, which a
client may use and must not need.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 4096  # from this size on a file lies in the large file storage


@dataclass
class HubFile:
    content: bytes
    served: bytes | None = None  # what is sent in its place
    stop_after: int | None = None  # the first answer ends after so many bytes
    stop: str = "drop"  # how: drop (the connection), stall (until the server ends)
    status: int | None = None  # in place of the content
    status_after_stop: int | None = None  # of what is asked after an answer that ended early
    listed: dict[str, Any] = field(default_factory=dict)  # what the listing says of it in place of the truth
    headers: dict[str, str] = field(default_factory=dict)  # the same of its own answer

    @property
    def large(self) -> bool:
        return len(self.content) >= LARGE

    @property
    def etag(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    files: dict[str, HubFile]
    license: str | None = "apache-2.0"
    gated: bool = False
    token: str | None = None  # the one that opens a gated repository
    commit: str | None = None  # in place of the true one


@dataclass
class Hub:
    """repos by their name; asked: every request as (method, path, Range)."""

    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], **settings: Any) -> Repo:
        self.repos[name] = Repo({file: HubFile(content) for file, content in files.items()}, **settings)
        return self.repos[name]

    def ranges(self) -> list[str | None]:
        """The Range of every request for content in the large file storage."""
        return [range for method, path, range in self.asked if method == "GET" and path.startswith("/storage/")]


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    hub.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[0] == "datasets":  # their names stand for themselves here
            parts = parts[1:]
        if parts[:2] in (["api", "models"], ["api", "datasets"]):
            self._listing("/".join(parts[2:4]))
        elif parts[0] == "storage":
            self._content(self.hub.repos["/".join(parts[1:3])].files["/".join(parts[3:])])
        elif parts[2:3] == ["resolve"]:
            self._resolve("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._send(200, b"<html>a page</html>")

    def _listing(self, name: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        siblings: list[dict[str, Any]] = []
        for file, one in repo.files.items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(one.content), "blobId": "0" * 40}
            if one.large:
                entry["lfs"] = {"sha256": one.etag, "size": len(one.content), "pointerSize": 130}
            else:
                entry["blobId"] = one.etag
            siblings.append(entry | one.listed)
        document = {
            "id": name,
            "sha": repo.commit or _commit(name),
            "siblings": siblings,
            "gated": "auto" if repo.gated else False,
            "cardData": {"license": repo.license} if repo.license else None,
        }
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, file: str) -> None:
        repo = self.hub.repos[name]
        if repo.gated and (repo.token is None or self.headers.get("Authorization") != f"Bearer {repo.token}"):
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return
        one = repo.files.get(file)
        if one is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": _commit(name), "ETag": f'"{one.etag}"'} | one.headers
        if not one.large:
            self._send(200, one.content if one.served is None else one.served, headers)
            return
        headers |= {
            "X-Linked-Size": str(len(one.content)),
            "X-Linked-ETag": f'"{one.etag}"',
            "X-Xet-Hash": "f" * 64,
            "X-Xet-Refresh-Route": f"{self.hub.url}/xet-token",
            # another host, as the hub's storage is
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{name}/{file}",
        } | one.headers
        self._send(302, b"", headers)

    def _content(self, file: HubFile) -> None:
        if file.status is not None:
            self._send(file.status, b"")
            return
        content, start = file.content if file.served is None else file.served, 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop, file.stop_after = file.stop_after, None
        if stop is None:
            self._send(206 if start else 200, content[start:], headers)
            return
        self._head(206 if start else 200, len(content) - start, headers)
        self.wfile.write(content[start : start + stop])
        self.wfile.flush()
        if file.stop == "stall":
            self.hub.closing.wait()
        file.status = file.status_after_stop
        self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _commit(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()
