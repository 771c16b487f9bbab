"""The files of a folder: which of them can be read, and which an index has read already.

What was installed, generated or is ignored is passed over. The table of readings is a memory beside the
ledger: which files are unchanged, and which folders to look at again. Without it every file is read again,
and nothing is lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeVar

from o1_retriever.documents.readers import is_known, suffix_of
from o1_retriever.documents.source import looks_binary
from o1_retriever.errors import require
from o1_retriever.storage import written_whole

IGNORE_FILES = (".gitignore", ".o1ignore")
# Folders that hold what was installed or generated, not written.
_NOISE = {
    *("node_modules", "bower_components", "__pycache__", "site-packages", "venv", "env", "build", "dist"),
    *("htmlcov", "__pypackages__"),
}
_NOISE_ENDS = (".egg-info", ".dist-info")
_HEAD = 8192
Ignoring = list[tuple[str, Any]]  # folders with the patterns of their own ignore files, outermost first


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file by its path inside the folder, with what tells whether it has changed."""

    source: str
    size: int
    mtime_ns: int


@dataclass(slots=True)
class FoundFiles:
    """Files to read, what cannot be read, other kinds by suffix, and what was passed over by the reason."""

    files: list[FoundFile] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)


def find_files(
    path: Path,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    ignore: bool = True,
    leave_out: Path | None = None,
) -> FoundFiles:
    """The files below `path` to read, in the order of their paths, without those of the folder `leave_out`.

    Hidden files and folders and linked folders are passed over; with `ignore`, so are folders of what was
    installed or built, and what a `.gitignore` or `.o1ignore` names.
    """
    found = FoundFiles()
    search = _Search(path, found, tuple(include), tuple(exclude), ignore, leave_out)

    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(path).as_posix()
        found.skipped.append((_shown(name), f"the folder cannot be read ({error.strerror})."))

    for place, folders, names in os.walk(path, onerror=unreadable):
        here = Path(place).relative_to(path)
        search.enter(here, names)
        folders[:] = sorted(name for name in folders if search.goes_into(here, name))
        for name in sorted(names):
            search.take(here, name)
    found.files.sort(key=lambda file: file.source)
    return found


@dataclass(slots=True)
class _Search:
    path: Path
    found: FoundFiles
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    ignore: bool
    leave_out: Path | None
    _ignoring: dict[str, Ignoring] = field(default_factory=dict)

    def enter(self, here: Path, names: Sequence[str]) -> None:
        """Read the ignore files of a folder."""
        if not self.ignore:
            return
        lines = [line for name in IGNORE_FILES if name in names for line in self._lines(here / name)]
        outer = self._ignoring.get(here.parent.as_posix(), []) if here.parts else []
        own: Ignoring = []
        if lines:
            pathspec = require("pathspec", extra="documents", purpose="Reading .gitignore and .o1ignore")
            own = [(here.as_posix(), pathspec.GitIgnoreSpec.from_lines(lines))]
        self._ignoring[here.as_posix()] = [*outer, *own]

    def _lines(self, source: Path) -> Iterator[str]:
        file = self.path / source
        try:
            if file.is_file():
                yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            self.found.skipped.append((source.as_posix(), f"it cannot be read ({error.strerror})."))

    def goes_into(self, here: Path, name: str) -> bool:
        """Whether a folder is looked into; counts why not."""
        source = (here / name).as_posix()
        if (self.path / source).is_symlink():
            return self._pass_over("linked folders")
        if name.startswith("."):
            return self._pass_over("hidden files and folders")
        if self.leave_out is not None and (self.path / source).resolve() == self.leave_out:
            return False
        if _matches(source, self.exclude):
            return self._pass_over("excluded")
        if self.ignore and (name in _NOISE or name.endswith(_NOISE_ENDS)):
            return self._pass_over(
                f"folders called {name}" if name in _NOISE else "folders of installed packages"
            )
        if self._is_ignored(here, f"{source}/"):
            return self._pass_over("named in .gitignore or .o1ignore")
        return True

    def _pass_over(self, why: str) -> bool:
        self.found.passed_over[why] += 1
        return False

    def _is_ignored(self, here: Path, source: str) -> bool:
        """By the last pattern that fits, of the innermost folder that has one."""
        ignored = False
        for folder, patterns in self._ignoring.get(here.as_posix(), ()):
            inside = source if folder == "." else source[len(folder) + 1 :]
            verdict = patterns.check_file(inside).include
            ignored = ignored if verdict is None else verdict
        return ignored

    def take(self, here: Path, name: str) -> None:
        """Keep a file, or note why not."""
        source = (here / name).as_posix()
        if name in IGNORE_FILES:
            return
        if name.startswith("."):
            self._pass_over("hidden files and folders")
        elif name.startswith("~$"):
            self._pass_over("locks of open Office files")
        elif _matches(source, self.exclude):
            self._pass_over("excluded")
        elif self._is_ignored(here, source):
            self._pass_over("named in .gitignore or .o1ignore")
        elif not is_known(Path(name)):
            self.found.ignored[suffix_of(Path(name))] += 1
        elif _matches(source, self.include):
            self._keep(source)

    def _keep(self, source: str) -> None:
        file = self.path / source
        try:
            source.encode()
            status = file.stat()
        except UnicodeEncodeError:
            reason = "its name is not valid UTF-8; expected a name that can be printed."
            self.found.skipped.append((_shown(source), reason))
            return
        except OSError as error:
            kind = "a link to nothing" if file.is_symlink() else f"not to be read ({error.strerror})"
            self.found.skipped.append((source, f"it is {kind}; expected a file."))
            return
        if not stat.S_ISREG(status.st_mode):
            self.found.skipped.append((source, "it is no regular file; expected a file."))
        elif not file.suffix and _is_program(file):
            self.found.ignored["programs and other binary files"] += 1
        else:
            self.found.files.append(FoundFile(source, status.st_size, status.st_mtime_ns))


def _is_program(file: Path) -> bool:
    """Whether a file without a suffix holds no text."""
    try:
        with file.open("rb") as opened:
            return looks_binary(opened.read(_HEAD))
    except OSError:
        return False  # reading it says why


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _matches(source: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits a path inside the folder, or the name of the file or of a folder above it."""
    return any(fnmatch(part, pattern) for pattern in patterns for part in (source, *source.split("/")))


logger = logging.getLogger(__name__)

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
# A statement of ours that SQLite cannot run meets the tables of another program, or none.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)
T = TypeVar("T")
_COLUMNS = {"skipped": "skipped", "copy": "copies"}
Status = Literal["new", "changed", "same", "copy", "skipped"]


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
    """The records of one index, in a file of its own beside the ledger.

    A damaged file is begun anew. One that cannot be read or written, because the disk is full or read-only or
    another process holds it for long, knows nothing and keeps nothing, with a warning: files are read again.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_TABLE

    def records(self, root: str) -> dict[str, FileRecord]:
        """What is known of the files of a folder."""
        names = [each.name for each in fields(FileRecord)]
        query = f"SELECT {', '.join(names)} FROM files WHERE root = ?"

        def work(connection: sqlite3.Connection) -> dict[str, FileRecord]:
            rows = connection.execute(query, (root,)).fetchall()
            found = (dict(zip(names, row, strict=True)) for row in rows)
            return {
                each["source"]: FileRecord(**{**each, "notes": tuple(json.loads(each["notes"]))})
                for each in found
            }

        return self._used(work) or {}

    def put(self, root: str, records: Iterable[FileRecord]) -> None:
        """Keep records, in the place of older ones of the same files."""
        rows = [{**asdict(each), "notes": json.dumps(each.notes), "root": root} for each in records]
        if rows:
            places = ", ".join(f":{name}" for name in rows[0])
            statement = f"INSERT OR REPLACE INTO files ({', '.join(rows[0])}) VALUES ({places})"
            self._used(lambda connection: connection.executemany(statement, rows))

    def forget(self, root: str, sources: Iterable[str]) -> None:
        """Drop the records of files."""
        rows = [(root, source) for source in sources]
        statement = "DELETE FROM files WHERE root = ? AND source = ?"
        self._used(lambda connection: connection.executemany(statement, rows))

    def keep_folder(self, root: str, path: Path, options: str) -> None:
        """Keep where a folder is and with what options it was indexed."""
        statement = "INSERT OR REPLACE INTO folders VALUES (?, ?, ?)"
        self._used(lambda connection: connection.execute(statement, (root, str(path), options)))

    def folders(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The name, the path and the options of every folder."""
        if not self._file.is_file():
            return []
        query = "SELECT root, path, options FROM folders ORDER BY root"

        def work(connection: sqlite3.Connection) -> list[tuple[str, str, dict[str, Any]]]:
            rows = connection.execute(query).fetchall()
            return [(root, path, dict(json.loads(options))) for root, path, options in rows]

        return self._used(work) or []

    def _used(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` returns with the open file, once more with a new one if it is damaged; or None."""
        for _ in range(2):
            try:
                with closing(sqlite3.connect(self._file, timeout=_PATIENCE_S)) as connection, connection:
                    connection.executescript(_SCHEMA)
                    return work(connection)
            except (sqlite3.Error, ValueError, TypeError) as error:
                failure: Exception = error
            if getattr(failure, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _DAMAGE:
                break
            try:
                self._file.unlink(missing_ok=True)
            except OSError as error:
                failure = error
                break
        message = "What was read is not noted in %s (%s): it will be read again."
        logger.warning(message, self._file, failure)
        return None


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
