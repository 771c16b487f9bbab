"""Bringing an index to the state of a folder, once or at each change of its files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from o1_retriever.documents import Chunking, Document, ReadOptions
from o1_retriever.documents.readers import KNOWN_KINDS, suffix_of
from o1_retriever.documents.structure import Value
from o1_retriever.documents.workers import Job, Read, read_files
from o1_retriever.errors import DocumentError, SettingsError, require
from o1_retriever.index.files import (
    FileEntry,
    FileRecord,
    FileTable,
    FolderReport,
    FoundFile,
    FoundFiles,
    Status,
    entries_of,
    find_files,
    ids_digest,
    now_ns,
)
from o1_retriever.index.index import Index
from o1_retriever.query import check_text
from o1_retriever.reporting import counted, progress

logger = logging.getLogger(__name__)

# Part of what a file is known by: a higher number reads every file again.
_READERS = 1
_NO_TEXT = "it has no text."
# Changes that come closer together are taken up at once: a save is several of them.
_TOGETHER_MS = 800


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """Which files of a folder are read and how they are cut.

    `include` and `exclude` are patterns such as `*.md` or `notes/*`, compared with the path inside the folder
    and with the name of the file or of a folder above it; an excluded folder is not entered. Hidden files and
    folders are always left out and linked folders not entered; with `ignore`, folders of what was installed
    or built (`node_modules`, `venv`, `build`, ...) and what `.gitignore` and `.o1ignore` name are left out
    too. `name` is under which name the index knows the folder; None takes its absolute path, so that a folder
    that is moved counts as another one (its documents keep their vectors: nothing is embedded again). Give a
    name to a folder that moves. `processes` is how many read (None: as many as there are cores, where there
    is much to read; 0: this one). `embedder` stands for what embeds, for `sync_unread`: the same, and its
    vectors and the lengths that it reads are the same.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    ignore: bool = True
    chunking: Chunking = field(default_factory=Chunking)
    reading: ReadOptions = field(default_factory=ReadOptions)
    name: str | None = None
    batch_size: int = 32
    processes: int | None = None
    embedder: str = ""

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise SettingsError(f"{name} is one string; expected a tuple of patterns such as ('*.md',).")

    def root_of(self, path: Path) -> str:
        """Under which name the index knows a folder. Raises `InputError` for one that cannot be kept."""
        root = self.name if self.name is not None else str(path)
        check_text(root, what="name of the folder")
        return root

    def find(self, path: Path, *, leave_out: Path | None) -> FoundFiles:
        """The files of a folder."""
        return find_files(
            path, include=self.include, exclude=self.exclude, ignore=self.ignore, leave_out=leave_out
        )

    def to_json(self, how: str) -> str:
        """Which files are looked at, and how those are read, for a later look at the same folder."""
        looked = {"include": self.include, "exclude": self.exclude, "ignore": self.ignore}
        return json.dumps({**looked, "asked": self.asked(), "how": how})

    def asked(self) -> str:
        """Stands for how files are read and cut, as far as that is known before anything is loaded."""
        return f"{self.how()} {self.embedder}" if self.embedder else ""

    def how(self) -> str:
        """Stands for how files are read and cut."""
        how = json.dumps([_READERS, asdict(self.chunking), asdict(self.reading)], sort_keys=True)
        return hashlib.blake2b(how.encode(), digest_size=16).hexdigest()


def sync_folder(
    index: Index,
    folder: str | os.PathLike[str],
    *,
    prune: bool = False,
    options: FolderOptions | None = None,
    show_progress_bar: bool | None = None,
) -> FolderReport:
    """Bring `index` to the state of `folder`; what it holds of other folders stays.

    A file that has the size and the time of the last reading is not read again. New documents of all files
    are added before old ones are removed, so that a run that is cut short never leaves a file without
    documents; the next run goes on where it stopped. Passages are cut so that the index's
    embedder reads them whole. Of files with the same content the first is kept, and
    its documents name the others. Files that have vanished are reported, and removed from the index with
    `prune=True`; of one that is elsewhere in the folder now, the documents move. A file that cannot be read
    is reported and skipped. Raises `DocumentError` for a folder that cannot be read or holds no file of a
    known kind.
    """
    options = options or FolderOptions()
    limited = options
    if options.chunking.tokens is None:
        limited = replace(options, chunking=replace(options.chunking, tokens=index.token_limit))
    sync = _Sync(index, folder, limited, limited.how(), prune=prune)
    sync.table.keep_folder(sync.root, sync.path, options.to_json(limited.how()))
    sync.run(show_progress_bar)
    return sync.report()


def sync_unread(
    index: Index, folder: str | os.PathLike[str], *, prune: bool = False, options: FolderOptions
) -> FolderReport | None:
    """What `sync_folder` does where no file has to be read, for an index without its embedder.

    None where there is something to read, or where the folder was last read in another way or for another
    `options.embedder`; then nothing has been done. Raises as `sync_folder` does.
    """
    kept = {root: asked for root, _, asked in FileTable(index.folder).folders()}
    known = kept.get(options.root_of(_check_folder(folder)), {})
    if not options.embedder or known.get("asked") != options.asked():
        return None
    sync = _Sync(index, folder, options, known["how"], prune=prune)
    return None if sync.todo else sync.report()


class _Sync:
    """One run over the files of a folder; `how` stands for the way in which they are read."""

    def __init__(
        self, index: Index, folder: str | os.PathLike[str], options: FolderOptions, how: str, *, prune: bool
    ) -> None:
        self._start = time.perf_counter()
        self._index = index
        self.path = _check_folder(folder)
        self.root = options.root_of(self.path)
        self._options = options
        self._how = how
        self._prune = prune
        self._known = index.ids_by_source(self.root)
        self.table = FileTable(index.folder)
        self._records = self.table.records(self.root)
        self._entries: list[FileEntry] = []
        self._stale: list[str] = []
        self._added = 0
        self._passages = 0
        self._waiting: list[Document] = []
        self._done: list[FileRecord] = []
        self._digests: dict[str, str] = {}
        self._also: dict[str, list[str]] = {}
        self._found = options.find(self.path, leave_out=index.path)
        if not self._found.files and not self._found.skipped and not self._known:
            raise _nothing_found(self.path, self._found.ignored)
        originals = self._without_copies(self._found.files)
        self.todo = {file.source: file for file in originals if not self._is_same(file)}

    def run(self, show: bool | None) -> None:
        """Read what has changed and add what is new of it."""
        jobs = [self._job(file) for file in self.todo.values()]
        options = self._options
        with progress("Indexing", len(jobs), show=show) as advance:
            ids: set[str] = set()
            missing = 0
            pieces = read_files(
                jobs, chunking=options.chunking, options=options.reading, processes=options.processes
            )
            for piece in pieces:
                ids.update(document.id for document in piece.documents)
                new = piece.documents
                if new and piece.job.source in self._known:
                    new = self._index.missing(new)
                missing += len(new)
                self._add(new)
                if piece.done:
                    self._finish(self.todo[piece.job.source], piece, ids, missing)
                    self._passages += len(ids)
                    advance(1, note=counted(self._passages, "passage"))
                    ids, missing = set(), 0
            self._flush()

    def report(self) -> FolderReport:
        """Remove what is stale, and say what became of every file."""
        found = self._found
        self._flush()
        vanished, moved = self._vanished({name for name, _ in found.skipped})
        gone = [source for source in (*vanished, *moved) if self._prune or source in moved]
        stale = [*self._stale, *(identity for source in gone for identity in self._known[source])]
        removed = self._index.delete(stale)
        self.table.forget(self.root, [*vanished, *moved])
        entries = sorted([*self._entries, *entries_of(found.skipped)], key=lambda entry: entry.source)
        return FolderReport(
            root=self.root,
            entries=tuple(entries),
            added=self._added,
            removed=removed,
            vanished=vanished,
            pruned=self._prune,
            moved=sorted(moved.items()),
            ignored=dict(sorted(found.ignored.items())),
            passed_over=dict(sorted(found.passed_over.items())),
            seconds=time.perf_counter() - self._start,
        )

    def _job(self, file: FoundFile) -> Job:
        also = self._also.get(file.source)
        more: dict[str, Value] = {"also_in": [*also]} if also else {}
        path = str(self.path / file.source)
        return Job(path=path, source=file.source, root=self.root, size=file.size, metadata=more)

    def _without_copies(self, files: list[FoundFile]) -> list[FoundFile]:
        """The files but those whose content an earlier one has, which are entered as copies."""
        sizes = Counter(file.size for file in files)  # only files of one size can be the same
        first: dict[tuple[str, str], str] = {}
        kept = []
        for file in files:
            digest = self._digest(file) if file.size and sizes[file.size] > 1 else ""
            # The same bytes under another suffix are read in another way.
            key = (suffix_of(Path(file.source)), digest)
            original = first.setdefault(key, file.source) if digest else file.source
            if original == file.source:
                kept.append(file)
            else:
                self._also.setdefault(original, []).append(file.source)
                self._entries.append(FileEntry(source=file.source, status="copy", reason=original))
                self._stale += self._known.get(file.source, ())
                self._done.append(_record(file, digest=digest, how="copy"))
        return kept

    def _digest(self, file: FoundFile) -> str:
        record = self._records.get(file.source)
        if record is not None and record.digest and record.is_of(file):
            return record.digest
        try:
            with (self.path / file.source).open("rb") as opened:
                return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except OSError:
            return ""  # reading it says why

    def _is_same(self, file: FoundFile) -> bool:
        """Whether nothing has to be read; then the file is entered as it was."""
        record = self._records.get(file.source)
        ids = self._known.get(file.source, [])
        if record is None or not record.is_of(file) or record.how != self._how_of(file):
            return False
        if record.error:
            self._entries.append(FileEntry(source=file.source, status="skipped", reason=record.error))
            return True
        if record.ids != ids_digest(ids):
            return False
        self._digests[record.digest] = file.source
        self._entries.append(
            FileEntry(source=file.source, status="same", passages=len(ids), notes=record.notes)
        )
        return True

    def _how_of(self, file: FoundFile) -> str:
        return f"{self._how}{self._also.get(file.source, '')}"

    def _add(self, documents: list[Document]) -> None:
        self._waiting += documents
        if len(self._waiting) >= self._index.portion(self._options.batch_size):
            self._flush()

    def _flush(self) -> None:
        """Add what waits; only then are its files noted as done."""
        if self._waiting:
            self._added += self._index.add_at_once(self._waiting, batch_size=self._options.batch_size)
        self.table.put(self.root, self._done)
        self._waiting, self._done = [], []

    def _finish(self, file: FoundFile, piece: Read, ids: set[str], missing: int) -> None:
        """Enter a file that has been read."""
        known = self._known.get(file.source, [])
        reason = piece.error or ("" if ids else _NO_TEXT)
        if piece.error:
            logger.info("Skipped %s: %s", file.source, piece.error)
            entry = FileEntry(source=file.source, status="skipped", passages=len(ids), reason=reason)
        elif not ids:
            entry = FileEntry(source=file.source, status="skipped", reason=_NO_TEXT, notes=piece.notes)
        else:
            same = bool(known) and not missing and ids == set(known)
            status: Status = "same" if same else "changed" if known else "new"
            entry = FileEntry(source=file.source, status=status, passages=len(ids), notes=piece.notes)
            self._digests[piece.digest] = file.source
        self._entries.append(entry)
        if not piece.error:
            self._stale += (identity for identity in known if identity not in ids)
        if piece.lasting:
            how, ids_now = self._how_of(file), ids_digest(ids)
            self._done.append(
                _record(file, digest=piece.digest, how=how, ids=ids_now, notes=piece.notes, error=reason)
            )

    def _vanished(self, unread: set[str]) -> tuple[list[str], dict[str, str]]:
        """Files that are not there, and where those that have moved are now; the unread have not vanished."""
        entered = {entry.source for entry in self._entries}
        absent = sorted(set(self._known) - entered)
        gone = [source for source in absent if not _is_under(source, unread)]
        moved = {}
        for source in gone:
            record = self._records.get(source)
            if record is not None and (now := self._digests.get(record.digest)):
                moved[source] = now
        return [source for source in gone if source not in moved], moved


def _record(file: FoundFile, **found: Any) -> FileRecord:
    return FileRecord(source=file.source, size=file.size, mtime_ns=file.mtime_ns, looked_ns=now_ns(), **found)


def _is_under(name: str, folders: set[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def follow_folder(
    index: Index,
    folder: str | os.PathLike[str],
    *,
    prune: bool = True,
    options: FolderOptions | None = None,
    show_progress_bar: bool | None = None,
    stop: threading.Event | None = None,
) -> Iterator[FolderReport]:
    """The reports of one `sync_folder` now and of one after each change, until `stop` is set.

    A folder that has become empty, or cannot be read for a while, is waited for. Raises as `sync_folder` does
    at the first time.
    """
    watchfiles = require("watchfiles", extra="documents", purpose="Following a folder")
    path = Path(folder).expanduser().resolve()

    def matters(change: Any, name: str) -> bool:
        inside = Path(name)
        if inside.is_relative_to(index.path) or not inside.is_relative_to(path):
            return False
        return not any(
            part.startswith(".") and part != ".o1ignore" for part in inside.relative_to(path).parts
        )

    # Watching begins before the first look, so that nothing is missed between the two.
    changes = watchfiles.watch(
        path,
        watch_filter=matters,
        debounce=_TOGETHER_MS,
        step=100,
        stop_event=stop,
        rust_timeout=500,
        yield_on_timeout=True,
        raise_interrupt=True,
    )
    next(changes, None)
    yield sync_folder(index, path, prune=prune, options=options, show_progress_bar=show_progress_bar)
    for changed in changes:
        if changed:
            try:
                report = sync_folder(
                    index, path, prune=prune, options=options, show_progress_bar=show_progress_bar
                )
            except DocumentError:
                continue
            if report.added or report.removed or report.skipped:
                yield report


@dataclass(frozen=True, slots=True, kw_only=True)
class Newer:
    """A folder that is no longer as it was indexed: how many files are new or changed, and how many gone."""

    path: Path
    changed: int
    gone: int


def newer_folders(index: Index) -> Iterator[Newer]:
    """The indexed folders whose files are no longer those that were read, by their sizes and times."""
    table = FileTable(index.folder)
    for root, name, chosen in table.folders():
        path = Path(name)
        if not path.is_dir():
            continue
        found = find_files(
            path,
            include=chosen["include"],
            exclude=chosen["exclude"],
            ignore=chosen["ignore"],
            leave_out=index.path,
        )
        records = table.records(root)
        times = {source: (record.size, record.mtime_ns) for source, record in records.items()}
        files = {file.source: (file.size, file.mtime_ns) for file in found.files}
        changed = sum(times.get(source) != now for source, now in files.items())
        gone = len(set(times) - set(files))
        if changed or gone:
            yield Newer(path=path, changed=changed, gone=gone)


def _check_folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder).expanduser().resolve()
    if path.is_file():
        raise DocumentError(
            str(folder), "it is a file; expected a folder.", hint=f"Type: o1-retriever index {path.parent}"
        )
    if not path.is_dir():
        raise DocumentError(
            str(folder), "there is no such folder; expected one with documents.", hint="Check the path."
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise DocumentError(str(folder), "the folder cannot be read.", hint="Check its permissions.")
    return path


def _nothing_found(path: Path, ignored: Counter[str]) -> DocumentError:
    others = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
    return DocumentError(
        str(path),
        f"found {f'only other kinds of files ({others})' if others else 'no files'}; "
        f"expected some of {KNOWN_KINDS}.",
        hint="Hidden files and folders are not read.",
    )
