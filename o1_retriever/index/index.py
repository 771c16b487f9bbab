"""Documents and their vectors on disk, searched with Chroma."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from o1_retriever.concurrency.processes import SentUnmade
from o1_retriever.documents import Document
from o1_retriever.errors import (
    EncoderError,
    FingerprintError,
    IndexNotFoundError,
    InputError,
    SettingsError,
    StoreError,
)
from o1_retriever.guard import DRAWN, drawn
from o1_retriever.index.fields import MatchKeeper, Numbers
from o1_retriever.index.filters import Filter, Where, as_filter, batches, can_be_encoded, checked
from o1_retriever.index.graph import Graph, nearest
from o1_retriever.index.hits import Hit, IndexInfo, check_count, check_groups, check_queries, fused_hits, hits
from o1_retriever.index.ledger import EmbeddedDocument, Session, State, digest_of, metadata_json
from o1_retriever.index.store import LexiconKeeper, Store
from o1_retriever.ranking.bm25 import Reading
from o1_retriever.ranking.ranking import FUSION_DEPTH
from o1_retriever.reporting import counted, progress
from o1_retriever.thought import Vector
from o1_retriever.vectors import InSpace, Precision, TokenLimit, VectorSpace, unit

__all__ = ["DocumentEmbedder", "Hit", "Index", "IndexInfo"]

logger = logging.getLogger(__name__)

# Documents read at once where all are gone through, and ids deleted in one transaction.
_PAGE = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")

# What is embedded and written at once, in batches of the encoder: as many as take so long, which is what a
# kill may cost. Each write waits for the disk, and an encoder that sorts more texts by length pads less.
_LEAST_BATCHES, _MOST_BATCHES = 2, 16
_TOGETHER_S = 4.0


class DocumentEmbedder(InSpace, Protocol):
    """What turns documents into vectors; a `ThinkingEmbedder` does."""

    def encode_documents(
        self, documents: list[str], *, batch_size: int = ..., show_progress_bar: bool | None = ...
    ) -> Any:
        """A float array of shape (documents, dimension)."""


class Index(SentUnmade):
    """Keeps documents with their vectors in a folder and finds those nearest to a query vector.

    `path` is the folder, made when missing unless `create=False` (then `IndexNotFoundError`); each
    `collection` is a folder in it. `embedder` is what turns documents into vectors, a `ThinkingEmbedder`
    for instance; None opens an index that exists, for everything but `add`. An index built by another
    document space raises `FingerprintError`; another dtype, quantisation or device is only logged.

    Threads and processes may share an index: many read at a time, one writes at a time. A process that is
    killed while it writes leaves a whole index. Sent to another process, it is opened there when it is first
    used. `StoreError` when the files cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        embedder: DocumentEmbedder | None = None,
        *,
        collection: str = "documents",
        create: bool = True,
    ) -> None:
        if not _NAME.fullmatch(collection):
            raise SettingsError(
                f"The collection name {collection!r} cannot be used; expected 3 to 63 letters, digits, '.', "
                "'_' or '-', with a letter or digit at both ends."
            )
        self.path = Path(path).expanduser().resolve()
        self._arguments |= {"path": self.path, "create": False}  # as it is sent
        self.collection = collection
        self._embedder = embedder
        self._store = Store(self.path / collection, collection)
        self._lexicon = LexiconKeeper(self.path / collection)
        self._matches = MatchKeeper()
        self._per_second = 0.0  # texts that were embedded lately
        self._sampled: tuple[Any, Vector] | None = None
        if not self._store.ledger.exists():
            self._store.check_vacant()
            if embedder is None or not create:
                raise IndexNotFoundError(
                    f"Found no index in {self.path} (collection {collection!r}).",
                    hint="Type: o1-retriever index FOLDER",
                )
            self._store.ledger.create(
                State(space=embedder.space.to_dict(), precision=embedder.precision.to_dict())
            )
        state = self._store.ledger.opened()
        self._check_space(state)
        self._dimension = int(state.space["dimension"])
        self._store.open()

    def _check_space(self, state: State) -> None:
        if self._embedder is None:
            return
        space, precision = self._embedder.space.to_dict(), self._embedder.precision.to_dict()
        if space != state.space:
            raise FingerprintError(
                f"The index in {self._store.folder} was built by another document space: "
                f"{_differences(state.space, space)}.",
                hint="Use the embedder that built it, or index into another folder.",
            )
        if precision != state.precision:
            logger.warning(
                "The index in %s was built with another precision: %s. Scores will differ slightly.",
                self._store.folder,
                _differences(state.precision, precision),
            )

    def add(
        self,
        documents: Iterable[Any],
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        total: int | None = None,
    ) -> int:
        """Embed and keep documents; return how many were new or changed.

        A document is a `Document`, or what `Document.of` makes one of: a string, a dict, a document of
        LangChain, LlamaIndex or Haystack. They are streamed. Those that are in the index already are skipped,
        so that a run that was cut short can be repeated; a document with a known id and another text or
        metadata replaces it; a text that is known under another id is not embedded again. Equal texts without
        an id are kept as often as they come. `batch_size` is the embedder's. `total` is for the progress bar,
        where the documents have no length.

        Raises `InputError` with the position of a document that cannot be used, or that has the id of another
        one of this call, after keeping those before.
        """
        check_count("batch_size", batch_size)
        if total is None and isinstance(documents, Sized):
            total = len(documents)
        added = 0
        with progress("Indexing", total, show=show_progress_bar) as advance:
            for batch in batches(documents, lambda: self.portion(batch_size)):
                added += self._add(batch, batch_size)
                advance(len(batch))
        return added

    def put(self, documents: Sequence[EmbeddedDocument]) -> int:
        """Keep documents whose vectors are known; return how many were new or changed.

        They must be of the index's document space, which nobody checks here. Raises as `add` does.
        """
        plain = [checked(each.document, place) for place, each in enumerate(documents)]
        vectors = check_vectors([each.vector for each in documents], len(plain), self._dimension)
        known = dict(zip((each.id for each in plain), vectors, strict=True))
        last = [*{each.id: each for each in plain}.values()]
        new, _ = self._store.look(lambda session: new_documents(session, last))
        if new:
            self._store.write(put=[EmbeddedDocument(document=each, vector=known[each.id]) for each in new])
        return len(new)

    def add_at_once(self, documents: Sequence[Any], *, batch_size: int = 32) -> int:
        """`add`, with one write: for who gathers as many documents as `portion` says."""
        return sum(self._add(batch, batch_size) for batch in batches(documents, lambda: len(documents)))

    def _add(self, batch: Sequence[Document], batch_size: int) -> int:
        embedder = self._embedder
        if embedder is None:
            raise StoreError(
                f"The index in {self.path} was opened without an embedder; adding documents needs one.",
                hint="Open it with: Index(path, embedder)",
            )
        new, have = self._store.look(lambda session: new_documents(session, batch))
        if new:
            started = time.perf_counter()
            embedded = embed_documents(embedder, new, have, batch_size=batch_size)
            self._per_second = len(new) / max(1e-6, time.perf_counter() - started)
            self._store.write(put=embedded)
        return len(new)

    def portion(self, batch_size: int) -> int:
        """How many documents `add` embeds and writes at once: some seconds of work, by the last ones."""
        batches = int(_TOGETHER_S * self._per_second / batch_size)
        return batch_size * min(_MOST_BATCHES, max(_LEAST_BATCHES, batches))

    def missing(self, documents: Sequence[Document]) -> list[Document]:
        """Those that are not in the index with this text and metadata: what `add` would write."""
        plain = [checked(document, position) for position, document in enumerate(documents)]
        return self._store.look(lambda session: new_documents(session, plain)[0])

    def search(self, vectors: ArrayLike, *, k: int = 10, where: Where = None) -> list[list[Hit]]:
        """The `k` documents nearest to each vector, best first; fewer only when fewer match.

        `vectors` has the shape (n, dimension). `where` filters by metadata: `{"source": "a.md"}`,
        `{"page": {"$gte": 2}}`, `{"$or": [..., ...]}` (docs/filters.md). Equal scores are ordered by id.

        Raises `InputError` for vectors, `FilterError` for a filter that cannot be used.
        """
        queries = check_queries(vectors, self._dimension)
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
        """The `k` documents nearest to any vector of each group, best first: the score is the best cosine.

        A group has the shape (n, dimension). With `texts`, one per group, the ranking is fused with that of
        BM25 over the text (`ranking.fuse`). The first `depth` documents of each ranking take part (`k`
        if that is more), all of an index that has no more. BM25's index is made at the first such search
        after a change and kept beside the documents; `MissingExtraError` when bm25s is not installed.
        """
        check_count("k", k)
        check_count("depth", depth)
        filter = as_filter(where)
        queries = check_groups(groups, texts, self._dimension)
        k, depth = int(k), int(depth)

        def work(session: Session, graph: Graph) -> list[list[Hit]]:
            among = None if filter is None else self._matching(session, filter)
            if texts is None:
                return hits(session, nearest(session, graph, queries, k, among))
            lexicon, deep = self._lexicon.current(session), max(depth, k)
            dense = nearest(session, graph, queries, deep, among)
            places = None if among is None else lexicon.places(among)
            return [
                fused_hits(session, group, ranking, lexicon.best(text, deep, places), k, deep)
                for group, ranking, text in zip(queries, dense, texts, strict=True)
            ]

        return self._store.read(work)

    def _matching(self, session: Session, filter: Filter) -> Numbers:
        return self._matches.current(session.state().version, session.fields, filter)

    def get(self, ids: Sequence[str]) -> list[Document]:
        """The documents of those ids that are in the index, in the order of `ids`."""
        names = _check_ids(ids)
        found = self._store.look(lambda session: session.documents(_once(names)))
        return [found[identity].document for identity in names if identity in found]

    def vectors(self, ids: Sequence[str]) -> Vector:
        """The vectors of these ids as embedded, shape (n, dimension). `InputError` for unknown ids."""
        names = _check_ids(ids)
        found = self._store.look(lambda session: session.vectors(_once(names)))
        for position, identity in enumerate(names):
            if identity not in found:
                raise InputError(f"The index has no document {identity!r:.120}.", position=position)
        return np.array([found[name] for name in names], np.float32).reshape(len(names), self._dimension)

    def sample(self, count: int = DRAWN) -> Vector:
        """Unit vectors (n, dimension) of so many documents, drawn at random; the same ones until a change.

        There are none where the index holds fewer than five times as many: a large part of it is no sample
        of other subjects (`guard.off_subject`).
        """
        check_count("count", count)

        def work(session: Session) -> tuple[Any, Vector]:
            state, known = session.state().version, self._sampled
            if known is not None and known[0] == (state, count):
                return known
            numbers = session.numbers()
            chosen = np.sort(numbers[drawn(count, len(numbers))])
            pages = [page for _, page in session.vector_pages(chosen)] if len(chosen) else []
            rows = unit(np.concatenate(pages)) if pages else np.zeros((0, self._dimension), np.float32)
            return (state, count), rows

        self._sampled = known = self._store.look(work)  # another thread may have put its own there already
        return known[1]

    def ids(self, where: Where = None) -> list[str]:
        """The ids of all documents, or of those that match, in the order of their addition."""
        filter = as_filter(where)
        if filter is None:
            return self._store.look(lambda session: session.ids())
        return self._store.look(lambda session: session.ids(self._matching(session, filter)))

    def documents(self, where: Where = None) -> Iterator[Document]:
        """Go through all documents, or those that match, in the order of their addition, page by page."""
        names = self.ids(where)
        pages = (names[start : start + _PAGE] for start in range(0, len(names), _PAGE))
        return (document for page in pages for document in self.get(page))

    def ids_by_source(self, root: str = "") -> dict[str, list[str]]:
        """The ids of the documents of one indexed folder, by the file they come from."""
        return self._store.look(lambda session: session.ids_by_source(root))

    def delete(self, ids: Sequence[str] | None = None, *, where: Where = None) -> int:
        """Delete documents by id or by metadata; return how many there were. Unknown ids are no error.

        A filter that every document passes, such as {}, is refused: for all of them pass `index.ids()`.
        """
        filter = as_filter(where)
        if (ids is None) == (filter is None):
            raise InputError("delete was given both or none of ids and a filter; expected one of them.")
        names = self.ids(filter) if ids is None else _once(_check_ids(ids))
        return sum(
            self._store.write(remove=names[start : start + _PAGE]) for start in range(0, len(names), _PAGE)
        )

    def warm(self) -> None:
        """Begin to load the search graph in the background; a search waits for what is left of it.

        A `Retriever` calls it before it thinks: a graph of a million vectors takes seconds to load.
        """
        self._store.warm()

    @property
    def generation(self) -> int:
        """A number that grows with every change: what was derived at another one is stale."""
        return self._store.look(lambda session: session.state().generation)

    def count(self) -> int:
        """Number of documents."""
        return self._store.look(lambda session: session.count())

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        """An index is true even when it is empty."""
        return True

    def info(self) -> IndexInfo:
        """What is in the index, without a search."""
        state, documents, roots = self._store.look(
            lambda session: (session.state(), session.count(), session.sources())
        )
        files = [file for file in self._store.folder.rglob("*") if file.is_file()]
        return IndexInfo(
            path=self.path,
            collection=self.collection,
            chroma_path=self._store.chroma_path,
            documents=documents,
            roots=roots,
            space=VectorSpace(**state.space),
            precision=Precision(**state.precision),
            bytes=sum(file.stat().st_size for file in files),
        )

    def folders(self) -> list[str]:
        """The folders that it was made from."""
        return sorted(self._store.look(lambda session: session.sources()))

    @property
    def space(self) -> VectorSpace:
        """The document space of its vectors."""
        return VectorSpace(**self._store.look(lambda session: session.state().space))

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"The index in {self.path}"

    @property
    def token_limit(self) -> TokenLimit | None:
        """How long a document may be before its end is not embedded; None where the embedder does not say."""
        return getattr(self._embedder, "token_limit", None)

    @property
    def folder(self) -> Path:
        """The folder of this collection's own files."""
        return self._store.folder

    def close(self) -> None:
        """Let go of the files. Afterwards the index cannot be used; closing twice does nothing."""
        self._store.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _check_ids(ids: Sequence[str]) -> list[str]:
    names: list[Any] = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [None]
    if not all(isinstance(identity, str) for identity in names):
        raise InputError(f"Found the ids {ids!r:.60}; expected a list of strings.")
    return names


def _once(names: Iterable[str]) -> list[str]:
    """Each id once; one that cannot be encoded is in no index."""
    return [name for name in dict.fromkeys(names) if can_be_encoded(name)]


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    return ", ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} here" for name in names)


def new_documents(session: Session, batch: Sequence[Document]) -> tuple[list[Document], dict[bytes, Vector]]:
    """Those that are not in the index as they are, and what vectors of their texts there are."""
    known = session.known([document.id for document in batch])
    new = [
        document
        for document in batch
        if known.get(document.id) != (digest_of(document.text), metadata_json(document.metadata))
    ]
    return new, session.vectors_of_texts([digest_of(document.text) for document in new])


def embed_documents(
    embedder: DocumentEmbedder, documents: Sequence[Document], have: dict[bytes, Vector], *, batch_size: int
) -> list[EmbeddedDocument]:
    """The documents with their vectors. `have` are vectors by digest; each other text is embedded once."""
    digests = [digest_of(document.text) for document in documents]
    missing = {
        digest: document.text
        for digest, document in zip(digests, documents, strict=True)
        if digest not in have
    }
    vectors = dict(have)
    if missing:
        found = embedder.encode_documents(
            list(missing.values()), batch_size=batch_size, show_progress_bar=False
        )
        vectors.update(
            zip(missing, check_vectors(found, len(missing), embedder.space.dimension), strict=True)
        )
    return [
        EmbeddedDocument(document=document, vector=vectors[digest])
        for document, digest in zip(documents, digests, strict=True)
    ]


def check_vectors(vectors: Any, count: int, dimension: int) -> Vector:
    """Return the encoder's vectors as float32 of shape (count, dimension). Raises `EncoderError`."""
    array = np.asarray(vectors, dtype=np.float32)
    if array.shape != (count, dimension):
        raise EncoderError(
            f"The embedder returned an array of shape {array.shape} for {counted(count, 'document')}; "
            f"expected {(count, dimension)}."
        )
    bad = ~np.isfinite(array).all(axis=1) | ~array.any(axis=1)
    if bad.any():
        vectors, verb = counted(int(bad.sum()), "vector"), "is" if bad.sum() == 1 else "are"
        raise EncoderError(
            f"The embedder returned {vectors} of {count} that {verb} zero or not finite; "
            "expected a direction for each."
        )
    return array
