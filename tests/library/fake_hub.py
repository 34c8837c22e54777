"""A hub of one's own: HTTP servers on the loopback interface that speak the routes huggingface_hub uses.

Files come as from the Hub: a small one through a redirect to another address of the same server, a large one through a
redirect to a server of another origin, which must not be shown the access token. Repositories are built from bytes;
faults are switched on by a test: cut connections, servers without ranges, wrong bytes, refusals, an answer that never
comes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_FROM = 1000  # bytes from which a file is a large one, with a SHA-256


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class FakeRepo:
    """revisions: files by name, by revision. status: an HTTP status with the Hub's error code for everything."""

    id: str
    revisions: dict[str, dict[str, bytes]]
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    downloads: int = 0
    gated: bool | str = False
    status: tuple[int, str] | None = None
    siblings: list[dict[str, Any]] | None = None  # in place of what the files say

    def commit(self, revision: str) -> str:
        return hashlib.sha1(f"{self.id} {revision} {sorted(self.revisions[revision].items())}".encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """The revision that a name or a commit means."""
        if revision in self.revisions:
            return revision
        return next((name for name in self.revisions if self.commit(name) == revision), None)

    def described(self, revision: str) -> list[dict[str, Any]]:
        if self.siblings is not None:
            return self.siblings
        found = []
        for name, data in self.revisions[revision].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if len(data) >= LFS_FROM:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            found.append(entry)
        return found


class FakeHub:
    """Counts requests in `asked`, keeps the Range of every download in `ranges`, and the tokens it was shown."""

    def __init__(self) -> None:
        self.repos: dict[str, FakeRepo] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[tuple[str, str | None]] = []
        self.unknown: list[str] = []
        self.cut_after: dict[str, list[int]] = {}  # file -> bytes after which its next connections break
        self.wrong: dict[str, bytes] = {}  # file -> bytes that are sent in place of it
        self.no_ranges = False
        self.stall = threading.Event()  # set: file bodies stop in the middle until it is cleared
        self.stalled = threading.Event()
        self.stalls = ""  # the only file that stops, "" for any large one
        self.authorization: list[str | None] = []  # with every question to the Hub itself
        self.shown_to_storage: list[str | None] = []  # with every question to the server of the large files
        self._server, self._storage = self._start(_Handler), self._start(_Storage)

    def _start(self, kind: type[_Handler]) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", 0), type("Handler", (kind,), {"hub": self}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage_url(self) -> str:
        return f"http://127.0.0.1:{self._storage.server_address[1]}"

    def add(self, repo: FakeRepo) -> FakeRepo:
        self.repos[repo.id] = repo
        return repo

    def close(self) -> None:
        self.stall.clear()
        for server in (self._server, self._storage):
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may be killed in the middle of a file; anything else is told as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is its own."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub = self.hub
        hub.authorization.append(self.headers.get("Authorization"))
        pieces = path.strip("/").split("/")
        if path == "/api/models":
            hub.asked["search"] += 1
            self._search(query)
        elif pieces[:2] == ["api", "models"] and len(pieces) >= 4:
            self._api("/".join(pieces[2:4]), pieces[4:])
        elif len(pieces) >= 5 and pieces[2] == "resolve":
            self._resolve("/".join(pieces[:2]), pieces[3], "/".join(pieces[4:]))
        elif pieces[:3] == ["api", "resolve-cache", "models"] and len(pieces) >= 7:
            self._send("/".join(pieces[3:5]), pieces[5], "/".join(pieces[6:]))
        elif path == "/api/agent-harnesses":  # the library asks for this list to name itself
            self._json({})
        else:
            hub.unknown.append(self.path)
            self._refuse(404, "")

    def _search(self, query: dict[str, list[str]]) -> None:
        words = query.get("search", [""])[0].lower().split()
        found = []
        for repo in self.hub.repos.values():
            if all(word in repo.id.lower() for word in words):
                entry: dict[str, Any] = {
                    "id": repo.id,
                    "tags": repo.tags,
                    "config": repo.config,
                    "downloads": repo.downloads,
                    "likes": 3,
                    "gated": repo.gated,
                    "lastModified": "2026-01-02T03:04:05.000Z",
                }
                if repo.parameters:
                    entry["safetensors"] = {"parameters": repo.parameters, "total": sum(repo.parameters.values())}
                found.append(entry)
        self._json(sorted(found, key=lambda entry: -entry["downloads"]))

    def _api(self, name: str, rest: list[str]) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._refuse(401, "RepoNotFound")
        if repo.status is not None:
            return self._refuse(*repo.status)
        if rest == ["refs"]:
            self.hub.asked["refs"] += 1
            branches = [
                {"name": revision, "ref": f"refs/heads/{revision}", "targetCommit": repo.commit(revision)}
                for revision in repo.revisions
            ]
            return self._json({"branches": branches, "converts": [], "tags": []})
        revision = "/".join(rest[1:]) if rest[:1] == ["revision"] else "main"
        found = repo.find(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        self.hub.asked["info"] += 1
        return self._json({"id": repo.id, "sha": repo.commit(found), "siblings": repo.described(found), "tags": []})

    def _found(self, name: str, revision: str, file: str) -> bytes | None:
        """The bytes of a file; None: it was refused."""
        repo = self.hub.repos.get(name)
        found = repo.find(revision) if repo is not None else None
        if repo is None or found is None or file not in repo.revisions[found]:
            self._refuse(404, "EntryNotFound")
        elif repo.status is not None:
            self._refuse(*repo.status)
        else:
            return repo.revisions[found][file]
        return None

    def _resolve(self, name: str, revision: str, file: str) -> None:
        """Where a file really is."""
        data = self._found(name, revision, file)
        if data is None:
            return
        path = quote(f"{name}/{revision}/{file}")
        large = len(data) >= LFS_FROM
        self.send_response(302 if large else 307)
        self.send_header("Location", f"{self.hub.storage_url}/{path}" if large else f"/api/resolve-cache/models/{path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, revision: str, file: str) -> None:
        hub = self.hub
        data = self._found(name, revision, file)
        if data is None:
            return
        data = hub.wrong.get(file, data)
        asked = self.headers.get("Range")
        hub.ranges.append((file, asked))
        start = 0
        if asked is not None and not hub.no_ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        cuts = hub.cut_after.get(file)
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        stalls = hub.stall.is_set() and len(body) >= LFS_FROM and hub.stalls in ("", file)
        half = len(body) // 2 if stalls else len(body)
        self.wfile.write(body[:half])
        self.wfile.flush()
        if half < len(body):
            hub.stalled.set()
            while hub.stall.is_set():
                if threading.Event().wait(0.01):
                    break
            self.wfile.write(body[half:])
        return

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        body = b'{"error": "\x1b[2Jno"}'
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Storage(_Handler):
    """The server of the large files."""

    def do_GET(self) -> None:
        self.hub.shown_to_storage.append(self.headers.get("Authorization"))
        owner, name, revision, *file = unquote(urlsplit(self.path).path).strip("/").split("/")
        self._send(f"{owner}/{name}", revision, "/".join(file))
