"""Vector stores of others, searched as our own index is: by vectors, by words too, and by one grammar of
filters.

What a store cannot do is done here. It is asked with a weaker filter, as much of it as it understands, and
what it finds is looked at again; where too little is left, all that match are compared. BM25 reads the texts
of the whole store when it is first asked for, and again when the number of documents has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.documents.document import Document
from o1_retriever.errors import FingerprintError, InputError, SettingsError, StoreError, require
from o1_retriever.guard import DRAWN, drawn
from o1_retriever.index.filters import Condition, Filter, Part, Where, as_filter, passes, weaker
from o1_retriever.index.graph import SPARE
from o1_retriever.index.hits import Hit, check_count, check_groups, check_queries, fused_hits, hits
from o1_retriever.index.index import Index
from o1_retriever.index.ledger import EmbeddedDocument
from o1_retriever.index.shards import Manifest, read_shard
from o1_retriever.ranking.bm25 import Bm25, Reading
from o1_retriever.ranking.ranking import DIGITS, FUSION_DEPTH, Ranking, best, best_of_groups, search_pages
from o1_retriever.reporting import counted, progress
from o1_retriever.thought import Vector
from o1_retriever.vectors import Precision, VectorSpace, searching, unit

# Which prefix of an address names a store; anything else is the folder of an index of ours.
KINDS = ("chroma", "qdrant", "lancedb", "postgresql", "postgres")
_MORE = 4  # times as many documents are asked for where a filter has left too few
_MOST = 10_000  # asked for at once; after that, all that match are compared
_DRAWN_FROM = 20  # documents that are looked at for one of a sample


class VectorStore(Protocol):
    """What an adapter of a store can do. Documents are those of one collection or table."""

    name: str
    """What errors call it."""

    def description(self) -> dict[str, Any] | None:
        """What `begin` has noted; None for a collection of others, or where there is none."""

    def begin(self, description: dict[str, Any], dimension: int) -> None:
        """Make the collection, for cosines, unless it is there."""

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Keep documents, or replace those of the same id."""

    def finish(self) -> None:
        """What is to be done when everything is loaded, such as making an index."""

    def count(self) -> int:
        """Number of documents."""

    def can(self, condition: Condition) -> bool:
        """Whether it finds all documents that pass, and possibly others."""

    def nearest(self, vectors: Vector, count: int, part: Part | None) -> list[list[Near]]:
        """The documents nearest to each vector (n, dimension), about so many, of those that pass `part`.

        It is made of conditions that the store `can`.
        """

    def documents(self, ids: Sequence[str]) -> dict[str, EmbeddedDocument]:
        """The documents of those ids that are there."""

    def pages(self, part: Part | None, *, vectors: bool) -> Iterator[list[EmbeddedDocument]]:
        """All documents that pass `part`, some at a time; their vectors are empty unless asked for."""

    def close(self) -> None:
        """Let go of what is open."""


@dataclass(frozen=True, slots=True)
class Near:
    """A document that a store has found: its id, its cosine, and its metadata to filter on."""

    id: str
    cosine: float
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Words:
    """BM25 over so many documents; their ids in ascending order, the order of equal scores."""

    count: int
    ids: list[str]
    bm25: Bm25


class ForeignIndex(Renewed):
    """A collection of a vector store, for a `Retriever`: dense, hybrid, filtered and explained as ours.

    `space` is the document space of its vectors; None takes what `o1-retriever load` has noted with them, and
    `StoreError` says that nothing is. `stores_o1_retriever.open_index` opens one by its address. Searching
    may be approximate, as the store is.
    """

    def __init__(self, store: VectorStore, *, space: VectorSpace | None = None) -> None:
        self.store = store
        self._space = space or _noted_space(store)
        self._words: _Words | None = None
        self._sampled: tuple[int, Vector] | None = None
        super().__init__()

    def renew(self) -> None:
        """A free lock; what is known stays."""
        self._lock = threading.Lock()

    @property
    def space(self) -> VectorSpace:
        """The document space of its vectors."""
        return self._space

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.store.name

    def search(self, vectors: ArrayLike, *, k: int = 10, where: Where = None) -> list[list[Hit]]:
        """The `k` documents nearest to each vector, best first. All as in `Index.search`."""
        queries = check_queries(vectors, self._space.dimension)
        return self.search_groups([query[None] for query in queries], k=k, where=where)

    def search_groups(
        self,
        groups: Sequence[ArrayLike],
        *,
        k: int = 10,
        where: Where = None,
        texts: Sequence[str | Reading] | None = None,
        depth: int = FUSION_DEPTH,
    ) -> list[list[Hit]]:
        """The `k` documents nearest to any vector of each group. All as in `Index.search_groups`."""
        check_count("k", k)
        check_count("depth", depth)
        filter = as_filter(where)
        queries = check_groups(groups, texts, self._space.dimension)
        if texts is None:
            return hits(self.store, self._nearest(queries, k, filter))
        words, deep = self._lexicon(), max(depth, k)
        places = None if filter is None else self._places(words, filter)
        lexical = (words.bm25.best(text, deep, among=places).by_id(words.ids) for text in texts)
        return [
            fused_hits(self.store, group, ranking, scores, k, deep)
            for group, ranking, scores in zip(
                queries, self._nearest(queries, deep, filter), lexical, strict=True
            )
        ]

    def _nearest(self, queries: Sequence[Vector], k: int, filter: Filter | None) -> list[Ranking]:
        if not queries:
            return []
        vectors = np.concatenate(queries)
        with searching(self.name, vectors.shape[1]):
            rankings = self._rankings(vectors, k, filter)
        return best_of_groups(rankings, map(len, queries), k, digits=DIGITS)

    def _rankings(self, vectors: Vector, k: int, filter: Filter | None) -> list[Ranking]:
        """The first k for each vector; all that match are compared where the store does not bring as many."""
        part = self._asked(filter)
        found, asked = [], k + SPARE
        while True:
            near = self.store.nearest(vectors, asked, part)
            found = [_ranking(each, k, filter) for each in near]
            lacking = [place for place, ranking in enumerate(found) if len(ranking) < k]
            # It has brought all that it has, or the graph has lost some: which of them is not known.
            spent = all(len(near[place]) < asked for place in lacking)
            if not lacking or spent or asked >= _MOST:
                break
            asked = min(_MOST, asked * _MORE)
        if lacking and (filter is not None or max(map(len, found)) < min(k, self.count())):
            for place, ranking in zip(lacking, self._compared(vectors[lacking], k, filter), strict=True):
                found[place] = ranking
        return found

    def _compared(self, vectors: Vector, k: int, filter: Filter | None) -> list[Ranking]:
        """The first k of all that match, each compared."""
        pages = (
            [each for each in page if filter is None or passes(filter.part, each.document.metadata)]
            for page in self.store.pages(self._asked(filter), vectors=True)
        )
        named = (
            (
                np.array([each.document.id for each in page], dtype=object),
                unit(np.stack([each.vector for each in page])),
            )
            for page in pages
            if page
        )
        return search_pages(unit(vectors), named, k, digits=DIGITS)

    def _asked(self, filter: Filter | None) -> Part | None:
        return None if filter is None else weaker(filter.part, self.store.can)

    def _matching(self, filter: Filter | None) -> Iterator[Document]:
        for page in self.store.pages(self._asked(filter), vectors=False):
            for each in page:
                if filter is None or passes(filter.part, each.document.metadata):
                    yield each.document

    def _lexicon(self) -> _Words:
        with self._lock:
            count = self.count()
            if self._words is None or self._words.count != count:
                texts = {document.id: document.text for document in self._matching(None)}
                ids = sorted(texts)
                self._words = _Words(count, ids, Bm25([texts[id] for id in ids]))
            return self._words

    def _places(self, words: _Words, filter: Filter) -> Any:
        allowed = {document.id for document in self._matching(filter)}
        return np.array([place for place, id in enumerate(words.ids) if id in allowed], np.int64)

    def refresh(self) -> None:
        """Forget what was read of the store: BM25 reads the texts again when it is next asked for."""
        with self._lock:
            self._words = self._sampled = None

    def get(self, ids: Sequence[str]) -> list[Document]:
        """The documents of those ids that are there, in the order of `ids`."""
        found = self.store.documents(list(ids))
        return [found[id].document for id in ids if id in found]

    def vectors(self, ids: Sequence[str]) -> Vector:
        """The vectors of these ids, shape (n, dimension). `InputError` for unknown ids."""
        found = self.store.documents(list(ids))
        for position, id in enumerate(ids):
            if id not in found:
                raise InputError(f"{self.name} has no document {id!r:.120}.", position=position)
        return np.array([found[id].vector for id in ids], np.float32).reshape(len(ids), self._space.dimension)

    def ids(self, where: Where = None) -> list[str]:
        """The ids of all documents, or of those that match, in ascending order."""
        return sorted(document.id for document in self._matching(as_filter(where)))

    def sample(self, count: int = DRAWN) -> Vector:
        """Unit vectors (n, dimension) of so many of the first documents, drawn as by `Index.sample`."""
        if self._sampled is None or self._sampled[0] != count:
            pages = self.store.pages(None, vectors=True)
            rows: list[Vector] = []
            for each in chain.from_iterable(pages):
                rows.append(each.vector)
                if len(rows) >= _DRAWN_FROM * count:
                    break
            chosen = [rows[place] for place in drawn(count, len(rows))]
            none = np.zeros((0, self._space.dimension), np.float32)
            self._sampled = count, unit(np.stack(chosen)) if chosen else none
        return self._sampled[1]

    def put(self, documents: Sequence[EmbeddedDocument]) -> int:
        """Keep documents whose vectors are known, or replace those of the same id; return how many."""
        last = [*{each.document.id: each for each in documents}.values()]
        self.store.put(last)
        return len(last)

    def folders(self) -> list[str]:
        """None that are known: a store of others was not made from folders."""
        return []

    def warm(self) -> None:
        """Nothing: the store is loaded where it runs."""

    def count(self) -> int:
        """Number of documents."""
        return self.store.count()

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        """It is true even when it is empty."""
        return True

    def close(self) -> None:
        """Let go of the connection."""
        self.store.close()

    def __enter__(self) -> ForeignIndex:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _ranking(near: Sequence[Near], k: int, filter: Filter | None) -> Ranking:
    kept = [each for each in near if filter is None or passes(filter.part, each.metadata)]
    keys = np.array([each.id for each in kept], dtype=object)
    return best(keys, np.clip([each.cosine for each in kept], -1.0, 1.0), k, digits=DIGITS)


def _noted_space(store: VectorStore) -> VectorSpace:
    noted = store.description()
    if noted is None:
        raise StoreError(
            f"{store.name} does not say which embedder made its vectors.",
            hint="If you know that yours did, open it with space=embedder.space, or type: o1-retriever load",
        )
    return VectorSpace(**noted["space"])


class Target(AbstractContextManager[Any], Protocol):
    """Where documents with their vectors are loaded."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def put(self, documents: Sequence[EmbeddedDocument]) -> int:
        """Keep documents; how many were new, or were written."""

    def count(self) -> int:
        """Number of documents."""


def opened_for(address: str, collection: str, folder: Path) -> Target:
    """The store at an address, begun for the document space of a folder of shards if it is new.

    Raises `FingerprintError` for one of another space, and `SettingsError` for an address that is none.
    """
    manifest = Manifest.read(folder)
    space = VectorSpace(**manifest.space)
    if not manifest.texts:
        raise SettingsError(
            f"The shards in {folder} have no texts, which a store needs.",
            hint="Embed again without --no-texts.",
        )
    kind = address.partition(":")[0]
    if kind not in KINDS:
        return Index(address, _Made(space, Precision(**manifest.precision)), collection=collection)
    package = require("stores_o1_retriever", extra="stores", purpose=f"Loading into {kind}")
    store: VectorStore = package.open_store(address, collection)
    noted = store.description()
    if noted is None:
        description = {"made_by": "o1-retriever", "space": manifest.space, "precision": manifest.precision}
        store.begin(description, space.dimension)
    elif VectorSpace(**noted["space"]) != space:
        theirs = VectorSpace(**noted["space"]).fingerprint
        raise FingerprintError(
            f"{store.name} is of the document space {theirs}, the shards of {space.fingerprint}.",
            hint="Load into another collection: --collection NAME",
        )
    return ForeignIndex(store, space=space)


def load_shards(folder: Path, target: Target, *, show_progress_bar: bool | None = None) -> int:
    """Load all documents of a folder of shards; return how many there are. Loading again doubles nothing.

    Raises `StoreError` where the store then has fewer.
    """
    manifest = Manifest.read(folder)
    with progress("Loading", manifest.documents, show=show_progress_bar) as advance:
        for shard in manifest.shards:
            for page in read_shard(folder / shard.name):
                target.put(page)
                advance(len(page))
    if isinstance(target, ForeignIndex):
        target.store.finish()
    expected = manifest.documents - manifest.repeated_ids
    if target.count() < expected:
        raise StoreError(
            f"{target.name} has {counted(target.count(), 'document')} after loading; expected {expected:,}.",
            hint="Type the same command again.",
        )
    return manifest.documents


@dataclass(frozen=True, slots=True)
class _Made:
    """The embedder that has made shards: nothing is embedded any more."""

    space: VectorSpace
    precision: Precision

    def encode_documents(self, documents: list[str], **_options: Any) -> Any:
        """Nothing can be embedded."""
        raise StoreError(f"{counted(len(documents), 'document')} came without vectors.")
