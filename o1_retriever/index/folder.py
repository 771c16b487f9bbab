"""Bringing an index to the state of a folder: what is new is added, what is gone is removed."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from o1_retriever.documents import SUFFIXES, Chunking, Document, read_documents
from o1_retriever.documents.files import find_files
from o1_retriever.errors import DocumentError, SettingsError
from o1_retriever.index.index import Index
from o1_retriever.progress import progress
from o1_retriever.query import check_text

logger = logging.getLogger(__name__)

# Documents compared with the index at a time.
_PAGE = 1000
# Characters of text kept between looking at the files and adding them; files beyond it are read twice.
_KEPT_TEXT = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """Which files of a folder are read and how they are cut.

    `include` and `exclude` are patterns such as `*.md` or `notes/*`, compared with the path inside the folder
    and with the name of the file or of a folder above it; an excluded folder is not entered. Hidden files and
    folders and `node_modules`, `__pycache__`, `site-packages` and `venv` are always left out; linked folders
    are not entered. `name` is under which name the index knows the folder; None takes its absolute path, so
    that a folder that is moved counts as another one (its documents keep their vectors: nothing is embedded
    again). Give a name to a folder that moves.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    chunking: Chunking = field(default_factory=Chunking)
    name: str | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise SettingsError(f"{name} is one string; expected a tuple of patterns such as ('*.md',).")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What an index took from a folder.

    `added`, `removed` and `unchanged` count documents. `new`, `changed` and `same` count files. `vanished`
    are files that the index knew and that are no longer there (their documents are still there unless
    `pruned`), `skipped` are (file, reason) of those that could not be read, whose documents are left as they
    were, and `ignored` counts files of other kinds by suffix.
    """

    root: str
    added: int
    removed: int
    unchanged: int
    new: int
    changed: int
    same: int
    vanished: list[str]
    pruned: bool
    skipped: list[tuple[str, str]]
    ignored: dict[str, int]
    seconds: float

    @property
    def files(self) -> int:
        """Files that were read."""
        return self.new + self.changed + self.same


def sync_folder(
    index: Index,
    folder: str | os.PathLike[str],
    *,
    prune: bool = False,
    options: FolderOptions | None = None,
    show_progress_bar: bool | None = None,
) -> FolderReport:
    """Bring `index` to the state of `folder`; what it holds of other folders stays.

    New documents of all files are added before old ones are removed, so that a run that is cut short never
    leaves a file without documents; the next run ends as if it had not been. Files that have vanished are
    reported, and removed from the index with `prune=True`. A file that cannot be read is reported and
    skipped. Raises `DocumentError` for a folder that cannot be read or holds no file of a known kind.
    """
    start = time.perf_counter()
    options = options or FolderOptions()
    path = _check_folder(folder)
    root = options.name if options.name is not None else str(path)
    check_text(root, what="name of the folder")
    found = find_files(path, include=options.include, exclude=options.exclude, leave_out=index.path)
    plan = _Plan(index, path, root, options)
    if not found.files and not found.skipped and not plan.known:
        raise _nothing_found(path, found.ignored)
    with progress("Reading", len(found.files), show=show_progress_bar) as advance:
        for source in found.files:
            plan.look_at(source)
            advance(1)
    added = index.add(
        plan.new_documents(),
        batch_size=options.batch_size,
        show_progress_bar=show_progress_bar,
        total=plan.count_new,
    )
    skipped = sorted({*found.skipped, *plan.skipped})
    vanished = plan.vanished({name for name, _ in skipped})
    gone = [identity for ids in vanished.values() for identity in ids] if prune else []
    removed = index.delete([*plan.stale(), *gone])
    return FolderReport(
        root=root,
        added=added,
        removed=removed,
        unchanged=plan.count_same,
        **plan.files_by_kind(),
        vanished=sorted(vanished),
        pruned=prune,
        skipped=skipped,
        ignored=dict(sorted(found.ignored.items())),
        seconds=time.perf_counter() - start,
    )


class _Plan:
    """What the files hold and what of it is new: found before anything is added, to know the total."""

    def __init__(self, index: Index, path: Path, root: str, options: FolderOptions) -> None:
        self._index = index
        self._path = path
        self._root = root
        self._options = options
        self.known = index.ids_by_source(root)
        self._kept: dict[str, list[Document]] = {}
        self._room = _KEPT_TEXT
        self._to_read: list[str] = []
        self.ids: dict[str, set[str]] = {}
        self.skipped: list[tuple[str, str]] = []
        self.count_new = self.count_same = 0

    def look_at(self, source: str) -> None:
        """Read a file; keep its new documents while there is room."""
        ids: set[str] = set()
        new: list[Document] = []
        count = size = 0
        try:
            for missing in self._missing(source, ids):
                count += len(missing)
                size += sum(len(document.text) for document in missing)
                if size <= self._room:
                    new += missing
        except DocumentError as error:
            self._skip(source, error)
            return
        if not ids:
            self.skipped.append((source, "it has no text."))
        self.ids[source] = ids
        self.count_new += count
        self.count_same += len(ids) - count
        if count:
            self._to_read.append(source)
            if size <= self._room:
                self._room -= size
                self._kept[source] = new

    def new_documents(self) -> Iterator[Document]:
        """The new documents of all files. Those that were not kept are read again, as they are by now."""
        for source in self._to_read:
            if source in self._kept:
                yield from self._kept.pop(source)
                continue
            self.ids[source] = ids = set[str]()
            try:
                for missing in self._missing(source, ids):
                    yield from missing
            except DocumentError as error:
                self._skip(source, error)
                ids.update(self.known.get(source, ()))

    def _missing(self, source: str, ids: set[str]) -> Iterator[list[Document]]:
        """Those documents of a file that the index does not have, page by page; `ids` gets the ids of all."""
        documents = read_documents(
            self._path / source, source=source, root=self._root, chunking=self._options.chunking
        )
        while batch := list(islice(documents, _PAGE)):
            ids.update(document.id for document in batch)
            yield self._index.missing(batch)

    def _skip(self, source: str, error: DocumentError) -> None:
        self.skipped.append((source, error.reason))
        logger.info("Skipped %s: %s", source, error.reason)

    def stale(self) -> list[str]:
        """The documents of files that were read which are no longer in them."""
        return [
            identity
            for source, ids in self.ids.items()
            for identity in self.known.get(source, ())
            if identity not in ids
        ]

    def vanished(self, unread: set[str]) -> dict[str, list[str]]:
        """The files that are not there, with their documents; nothing of what could not be read counts."""
        return {
            source: ids
            for source, ids in self.known.items()
            if source not in self.ids and not _is_under(source, unread)
        }

    def files_by_kind(self) -> dict[str, int]:
        """How many files are new, changed or the same."""
        kinds: Counter[str] = Counter()
        for source, ids in self.ids.items():
            known = set(self.known.get(source, ()))
            if known:
                kinds["same" if ids == known and source not in self._to_read else "changed"] += 1
            elif ids:
                kinds["new"] += 1
        return {kind: kinds[kind] for kind in ("new", "changed", "same")}


def _is_under(name: str, folders: set[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


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
        f"expected some of {', '.join(SUFFIXES)}.",
        hint="Hidden files and folders are not read.",
    )
