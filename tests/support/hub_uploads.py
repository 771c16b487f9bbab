"""How a Hub of the tests takes files: large ones into its storage, and a commit names them by their hash."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from tests.support.hub_repos import Entry, Repo

if TYPE_CHECKING:
    from tests.support.hub_server import HubServer

LARGE = 2_000  # bytes from which a file is sent apart from the commit
PART = 2_000_000  # bytes of a part, for files of more than that


class Uploads:
    """The part of the server's handler that writes."""

    if TYPE_CHECKING:
        server: HubServer
        body: bytes

        def _repo(self, name: str, *, write: bool = False) -> Repo | None: ...
        def _json(self, value: Any, status: int = 200) -> None: ...
        def _error(self, status: int, said: str, code: str = "") -> None: ...
        def _bytes(
            self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
        ) -> None: ...

    def preupload(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, write=True)) is None:
            return
        answers = []
        for asked in json.loads(self.body)["files"]:
            large = asked["size"] >= LARGE or asked["path"].endswith(".safetensors")
            known = repo.files.get(asked["path"])
            answers.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": known.etag if known else None,
                }
            )
        self._json({"files": answers})

    def batch(self, name: str) -> None:
        if self._repo(name, write=True) is None:
            return
        objects = []
        for each in json.loads(self.body)["objects"]:
            oid, size = each["oid"], each["size"]
            if oid in self.server.blobs:
                objects.append({"oid": oid, "size": size})
                continue
            upload: dict[str, Any] = {"href": f"{self.server.url}/storage/{oid}"}
            if size > PART:
                count = -(-size // PART)
                urls = {str(n): f"{self.server.url}/storage/{oid}/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{self.server.url}/complete/{oid}",
                    "header": {"chunk_size": str(PART), **urls},
                }
            verify = {"href": f"{self.server.url}/verify/{name}"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        self._json({"transfer": "basic", "objects": objects})

    def put(self, oid: str, part: str | None = None) -> None:
        self.server.received += len(self.body)
        if part is None:
            self._keep(oid, self.body)
            return
        self.server.parts[f"{oid}/{part}"] = self.body
        self._bytes(b"", headers={"ETag": hashlib.md5(self.body).hexdigest()})

    def complete(self, oid: str) -> None:
        numbers = sorted(each["partNumber"] for each in json.loads(self.body)["parts"])
        self._keep(oid, b"".join(self.server.parts[f"{oid}/{number}"] for number in numbers))

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            self._error(400, "the content has another hash")
            return
        self.server.blobs[oid] = content
        self._json({})

    def verify(self, name: str) -> None:
        asked = json.loads(self.body)
        right = len(self.server.blobs.get(asked["oid"], b"")) == asked["size"]
        self._json({}, 200 if right else 404)

    def commit(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, write=True)) is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.head) != repo.head:
            self._error(412, "A commit has happened since. Please refresh and try again.")
            return
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = Entry(self.server.blobs[value["oid"]], large=True)
            else:
                files[value["path"]] = Entry(base64.b64decode(value["content"]), large=False)
        repo.commit(files)
        url = f"{self.server.url}/{name}/commit/{repo.head}"
        self._json({"success": True, "commitOid": repo.head, "commitUrl": url})
