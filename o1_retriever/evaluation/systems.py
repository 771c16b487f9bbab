"""The systems that are compared: dense with and without thoughts, BM25, HyDE, their fusion; and the plan."""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import numpy as np

from o1_retriever.cache import default_cache_path
from o1_retriever.documents import Document
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Corpus, EncodedCorpus, encode_corpus
from o1_retriever.guard import DRAWN, drawn
from o1_retriever.index.graph import Graph
from o1_retriever.index.ledger import EmbeddedDocument
from o1_retriever.ranking.bm25 import Bm25, Reading
from o1_retriever.ranking.ranking import (
    DIGITS,
    FUSION_DEPTH,
    Places,
    Ranking,
    best,
    best_of_groups,
    fuse,
    search_exactly,
    tie_order,
)
from o1_retriever.reporting import counted
from o1_retriever.search.result import Pooling
from o1_retriever.thought import Thought, ThoughtSettings, Vector
from o1_retriever.vectors import unit

NEVER = ThoughtSettings(thinking="never")
_PAGE = 5000  # vectors that are put into a graph at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallLost:
    """Share of the exact result that an approximate search missed, at 10 documents and at `depth`."""

    at_10: float
    at_depth: float
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a system found: a ranking for each query, and the thoughts that led there (none: an empty tuple).

    `recall_lost` compares an approximate search with the exact one. `documents_per_second` is the rate at
    which the corpus was encoded or indexed, None where it was not timed.
    """

    rankings: Sequence[Ranking]
    thoughts: Sequence[Sequence[Thought]]
    recall_lost: RecallLost | None = None
    documents_per_second: float | None = None


class System(Protocol):
    """Anything that ranks the documents of a corpus for queries."""

    @property
    def name(self) -> str:
        """How the system is called in a table."""
        ...

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """The best `depth` documents for each query."""
        ...


@dataclass(kw_only=True, eq=False)
class _OverCorpus:
    """A system with a name over the documents of a corpus."""

    name: str
    corpus: Corpus

    @cached_property
    def _ties(self) -> Places:
        return tie_order(self.corpus.ids)


@dataclass(kw_only=True, eq=False)
class Dense(_OverCorpus):
    """Inner product with the vectors of an encoded corpus; thinks as `settings` say.

    With a `graph` of these vectors the search goes through it, and the recall that this loses is reported.
    `pooling="best"` searches for each thought: a document's score is its best; "mean" searches once for
    their mean.
    """

    embedder: ThinkingEmbedder
    encoded: EncodedCorpus
    settings: ThoughtSettings = NEVER
    graph: VectorGraph | None = None
    pooling: Pooling = "mean"

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """Exactly, or through the graph where there is one."""
        groups, thoughts = self._embedded(queries)
        vectors, ties = np.concatenate(groups), self._ties
        found = search_exactly(vectors, self.encoded.matrix, depth, ties=ties)
        rankings = best_of_groups(found, map(len, groups), depth, ties=ties)
        lost = None
        if self.graph is not None:
            found = self.graph.search(vectors, depth, ties=ties)
            exact, rankings = rankings, best_of_groups(found, map(len, groups), depth, ties=ties)
            lost = recall_lost(exact, rankings, depth)
        return Answer(
            rankings=rankings,
            thoughts=thoughts,
            recall_lost=lost,
            documents_per_second=self.encoded.documents_per_second,
        )

    @cached_property
    def _passages(self) -> Vector:
        """Vectors of documents drawn at random; none where the corpus is too small for it."""
        return np.asarray(self.encoded.matrix[drawn(DRAWN, len(self.encoded.matrix))])

    def _embedded(self, queries: Sequence[str]) -> tuple[list[Vector], Sequence[Sequence[Thought]]]:
        """The vectors to search with for each query, and its thoughts."""
        dimension = self.encoded.matrix.shape[1]
        embedded = self.embedder.embed_queries(
            queries, settings=self.settings, batch_size=32, truncate_dim=dimension
        )
        if self.settings.thinks and self.settings.guard:
            embedded = self.embedder.on_subject(embedded, self._passages, settings=self.settings)
        groups = [item.vectors if self.pooling == "best" else item.vector[None] for item in embedded]
        return groups, [item.thoughts for item in embedded]


@dataclass(kw_only=True, eq=False)
class Hyde(Dense):
    """HyDE: the mean of the vectors of the query and of its thoughts, each embedded as a document."""

    def _embedded(self, queries: Sequence[str]) -> tuple[list[Vector], Sequence[Sequence[Thought]]]:
        dimension = self.encoded.matrix.shape[1]
        thoughts = self.embedder.think(queries, settings=self.settings)
        plain = np.asarray(self.embedder.encode_queries(queries, settings=NEVER, truncate_dim=dimension))
        usable = [[each.text for each in row if each.usable and each.text.strip()] for row in thoughts]
        texts = [text for row in usable for text in row]
        written = np.asarray(self.embedder.encode_documents(texts, truncate_dim=dimension))
        ends = np.cumsum([len(row) for row in usable])
        groups = zip(plain, np.split(written, ends[:-1]), strict=True)
        means = np.stack([np.vstack([vector[None], rows]).mean(axis=0) for vector, rows in groups])
        return list(unit(means)[:, None]), thoughts


@dataclass(kw_only=True, eq=False)
class Lexical(_OverCorpus):
    """BM25 (Lucene's variant, English stemming and stop words) over the query, or over query and thoughts.

    With `settings` that think, `embedder` writes the thoughts, and BM25 reads them beside the query (see
    `ranking.bm25.Reading`). Documents that share no word with what is read are not found.
    """

    index: Bm25
    embedder: ThinkingEmbedder | None = None
    settings: ThoughtSettings = NEVER

    def __post_init__(self) -> None:
        if self.settings.thinks and self.embedder is None:
            raise SettingsError("BM25 with thoughts needs an embedder that writes them; found None.")

    def search(
        self, queries: Sequence[str], depth: int, thoughts: Sequence[Sequence[Thought]] | None = None
    ) -> Answer:
        """The documents that share a word with what is read, best first; `thoughts` are known already."""
        if not self.settings.thinks or self.embedder is None:
            thoughts = [()] * len(queries)
        elif thoughts is None:
            thoughts = self.embedder.think(queries, settings=self.settings)
        weight = self.settings.weight
        read = [Reading.of(query, row, weight(row)) for query, row in zip(queries, thoughts, strict=True)]
        rankings = [self.index.best(each, depth, ties=self._ties) for each in read]
        return Answer(rankings=rankings, thoughts=thoughts)


@dataclass(kw_only=True, eq=False)
class Hybrid(_OverCorpus):
    """The rankings of vectors and of BM25 fused, as an index fuses them (`ranking.fuse`)."""

    parts: tuple[Dense, Lexical]

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """Search with both parts and fuse; thoughts are those of the first part that has some."""
        deep = max(depth, FUSION_DEPTH)
        near, words = self.parts
        dense = near.search(queries, deep)
        # What the guard has left out of the vector, BM25 does not read.
        lexical = words.search(queries, deep, dense.thoughts if near.settings.thinks else None)
        pairs = zip(dense.rankings, lexical.rankings, strict=True)
        rankings = [self._fused(near, words, deep, depth) for near, words in pairs]
        thoughts = dense.thoughts if any(dense.thoughts) else lexical.thoughts
        return Answer(rankings=rankings, thoughts=thoughts)

    def _fused(self, near: Ranking, words: Ranking, deep: int, depth: int) -> Ranking:
        scores = fuse(dict(near.pairs()), dict(words.pairs()), deep)
        places, values = np.array([*scores], np.int64), np.array([*scores.values()], np.float32)
        return best(places, values, depth, ties=self._ties, digits=DIGITS)


class VectorGraph:
    """The graph (HNSW) that an `Index` builds, made of these vectors in a folder that goes with it.

    It is approximate: compare with `search_exactly` by `recall_lost`.
    """

    def __init__(self, matrix: Vector) -> None:
        self._count = len(matrix)
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._graph = Graph.shared(Path(folder.name), "corpus")
        weakref.finalize(self, folder.cleanup)
        weakref.finalize(self, self._graph.release)  # before the other one, as it comes later
        self._graph.begin(0, {"made_by": "o1-retriever eval"})
        for first in range(0, self._count, _PAGE):
            vectors = np.asarray(matrix[first : first + _PAGE], dtype=np.float32)
            # Of a document the graph needs no more than a vector and a key.
            keys = [Document(id=str(first + place), text="") for place in range(len(vectors))]
            self._graph.put(
                [EmbeddedDocument(document=key, vector=row) for key, row in zip(keys, vectors, strict=True)]
            )

    def search(self, queries: Vector, depth: int, *, ties: Places) -> list[Ranking]:
        """The places of the `depth` nearest documents for each query, as far as the graph finds them."""
        found = self._graph.nearest(queries, min(depth, self._count))
        return [
            best(ranking.keys.astype(np.int64), ranking.scores.astype(np.float32), depth, ties=ties)
            for ranking in found
        ]


def recall_lost(exact: Sequence[Ranking], approximate: Sequence[Ranking], depth: int) -> RecallLost:
    """Compare two searches for the same queries."""

    def missed(depth: int) -> float:
        pairs = [
            (right.keys[:depth], found.keys[:depth]) for right, found in zip(exact, approximate, strict=True)
        ]
        shares = [1 - len(np.intersect1d(right, found)) / max(1, len(right)) for right, found in pairs]
        return float(np.mean(shares)) if shares else 0.0

    return RecallLost(at_10=missed(10), at_depth=missed(depth), depth=depth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared: every combination of the numbers of thoughts and the dimensions, and the baselines.

    `thoughts` has 0 for the fast path. `dimensions` has None for all. `hybrid` fuses every dense system
    with BM25 that reads the same thoughts. `hyde` and `bm25` add these with every number of thoughts.
    `pooling` "best" adds a system whose documents score by the best thought, where there are several.
    `work` keeps encoded corpora (None: in the library's cache folder).
    """

    thoughts: Sequence[int] = (0, 1, 3)
    dimensions: Sequence[int | None] = (None,)
    hybrid: bool = False
    bm25: bool = False
    hyde: bool = False
    hnsw: bool = False
    pooling: Sequence[Pooling] = ("mean",)
    work: Path | None = None

    def systems(
        self, corpus: Corpus, embedders: Mapping[str, ThinkingEmbedder], settings: ThoughtSettings
    ) -> list[System]:
        """The systems over a corpus, dense ones first; embedders go by the name in the table.

        The corpus is encoded with each embedder unless that was done before.
        """
        if not embedders or not self.thoughts:
            raise SettingsError("Nothing is compared; expected an embedder and a number of thoughts.")
        index = bm25_over(corpus) if self.bm25 or self.hybrid else None
        systems: list[System] = []
        baselines: list[System] = []
        for name, embedder in embedders.items():
            lexical = {
                n_thoughts: Lexical(
                    name=f"BM25, {_thinking(n_thoughts)}" if n_thoughts else "BM25",
                    corpus=corpus,
                    index=index,
                    embedder=embedder,
                    settings=_settings(settings, n_thoughts),
                )
                for n_thoughts in self.thoughts
                if index is not None
            }
            systems += self._of_embedder(corpus, name, embedder, settings, lexical)
            # As baselines those with the first one's thoughts.
            baselines = baselines or list(lexical.values())
        return systems + baselines if self.bm25 else systems

    def _of_embedder(
        self,
        corpus: Corpus,
        name: str,
        embedder: ThinkingEmbedder,
        settings: ThoughtSettings,
        lexical: Mapping[int, Lexical],
    ) -> list[System]:
        dense: list[System] = []
        fused: list[System] = []
        work = self.work or default_cache_path() / "evaluation"
        for dimension in self.dimensions:
            encoded = encode_corpus(embedder, corpus, work, truncate_dim=dimension)
            graph = VectorGraph(encoded.matrix) if self.hnsw else None
            label = name if dimension is None else f"{name}, {counted(dimension, 'dimension')}"
            for n_thoughts in self.thoughts:
                how = _thinking(n_thoughts)
                common: dict[str, Any] = {
                    "corpus": corpus,
                    "embedder": embedder,
                    "encoded": encoded,
                    "settings": _settings(settings, n_thoughts),
                }
                # Below two thoughts there is nothing to pool.
                for pooling in self.pooling if n_thoughts > 1 else ("mean",):
                    pooled = how if pooling == "mean" else f"{how}, {pooling}"
                    system = Dense(name=f"{label}, {pooled}", graph=graph, pooling=pooling, **common)
                    dense.append(system)
                    if self.hybrid:
                        both, parts = f"{label} + BM25, {pooled}", (system, lexical[n_thoughts])
                        fused.append(Hybrid(name=both, corpus=corpus, parts=parts))
                if self.hyde and n_thoughts:
                    fused.append(Hyde(name=f"HyDE {label}, {how}", **common))
        return dense + fused


def bm25_over(corpus: Corpus) -> Bm25:
    """BM25 over the texts of a corpus, made once as long as the corpus is there."""
    if corpus not in _BM25:
        _BM25[corpus] = Bm25(corpus.texts(0, len(corpus.ids)))
    return _BM25[corpus]


_BM25: weakref.WeakKeyDictionary[Corpus, Bm25] = weakref.WeakKeyDictionary()


def parse_thoughts(text: str) -> tuple[int, ...]:
    """Numbers of thoughts from text such as "never,1,3"; `never` is 0. Raises `SettingsError`."""
    expected = "never or a number of thoughts"
    return tuple(0 if part == "never" else _whole(part, expected) for part in _parts(text))


def parse_pooling(text: str) -> tuple[Pooling, ...]:
    """Ways to pool from text such as "mean,best". Raises `SettingsError`."""
    for part in _parts(text):
        if part not in get_args(Pooling):
            raise SettingsError(f"Found {part!r}; expected mean or best, or both separated by a comma.")
    return cast(tuple[Pooling, ...], tuple(_parts(text)))


def parse_dimensions(text: str) -> tuple[int | None, ...]:
    """Dimensions from text such as "all,128"; `all` is None. Raises `SettingsError`."""
    expected = "all or a number of dimensions"
    return tuple(None if part == "all" else _whole(part, expected) for part in _parts(text))


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _whole(text: str, expected: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise SettingsError(f"Found {text!r}; expected {expected}, or several separated by commas.")
    return int(text)


def family_of(name: str) -> str:
    """The name of a system of a plan without its number of thoughts: what several of them share."""
    return re.sub(r", (no thoughts|\d+ thoughts?)(?=,|$)", "", name)


def _thinking(n_thoughts: int) -> str:
    return counted(n_thoughts, "thought") if n_thoughts else "no thoughts"


def _settings(base: ThoughtSettings, n_thoughts: int) -> ThoughtSettings:
    if not n_thoughts:
        return base.with_changes(thinking="never")
    return base.with_changes(n_thoughts=n_thoughts, thinking="always")
