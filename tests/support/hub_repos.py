"""What a Hub of the tests keeps: repositories, their commits and the files in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    """A repository: its files by path, at every commit by its hash, the last one being `head`."""

    private: bool
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    head: str = ""

    def __post_init__(self) -> None:
        self.commit({".gitattributes": Entry(b"*.safetensors filter=lfs\n", large=False)})

    def commit(self, files: dict[str, Entry]) -> None:
        """Make these the files."""
        said = f"{len(self.commits)}" + "".join(f"{path}{each.oid}" for path, each in sorted(files.items()))
        self.head = hashlib.sha1(said.encode()).hexdigest()
        self.commits[self.head] = files

    @property
    def files(self) -> dict[str, Entry]:
        return self.commits[self.head]


def described(path: str, entry: Entry) -> dict[str, Any]:
    size = len(entry.content)
    large = {"lfs": {"oid": entry.sha256, "size": size, "pointerSize": 128}} if entry.large else {}
    return {"type": "file", "path": path, "size": size, "oid": entry.oid, **large}
