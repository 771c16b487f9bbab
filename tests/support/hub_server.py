"""The Hub's API on the loopback interface, as far as a model is published and loaded through it.

It keeps repositories in memory and can be told to misbehave: `fault(method, path, number)` is asked before
every request, `number` being how many there were of that method and path.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from tests.support.hub_repos import Entry, Repo, described
from tests.support.hub_uploads import Uploads


@dataclass(frozen=True)
class Fault:
    """What is answered instead: a status, or, with `after`, a closed connection after so many bytes read."""

    status: int = 500
    after: int | None = None


class HubServer(ThreadingHTTPServer):
    """`tokens` are users by their tokens, `readers` the tokens that may only read, `gated` what is closed."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens = {"hf_right": "me"}
        self.readers: set[str] = set()
        self.gated: set[str] = set()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.fault: Callable[[str, str, int], Fault | None] = lambda method, path, number: None
        self.lose_answer: Callable[[str, int], bool] = lambda path, number: False
        self.seen: Counter[tuple[str, str]] = Counter()
        self.received = 0  # bytes of large files
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Closed connections are part of the tests."""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer
    lost = False

    def log_message(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        url = urlparse(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        key = (self.command, path)
        with self.server.guard:
            number = self.server.seen[key]
            self.server.seen[key] += 1
        fault = self.server.fault(self.command, path, number)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.after is not None:
            self.rfile.read(min(length, fault.after))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        if fault is not None:
            self._json({"error": "a fault"}, fault.status)
            return
        for pattern, method, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                self.lost = self.server.lose_answer(path, number)
                answer(self, *found.groups())
                return
        self._error(404, "no such page", "EntryNotFound")

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def _error(self, status: int, said: str, code: str = "") -> None:
        named = {"X-Error-Message": said} | ({"X-Error-Code": code} if code else {})
        self._bytes(json.dumps({"error": said}).encode(), status, named)

    def _bytes(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.lost:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    @property
    def _user(self) -> str | None:
        return self.server.tokens.get(self._token)

    def _repo(self, name: str, *, write: bool = False) -> Repo | None:
        """The repository, if whoever asks may have it; else the error has been answered."""
        repo, owner = self.server.repos.get(name), name.partition("/")[0]
        if self._token and self._user is None:
            self._error(401, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and self._user != owner):
            self._error(404 if self._user else 401, "Repository not found", "RepoNotFound")
        elif name in self.server.gated:
            self._error(403, "Access to this model is restricted", "GatedRepo")
        elif write and (self._user != owner or self._token in self.server.readers):
            self._error(403, "Forbidden: you must use a write token")
        else:
            return repo
        return None

    def whoami(self) -> None:
        if self._user is None:
            self._error(401, "Invalid credentials in Authorization header")
        else:
            self._json({"type": "user", "name": self._user, "orgs": [], "auth": {"type": "access_token"}})

    def validate(self) -> None:
        known = "license: nonsense" not in json.loads(self.body)["content"]
        errors = [] if known else [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]
        self._json({"errors": errors, "warnings": []}, 200 if known else 400)

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self._user
        name = f"{owner}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        if self._user is None:
            self._error(401, "Invalid credentials in Authorization header")
        elif owner != self._user or self._token in self.server.readers:
            self._error(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        elif name in self.server.repos:
            self._json({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        else:
            self.server.repos[name] = Repo(private=private)
            self._json({"url": f"{self.server.url}/{name}"})

    def settings(self, name: str) -> None:
        if (repo := self._repo(name, write=True)) is not None:
            asked = json.loads(self.body)
            repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._json({})

    def info(self, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) is not None:
            files = [
                {"rfilename": path, "size": len(each.content)} for path, each in sorted(repo.files.items())
            ]
            self._json({"id": name, "sha": repo.head, "private": repo.private, "siblings": files})

    def _at(self, repo: Repo, revision: str) -> dict[str, Entry] | None:
        commit = repo.head if revision == "main" else revision
        if commit not in repo.commits:
            self._error(404, "Invalid rev id", "RevisionNotFound")
        return repo.commits.get(commit)

    def tree(self, name: str, revision: str, below: str | None = None) -> None:
        if (repo := self._repo(name)) is None or (files := self._at(repo, revision)) is None:
            return
        wanted = f"{below}/" if below else ""
        listed = [described(path, each) for path, each in sorted(files.items()) if path.startswith(wanted)]
        self._json(listed)

    def paths_info(self, name: str, revision: str) -> None:
        if (repo := self._repo(name)) is None or (files := self._at(repo, revision)) is None:
            return
        asked = json.loads(self.body) if self.body.startswith(b"{") else parse_qs(self.body.decode())
        self._json([described(path, files[path]) for path in asked["paths"] if path in files])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None or (files := self._at(repo, revision)) is None:
            return
        commit = repo.head if revision == "main" else revision
        if path not in files:
            named = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            self._bytes(b"", 404, named)
            return
        entry = files[path]
        content, status = entry.content, 200
        named = {"ETag": f'"{entry.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if entry.large:
            named |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(len(content))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            last = int(wanted[2]) + 1 if wanted[2] else len(content)
            content, status = content[int(wanted[1]) : last], 206
        self._bytes(content, status, named)


_ID = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    (r"/api/whoami-v2", "GET", _Handler.whoami),
    (r"/api/validate-yaml", "POST", _Handler.validate),
    (r"/api/repos/create", "POST", _Handler.create),
    (rf"/api/models/{_ID}", "GET", _Handler.info),
    (rf"/api/models/{_ID}/revision/([^/]+)", "GET", _Handler.info),
    (rf"/api/models/{_ID}/settings", "PUT", _Handler.settings),
    (rf"/api/models/{_ID}/tree/([^/]+)(?:/(.+))?", "GET", _Handler.tree),
    (rf"/api/models/{_ID}/paths-info/([^/]+)", "POST", _Handler.paths_info),
    (rf"/api/models/{_ID}/preupload/([^/]+)", "POST", _Handler.preupload),
    (rf"/api/models/{_ID}/commit/([^/]+)", "POST", _Handler.commit),
    (rf"/{_ID}\.git/info/lfs/objects/batch", "POST", _Handler.batch),
    (r"/storage/([0-9a-f]+)(?:/(\d+))?", "PUT", _Handler.put),
    (r"/complete/([0-9a-f]+)", "POST", _Handler.complete),
    (rf"/verify/{_ID}", "POST", _Handler.verify),
    (rf"/{_ID}/resolve/([^/]+)/(.+)", "GET HEAD", _Handler.resolve),
]
