"""What an index took from a folder, file by file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from o1_retriever.documents.readers import suffix_of
from o1_retriever.storage import written_whole

_COLUMNS = {"skipped": "skipped", "copy": "copies"}
Status = Literal["new", "changed", "same", "copy", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What became of a file. `reason` says why it was skipped, or of which file it is a copy."""

    source: str
    status: Status
    passages: int = 0
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What an index took from a folder.

    `entries` are the files, in the order of their paths. `added` and `removed` count documents. `vanished`
    are files that the index knew and that are no longer there (their documents are, unless `pruned`),
    `moved` are (before, now) of those that are elsewhere in the folder, `ignored` counts files of other kinds
    by suffix, and `passed_over` counts files and folders that were not looked at, by the reason.
    """

    root: str
    entries: tuple[FileEntry, ...] = ()
    added: int = 0
    removed: int = 0
    vanished: list[str] = field(default_factory=list)
    pruned: bool = False
    moved: list[tuple[str, str]] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def _count(self, *statuses: Status) -> int:
        return sum(entry.status in statuses for entry in self.entries)

    @property
    def new(self) -> int:
        """Files that the index did not have."""
        return self._count("new")

    @property
    def changed(self) -> int:
        """Files with other documents than before."""
        return self._count("changed")

    @property
    def same(self) -> int:
        """Files with the same documents as before."""
        return self._count("same")

    @property
    def files(self) -> int:
        """Files that are in the index."""
        return self._count("new", "changed", "same")

    @property
    def passages(self) -> int:
        """Documents of these files."""
        return sum(entry.passages for entry in self.entries)

    @property
    def unchanged(self) -> int:
        """Documents that the index had."""
        return self.passages - self.added

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The files that could not be read, or hold no text, and why. Their documents stay as they were."""
        return [(entry.source, entry.reason) for entry in self.entries if entry.status == "skipped"]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What there is to say about files that were read: rows or pages left out, an encoding guessed."""
        return [(entry.source, note) for entry in self.entries for note in entry.notes]

    @property
    def copies(self) -> dict[str, list[str]]:
        """Files whose content another one has: the one that is in the index, with the others."""
        found: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.status == "copy":
                found.setdefault(entry.reason, []).append(entry.source)
        return found

    def kinds(self) -> list[tuple[str, Counter[str]]]:
        """For each kind of file, by suffix, how many were read, skipped and copies, and their passages."""
        found: dict[str, Counter[str]] = {}
        for entry in self.entries:
            counts = found.setdefault(suffix_of(Path(entry.source)) or "without suffix", Counter())
            counts[_COLUMNS.get(entry.status, "read")] += 1
            counts["passages"] += entry.passages
        return sorted(found.items())

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        counts = {name: getattr(self, name) for name in ("new", "changed", "same", "passages", "unchanged")}
        return {**asdict(self), **counts}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as JSON."""
        with written_whole(Path(path)) as file:
            json.dump(self.to_dict(), file, ensure_ascii=False, indent=1)
            file.write("\n")


def entries_of(skipped: Sequence[tuple[str, str]]) -> list[FileEntry]:
    """Entries of files that could not even be opened."""
    return [FileEntry(source=source, status="skipped", reason=reason) for source, reason in skipped]
