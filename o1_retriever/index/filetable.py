"""What an index knows of the files it was made from: which are unchanged, and which folders to look at again.

This is a memory of readings beside the ledger. Without it every file is read again, and nothing is lost.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from o1_retriever.documents.files import FoundFile

FILE_TABLE = "files.sqlite3"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    root TEXT NOT NULL, source TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    looked_ns INTEGER NOT NULL, digest TEXT NOT NULL, how TEXT NOT NULL, ids TEXT NOT NULL,
    notes TEXT NOT NULL, error TEXT NOT NULL, PRIMARY KEY (root, source)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folders (
    root TEXT PRIMARY KEY, path TEXT NOT NULL, options TEXT NOT NULL
) WITHOUT ROWID;
"""
# A file that is written right after it was read may have the time of before: systems count coarsely.
_TOO_CLOSE_NS = 2_000_000_000
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """What was found in a file: `how` stands for how it was read, `ids` for its documents."""

    source: str
    size: int
    mtime_ns: int
    looked_ns: int
    digest: str = ""
    how: str = ""
    ids: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""

    def is_of(self, file: FoundFile) -> bool:
        """Whether the file is still the same, as far as its size and its time tell."""
        same = (self.size, self.mtime_ns) == (file.size, file.mtime_ns)
        return same and self.mtime_ns < self.looked_ns - _TOO_CLOSE_NS


def now_ns() -> int:
    """The time that the times of files are compared with."""
    return time.time_ns()


def ids_digest(ids: Iterable[str]) -> str:
    """Stands for a set of ids."""
    digest = hashlib.blake2b(digest_size=16)
    for identity in sorted(ids):
        digest.update(identity.encode() + b"\0")
    return digest.hexdigest()


class FileTable:
    """The records of one index, in a file of its own beside the ledger. A damaged one is begun anew."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_TABLE

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file, timeout=_PATIENCE_S)) as connection, connection:
            connection.executescript(_SCHEMA)
            yield connection

    def records(self, root: str) -> dict[str, FileRecord]:
        """What is known of the files of a folder."""
        names = [each.name for each in fields(FileRecord)]
        query = f"SELECT {', '.join(names)} FROM files WHERE root = ?"
        try:
            with self._opened() as connection:
                rows = connection.execute(query, (root,)).fetchall()
        except sqlite3.DatabaseError:
            self._file.unlink(missing_ok=True)
            return {}
        found = (dict(zip(names, row, strict=True)) for row in rows)
        return {
            each["source"]: FileRecord(**{**each, "notes": tuple(json.loads(each["notes"]))})
            for each in found
        }

    def put(self, root: str, records: Iterable[FileRecord]) -> None:
        """Keep records, in the place of older ones of the same files."""
        rows = [{**asdict(each), "notes": json.dumps(each.notes), "root": root} for each in records]
        if rows:
            places = ", ".join(f":{name}" for name in rows[0])
            with self._opened() as connection:
                statement = f"INSERT OR REPLACE INTO files ({', '.join(rows[0])}) VALUES ({places})"
                connection.executemany(statement, rows)

    def forget(self, root: str, sources: Iterable[str]) -> None:
        """Drop the records of files."""
        with self._opened() as connection:
            statement = "DELETE FROM files WHERE root = ? AND source = ?"
            connection.executemany(statement, ((root, source) for source in sources))

    def keep_folder(self, root: str, path: Path, options: str) -> None:
        """Keep where a folder is and with what options it was indexed."""
        with self._opened() as connection:
            connection.execute("INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", (root, str(path), options))

    def folders(self) -> list[tuple[str, str, str]]:
        """The name, the path and the options of every folder."""
        if not self._file.is_file():
            return []
        try:
            with self._opened() as connection:
                return connection.execute("SELECT root, path, options FROM folders ORDER BY root").fetchall()
        except sqlite3.DatabaseError:
            return []
