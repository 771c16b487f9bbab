"""The search graph: a Chroma collection in a folder of its own, which can be thrown away and built again.

The k nearest documents are exact where that is cheap, else from the graph. HNSW is approximate. It also loses
documents altogether where many are equal: with 700 copies of one text among 3000, one graph in ten does not
reach some of them however many are asked for. So the copies of what it found are looked up in the ledger.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.errors import StoreError, require
from o1_retriever.index.fields import Numbers
from o1_retriever.index.ledger import LEDGER_FILE, EmbeddedDocument, Session, State, Version
from o1_retriever.ranking.ranking import DIGITS, Ranking, best, best_of_groups, search_pages
from o1_retriever.thought import Vector
from o1_retriever.vectors import unit

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.collection_configuration import CreateHNSWConfiguration
    from chromadb.api.models.Collection import Collection

logger = logging.getLogger(__name__)

# Measured with all-MiniLM-L6-v2 on the 11,571 facts of EntailmentBank against an exact search: recall@10 is
# 0.997 and recall@100 0.984 with Chroma's defaults (100, 100), 1.000 and 0.9999 with these, for 1 ms a query
# more. On random vectors, which have no neighbourhoods, the defaults find 36 %.
HNSW: CreateHNSWConfiguration = {
    "space": "cosine",
    "ef_construction": 200,
    "ef_search": 400,
    "max_neighbors": 32,
}
# Asked for beyond what is wanted, so that documents of equal score at the end can be told apart by id.
SPARE = 32
# Documents in one call of Chroma, which takes 5461 at most.
_AT_ONCE = 2000
# So many are compared one by one: 5 ms for 384 dimensions, as long as embedding a query takes at the least.
_EXACT = 2000
# So many times more documents are asked of the graph than chance would need for a filter, twice in a row.
_MARGIN = 4
# A document of the graph takes as long as comparing so many: 15 and 5 µs, with what the ledger is asked for.
_GRAPH_COST = 3
# Bytes of a file whose checksum is taken after every write, in 20 ms; that of a larger one when all is done.
_SUMMED_AT_ONCE = 1 << 26
# The file that Chroma writes when it saves a graph, and without which it loads none.
_SAVED = "index_metadata.pickle"
# First hits whose cosines are compared with the ledger's, in 0.1 ms, and by how much they may differ.
_COMPARED, _ROUNDING = 16, 1e-3
# Copies of one text that are looked at where a filter decides between them.
_COPIES = 5000


class DamagedGraphError(Exception):
    """Chroma cannot open or use its files, it seems; `Graph.damage` finds out whether they are to blame."""


class WrongGraphError(DamagedGraphError):
    """What the graph says of a document is not what the ledger holds of it: that is proof enough."""


class Graph(Renewed):
    """The collection as this process sees it, for one index; reopened when another process has changed it.

    Chroma keeps what it has read, one system per folder and process, and never looks again. So all indexes
    of a process on one folder share one `Graph` (`Graph.shared`), and `open` compares generations.
    """

    _shared: ClassVar[dict[Path, Graph]] = {}
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._users = 0
        self._sums: dict[Path, tuple[tuple[int, ...], int]] = {}
        self._client: Client | None = None
        super().__init__()

    def renew(self) -> None:
        """Begin without a client. That of a parent process is not used, nor closed: its threads are gone."""
        self._lock = threading.RLock()
        Graph._shared_lock = threading.Lock()
        _INHERITED.append(self._client)
        self._client = None
        self._collection: Collection | None = None
        self._opened: Version | None = None

    @classmethod
    def shared(cls, folder: Path, name: str) -> Graph:
        """The graph of `folder` in this process; give it back with `release`."""
        require("chromadb", extra="index", purpose="The document index")
        with cls._shared_lock:
            graph = cls._shared.setdefault(folder, cls(folder, name))
            graph._users += 1
            return graph

    def release(self) -> None:
        """Close Chroma when nobody else uses it."""
        with self._shared_lock:
            self._users -= 1
            if self._users <= 0:
                self._shared.pop(self.folder, None)
                self._close()

    def path(self, number: int) -> Path:
        """The folder of Chroma's files; a rebuilt graph takes the next number."""
        return self.folder / f"chroma-{number}"

    def sizes(self, number: int) -> dict[str, int]:
        """Bytes of the files that Chroma loads without checking them, by their path.

        With fewer than 1,000 documents it loads none: it makes the graph of what its log has, and writes the
        files anew, memory that nobody has set among them, each time that it opens them.
        """
        folder = self.path(number)
        loaded = (file for saved in folder.glob(f"*/{_SAVED}") for file in saved.parent.iterdir())
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in loaded}

    def sums(self, number: int, *, large: bool = False) -> dict[str, int]:
        """Checksums of these files, of `large` ones too or where they are known."""
        folder = self.path(number)
        return {
            name: self._sum(folder / name)
            for name, size in self.sizes(number).items()
            if large or size <= _SUMMED_AT_ONCE or self._known_sum(folder / name) is not None
        }

    def _known_sum(self, file: Path) -> int | None:
        known = self._sums.get(file)
        return known[1] if known is not None and known[0] == _mark(file) else None

    def _sum(self, file: Path) -> int:
        """The checksum of a file, which is read again where it has changed."""
        found = self._known_sum(file)
        if found is None:
            mark, found = _mark(file), 0
            with file.open("rb") as opened:
                while part := opened.read(1 << 22):
                    found = zlib.crc32(part, found)
            self._sums[file] = mark, found
        return found

    @property
    def lost(self) -> bool:
        """Whether this is a fork of a process that has used Chroma: its threads are not here."""
        return _used_in not in (None, os.getpid())

    @property
    def is_open(self) -> bool:
        """Whether this process has loaded it, at whatever generation, or never will."""
        return self._opened is not None or self.lost

    def open(self, state: State, *, reading: bool = False) -> None:
        """Make sure that what this process sees is that generation. Raises `DamagedGraphError`.

        For `reading`, nothing is opened where the graph is lost: the ledger has all that is read.
        """
        if reading and self.lost:
            return
        number = state.graph
        with self._lock:
            # A writer that died may have changed the ledger of a generation that is open here.
            if self.holds(state):
                return
            self._close()
            if state.dirty:
                raise DamagedGraphError("a write was interrupted")
            if not (self.path(number) / "chroma.sqlite3").is_file():
                raise DamagedGraphError(f"{self.path(number)} is missing")
            if self.sizes(number) != state.sizes:
                raise self._changed(number)
            if self._written_later(number):  # Chroma may crash on what somebody else has written
                self._check(state)
                self._load(number)
            else:
                with ThreadPoolExecutor(1) as executor:
                    # Beside loading, which reads the same files: only a failing disk has changed them.
                    check = executor.submit(self._check, state)
                    self._load(number)
                check.result()
            self._opened = state.version

    def _load(self, number: int) -> None:
        with _translated():
            self._client = _client(self.path(number))
            self._collection = self._client.get_collection(self.name, embedding_function=None)
            # Loads the graph and applies what has been written since it was saved.
            self._collection.get(limit=1, include=[])

    def _written_later(self, number: int) -> bool:
        """Whether a file is younger than the ledger, where a write of ours ends."""
        folder = self.path(number)
        times = [(folder / name).stat().st_mtime_ns for name in self.sizes(number)]
        return max(times, default=0) > (self.folder / LEDGER_FILE).stat().st_mtime_ns

    def _check(self, state: State) -> None:
        """Raise `DamagedGraphError` unless the files that have a checksum are as they were written."""
        folder = self.path(state.graph)
        try:
            same = all(self._sum(folder / name) == found for name, found in state.sums.items())
        except OSError:
            same = False
        if not same:
            raise self._changed(state.graph)

    def _changed(self, number: int) -> DamagedGraphError:
        return DamagedGraphError(f"files in {self.path(number)} have been changed")

    def damage(self, state: State, *, written: bool = False) -> DamagedGraphError | None:
        """What keeps the files from being opened and searched, after a use of them failed; None: nothing.

        After a part of them was `written`, they may have grown since that state. Nobody else may be using
        them.
        """
        with self._lock:
            try:
                self._close()
                if written:
                    now = self.sizes(state.graph)
                    if any(now.get(name, 0) < size for name, size in state.sizes.items()):
                        return DamagedGraphError(f"files in {self.path(state.graph)} have been cut")
                    state = replace(state, sizes=now, sums={})
                self.open(state)
                self.nearest(np.ones((1, int(state.space["dimension"])), np.float32), 1)
            except DamagedGraphError as error:
                return error
            return None

    def begin(self, number: int, metadata: dict[str, str | int]) -> None:
        """Make an empty collection in a new folder; `metadata` is for those who open it with Chroma alone."""
        with self._lock, _translated():
            self._close()
            self._client = _client(self.path(number))
            self._collection = self._client.create_collection(
                self.name, configuration={"hnsw": HNSW}, embedding_function=None, metadata=metadata
            )

    def holds(self, state: State) -> bool:
        """Whether that generation is the one that is open here, and whole."""
        return not state.dirty and self._opened == state.version

    def advance(self, state: State) -> None:
        """Say that this process has just made that generation."""
        self._opened = state.version

    def _close(self) -> None:
        self._opened = self._collection = None
        if self._client is not None:
            client, self._client = self._client, None
            client.close()

    @property
    def _open_collection(self) -> Collection:
        if self._collection is None:
            raise DamagedGraphError("Chroma is not open")
        return self._collection

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Add vectors, or replace those of the same id. Text and metadata stand in the ledger alone."""
        with _translated():
            for start in range(0, len(documents), _AT_ONCE):
                part = documents[start : start + _AT_ONCE]
                self._open_collection.upsert(
                    ids=[each.document.id for each in part],
                    embeddings=np.stack([each.vector for each in part]),
                )

    def remove(self, ids: Sequence[str]) -> None:
        """Delete vectors."""
        with _translated():
            for start in range(0, len(ids), _AT_ONCE):
                self._open_collection.delete(ids=list(ids[start : start + _AT_ONCE]))

    def nearest(self, vectors: Vector, count: int) -> list[Ranking]:
        """The ids nearest to each vector with their cosines: `count` and some more to tell ties apart.

        The graph is approximate, so there may be fewer.
        """
        with _translated():
            found = self._open_collection.query(
                query_embeddings=vectors, n_results=count + SPARE, include=["distances"]
            )
        return [
            Ranking(np.array(ids, dtype=object), 1.0 - np.array(distances, dtype=np.float64))
            for ids, distances in zip(found["ids"], found["distances"] or [], strict=True)
        ]


def _mark(file: Path) -> tuple[int, ...]:
    """What changes where a file is written."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


_INHERITED: list[Client | None] = []
_used_in: int | None = None  # the process in which Chroma was first used


def _client(folder: Path) -> Client:
    """Chroma, opened. Raises `StoreError` in a fork of a process that has used it: it would wait for ever."""
    global _used_in
    import chromadb
    from chromadb.config import Settings

    if _used_in not in (None, os.getpid()):
        raise StoreError(
            "Chroma was used before this process was forked, and its threads are not in the fork: an "
            "index can be searched here, and not be written.",
            hint="Write it in the parent, or start processes with multiprocessing.get_context('spawn').",
        )
    _used_in = os.getpid()

    client = chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
    return cast("Client", client)


@contextmanager
def _translated() -> Iterator[None]:
    """Turns Chroma's errors into `DamagedGraphError`, or `StoreError` when the disk is full."""
    try:
        yield
    except (DamagedGraphError, StoreError):
        raise
    except BaseException as error:
        # Rust panics over some damaged files; that exception is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "disk is full" in str(error) or "No space left" in str(error):
            raise StoreError(
                "The disk of the index is full.", hint="Free some space and type the command again."
            ) from error
        raise DamagedGraphError(f"{type(error).__name__}: {error}") from error


def nearest(
    session: Session, graph: Graph, groups: Sequence[Vector], k: int, among: Numbers | None = None
) -> list[Ranking]:
    """The k best ids for each group of vectors, with the best cosine that one of the group has.

    Of equal ones (to `DIGITS`), the smaller id is first. `among` are the documents that count (None: all).
    """
    if not groups:
        return []
    rankings = _nearest(session, graph, np.concatenate(groups), k, among)
    return best_of_groups(rankings, map(len, groups), k, digits=DIGITS)


def _nearest(session: Session, graph: Graph, vectors: Vector, k: int, among: Numbers | None) -> list[Ranking]:
    count = session.count(at_most=max(k, _EXACT + 1)) if among is None else len(among)
    every = count if among is None else session.highest()
    if graph.lost or count <= _EXACT or (among is not None and _is_cheap(count, k, every)):
        return _exact(session.vector_pages(among), vectors, k)
    wanted = min(k, count)
    # The graph knows nothing of filters: it is asked for so many that those that count are among them.
    asked = min(every, wanted * every // count * (_MARGIN if every > count else 1))
    rankings = _reached(session, graph, vectors, asked, k, among)
    for place, vector in enumerate(vectors):
        if len(rankings[place]) < wanted and asked * _MARGIN < every:
            (rankings[place],) = _reached(session, graph, vector[None], asked * _MARGIN, k, among)
        if len(rankings[place]) < wanted:
            (rankings[place],) = _exact(session.vector_pages(among), vector[None], k)
    return rankings


def _is_cheap(count: int, k: int, every: int) -> bool:
    """Whether comparing `count` of all documents is less work than what the graph would be asked for."""
    return count * count <= _GRAPH_COST * _MARGIN * k * every


def _exact(pages: Iterable[tuple[list[str], Vector]], vectors: Vector, k: int) -> list[Ranking]:
    """The k best of the documents in `pages`, each compared."""
    named = ((np.array(ids, dtype=object), unit(page)) for ids, page in pages)
    return [_clipped(ranking) for ranking in search_pages(unit(vectors), named, k, digits=DIGITS)]


def _reached(
    session: Session, graph: Graph, vectors: Vector, asked: int, k: int, among: Numbers | None
) -> list[Ranking]:
    """The first k for each vector, of those that the graph knows and of copies that it did not reach."""
    rankings = graph.nearest(vectors, asked)
    for vector, found in zip(vectors, rankings, strict=True):
        _check_first(session, vector, found)
    return [_with_copies(session, found, k, among) for found in rankings]


def _check_first(session: Session, vector: Vector, found: Ranking) -> None:
    """Raise `WrongGraphError` where one of the first has another cosine than by its vector in the ledger.

    A vector that the disk has changed comes first for some queries, and never again for others.
    """
    said = dict(itertools.islice(found.pairs(), _COMPARED))
    vectors = session.vectors(list(said))
    missing = said.keys() - vectors.keys()
    if said and not missing:
        rows = unit(np.stack([vectors[identity] for identity in said]))
        differences = np.abs(rows @ unit(vector[None])[0] - np.fromiter(said.values(), np.float64))
        missing = {identity for identity, far in zip(said, differences > _ROUNDING, strict=True) if far}
    if missing:
        raise WrongGraphError(f"it has another vector of {min(missing)!r:.60} than the ledger")


def _with_copies(session: Session, found: Ranking, k: int, among: Numbers | None) -> Ranking:
    scores = dict(found.pairs())
    copies = session.copies(list(scores), limit=k if among is None else _COPIES)
    scores |= {copy: scores[id] for id, others in copies.items() for copy in others if copy not in scores}
    if among is not None:
        allowed = session.among(list(scores), among)
        scores = {id: score for id, score in scores.items() if id in allowed}
    keys = np.array([*scores], dtype=object)
    return _clipped(best(keys, np.array([*scores.values()]), k, digits=DIGITS))


def _clipped(ranking: Ranking) -> Ranking:
    """Cosines are at most 1, whatever rounding has made of them."""
    return Ranking(ranking.keys, np.asarray(np.clip(ranking.scores, -1.0, 1.0), ranking.scores.dtype))
