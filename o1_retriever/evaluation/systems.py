"""The systems that are compared: dense with and without thoughts, BM25, HyDE, and their fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Corpus
from o1_retriever.evaluation.corpus import EncodedCorpus
from o1_retriever.evaluation.ranking import Ranking, best, best_of_groups, fuse, tie_order
from o1_retriever.evaluation.search import RecallLost, all_scores, recall_lost, search_exactly, search_hnsw
from o1_retriever.ranking.bm25 import Bm25, lexical_query
from o1_retriever.ranking.fusion import Places
from o1_retriever.search.result import Pooling
from o1_retriever.thought import Thought, ThoughtSettings, Vector
from o1_retriever.vectors import unit

NEVER = ThoughtSettings(thinking="never")


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


class Scorer(System, Protocol):
    """A system that can score all documents, so that its complete ranking can be fused with others'."""

    def scores(self, queries: Sequence[str]) -> tuple[Iterator[Vector], Sequence[Sequence[Thought]]]:
        """For each query the scores of all documents, and its thoughts."""
        ...


@dataclass(kw_only=True, eq=False)
class Dense:
    """Inner product with the vectors of an encoded corpus; thinks as `settings` say.

    `hnsw` searches through Chroma's graph and reports the recall that this loses. `pooling="best"` searches
    for each thought: a document's score is its best; "mean" searches once for their mean.
    """

    name: str
    embedder: ThinkingEmbedder
    corpus: Corpus
    encoded: EncodedCorpus
    settings: ThoughtSettings = NEVER
    hnsw: bool = False
    pooling: Pooling = "mean"
    batch_size: int = 32
    _ties: Places = field(init=False)

    def __post_init__(self) -> None:
        self._ties = tie_order(self.corpus.ids)

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """Exactly, or through the graph when `hnsw` is set."""
        groups, thoughts = self._embedded(queries)
        vectors, sizes = np.concatenate(groups), [len(group) for group in groups]
        found = search_exactly(vectors, self.encoded.matrix, depth, ties=self._ties)
        rankings = best_of_groups(found, sizes, self._ties, depth)
        lost = None
        if self.hnsw:
            exact = rankings
            found = search_hnsw(vectors, self.encoded.matrix, depth)
            rankings = best_of_groups(found, sizes, self._ties, depth)
            lost = recall_lost(exact, rankings, depth)
        return Answer(
            rankings=rankings,
            thoughts=thoughts,
            recall_lost=lost,
            documents_per_second=self.encoded.documents_per_second,
        )

    def scores(self, queries: Sequence[str]) -> tuple[Iterator[Vector], Sequence[Sequence[Thought]]]:
        """Inner products with all documents."""
        groups, thoughts = self._embedded(queries)
        rows = all_scores(np.concatenate(groups), self.encoded.matrix)
        return (np.max([next(rows) for _ in group], axis=0) for group in groups), thoughts

    def _embedded(self, queries: Sequence[str]) -> tuple[list[Vector], Sequence[Sequence[Thought]]]:
        dimension = self.encoded.matrix.shape[1]
        embedded = self.embedder.embed_queries(
            queries, settings=self.settings, batch_size=self.batch_size, truncate_dim=dimension
        )
        best = self.pooling == "best"
        groups = [item.vectors if best else item.vector[None] for item in embedded]
        return groups, [item.thoughts for item in embedded]


@dataclass(kw_only=True, eq=False)
class Hyde:
    """HyDE: the mean of the vectors of the query and of its thoughts, each embedded as a document."""

    name: str
    embedder: ThinkingEmbedder
    corpus: Corpus
    encoded: EncodedCorpus
    settings: ThoughtSettings
    _ties: Places = field(init=False)

    def __post_init__(self) -> None:
        self._ties = tie_order(self.corpus.ids)

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """Exactly."""
        vectors, thoughts = self._embedded(queries)
        rankings = search_exactly(vectors, self.encoded.matrix, depth, ties=self._ties)
        rate = self.encoded.documents_per_second
        return Answer(rankings=rankings, thoughts=thoughts, documents_per_second=rate)

    def scores(self, queries: Sequence[str]) -> tuple[Iterator[Vector], Sequence[Sequence[Thought]]]:
        """Inner products with all documents."""
        vectors, thoughts = self._embedded(queries)
        return all_scores(vectors, self.encoded.matrix), thoughts

    def _embedded(self, queries: Sequence[str]) -> tuple[Vector, Sequence[Sequence[Thought]]]:
        dimension = self.encoded.matrix.shape[1]
        thoughts = self.embedder.think(queries, settings=self.settings)
        plain = np.asarray(self.embedder.encode_queries(queries, settings=NEVER, truncate_dim=dimension))
        usable = [[thought.text for thought in row if thought.text.strip()] for row in thoughts]
        texts = [text for row in usable for text in row]
        written = np.asarray(self.embedder.encode_documents(texts, truncate_dim=dimension))
        ends = np.cumsum([len(row) for row in usable])
        groups = zip(plain, np.split(written, ends[:-1]), strict=True)
        means = np.stack([np.vstack([vector[None], rows]).mean(axis=0) for vector, rows in groups])
        return unit(means), thoughts


@dataclass(kw_only=True, eq=False)
class Lexical:
    """BM25 (Lucene's variant, English stemming and stop words) over the query, or over query and thoughts.

    With `settings` that think, `embedder` writes the thoughts, and BM25 reads the query three times and
    each thought once. Documents that share no word with what is read are not found.
    """

    name: str
    corpus: Corpus
    index: Bm25Index
    embedder: ThinkingEmbedder | None = None
    settings: ThoughtSettings = NEVER
    _ties: Places = field(init=False)

    def __post_init__(self) -> None:
        self._ties = tie_order(self.corpus.ids)
        if self.settings.thinks and self.embedder is None:
            raise SettingsError("BM25 with thoughts needs an embedder that writes them; found None.")

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """The documents that share a word with what is read, best first."""
        scores, thoughts = self.scores(queries)
        rankings = []
        for row in scores:
            ranking = best(row, self._ties, depth)
            matched = int(np.count_nonzero(ranking.scores > 0))
            rankings.append(Ranking(ranking.places[:matched], ranking.scores[:matched]))
        return Answer(rankings=rankings, thoughts=thoughts)

    def scores(self, queries: Sequence[str]) -> tuple[Iterator[Vector], Sequence[Sequence[Thought]]]:
        """BM25 of all documents, 0 for those without a common word."""
        thoughts: Sequence[Sequence[Thought]] = [()] * len(queries)
        texts = list(queries)
        if self.settings.thinks and self.embedder is not None:
            thoughts = self.embedder.think(queries, settings=self.settings)
            texts = [lexical_query(query, row) for query, row in zip(queries, thoughts, strict=True)]
        return (self.index.scores(text) for text in texts), thoughts


@dataclass(kw_only=True, eq=False)
class Hybrid:
    """Reciprocal rank fusion of the complete rankings of several systems."""

    name: str
    corpus: Corpus
    parts: Sequence[Scorer]

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """Rank all documents with every part and fuse; thoughts are those of the first part that has some."""
        scored = [part.scores(queries) for part in self.parts]
        ties = tie_order(self.corpus.ids)
        rankings = [fuse(rows, ties, depth) for rows in zip(*(rows for rows, _ in scored), strict=True)]
        thoughts = next((said for _, said in scored if any(said)), scored[0][1])
        return Answer(rankings=rankings, thoughts=thoughts)


class Bm25Index(Bm25):
    """A corpus for BM25."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus.texts(0, len(corpus.ids)))
