"""A hub of one's own: HTTP servers on the loopback interface that speak the routes huggingface_hub uses.

It answers as the Hub does: fields only where they are asked for, sizes and hashes of files only with `blobs`, results
page by page, a repository that was renamed by a redirect, files of a gated one to those alone who have access. A small
file comes through a redirect to another address of the same server, a large one through a redirect to a server of
another origin, which must not be shown the access token, by an address that is good for one answer. Repositories are
built from bytes; faults are switched on by a test: cut connections, servers without ranges, wrong bytes, refusals, an
answer that never comes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from huggingface_hub.hf_api import ExpandModelProperty_T

LFS_FROM = 1000  # bytes from which a file is a large one, with a SHA-256


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class FakeRepo:
    """revisions: files by name, by revision. status: an HTTP status with the Hub's error code for everything.

    gated: everybody may look, but files go to those only who show an access token.
    """

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
        """The files with what is told of them where it is asked for."""
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
        self.page_size = 100  # results of a search in one answer
        self.moved: dict[str, str] = {}  # old name of a repository -> the one it has now
        self.refusals: list[tuple[int, str]] = []  # of the next questions for a file
        self.signatures: set[str] = set()  # of addresses of large files that were not used yet
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
            self._api("/".join(pieces[2:4]), pieces[4:], query)
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
                known: dict[str, Any] = {
                    "tags": repo.tags,
                    "config": repo.config,
                    "downloads": repo.downloads,
                    "likes": 3,
                    "gated": repo.gated,
                    "lastModified": "2026-01-02T03:04:05.000Z",
                }
                if repo.parameters:
                    known["safetensors"] = {"parameters": repo.parameters, "total": sum(repo.parameters.values())}
                asked_for = {field: known[field] for field in query.get("expand", ["likes"]) if field in known}
                found.append((-repo.downloads, {"_id": "0" * 24, "id": repo.id, "modelId": repo.id, **asked_for}))
        if not set(query.get("expand", [])) <= set(get_args(ExpandModelProperty_T)):
            return self._refuse(400, "")
        found.sort(key=lambda one: one[0])  # by downloads, as is asked
        start = int(query.get("cursor", ["0"])[0])
        end = start + min(self.hub.page_size, int(query.get("limit", ["1000"])[0]))
        headers = {}
        if end < len(found):
            more = urlencode({**query, "cursor": [str(end)]}, doseq=True)
            headers["Link"] = f'<{self.hub.url}/api/models?{more}>; rel="next"'
        return self._json([entry for _, entry in found[start:end]], headers)

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]]) -> None:
        if name in self.hub.moved:
            return self._redirect(307, self.path.replace(name, self.hub.moved[name]))
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
        siblings = repo.described(found)
        if "blobs" not in query and isinstance(siblings, list):
            siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
        return self._json({"id": repo.id, "sha": repo.commit(found), "siblings": siblings, "tags": []})

    def _found(self, name: str, revision: str, file: str) -> bytes | None:
        """The bytes of a file; None: it was refused."""
        repo = self.hub.repos.get(name)
        found = repo.find(revision) if repo is not None else None
        if repo is None or found is None or file not in repo.revisions[found]:
            self._refuse(404, "EntryNotFound")
        elif repo.status is not None:
            self._refuse(*repo.status)
        elif repo.gated and self.headers.get("Authorization") is None and not isinstance(self, _Storage):
            self._refuse(401, "GatedRepo")
        else:
            return repo.revisions[found][file]
        return None

    def _resolve(self, name: str, revision: str, file: str) -> None:
        """Where a file really is. Clients that can speak to the storage in its own way are told how, too."""
        hub = self.hub
        if name in hub.moved:
            return self._redirect(307, self.path.replace(name, hub.moved[name]))
        if hub.refusals:
            return self._refuse(*hub.refusals.pop(0))
        data = self._found(name, revision, file)
        if data is None:
            return None
        path = quote(f"{name}/{revision}/{file}")
        commit = hub.repos[name].commit(hub.repos[name].find(revision) or "")
        if len(data) < LFS_FROM:
            headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"'}
            return self._redirect(307, f"/api/resolve-cache/models/{path}", headers)
        sha256, signature = hashlib.sha256(data).hexdigest(), str(sum(hub.asked.values()))
        hub.asked["file"] += 1
        hub.signatures.add(signature)
        return self._redirect(
            302,
            f"{hub.storage_url}/{path}?Signature={signature}",
            {
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{sha256}"',
                "X-Xet-Hash": sha256[::-1],
                "Link": f'<{hub.url}/api/models/{name}/xet-read-token/{commit}>; rel="xet-auth"',
                "Accept-Ranges": "bytes",
            },
        )

    def _redirect(self, status: int, location: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in {"Location": location, "Content-Length": "0", **(headers or {})}.items():
            self.send_header(header, value)
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

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        for header, text in (headers or {}).items():
            self.send_header(header, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        body = b'{"error": "\x1b[2Jno"}'
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 429:
            self.send_header("RateLimit", '"resolvers";r=0;t=120')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Storage(_Handler):
    """The server of the large files."""

    def do_GET(self) -> None:
        self.hub.shown_to_storage.append(self.headers.get("Authorization"))
        parts = urlsplit(self.path)
        signature = parse_qs(parts.query).get("Signature", [""])[0]
        if signature not in self.hub.signatures:
            return self._refuse(403, "")
        self.hub.signatures.remove(signature)
        owner, name, revision, *file = unquote(parts.path).strip("/").split("/")
        return self._send(f"{owner}/{name}", revision, "/".join(file))
