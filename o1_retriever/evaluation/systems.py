"""The systems that are compared: dense with and without thoughts, BM25, HyDE, and their fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Corpus
from o1_retriever.evaluation.corpus import EncodedCorpus
from o1_retriever.evaluation.ranking import Places, Ranking, best, fuse, tie_order
from o1_retriever.evaluation.search import RecallLost, all_scores, recall_lost, search_exactly, search_hnsw
from o1_retriever.extras import require
from o1_retriever.pooling import unit
from o1_retriever.thought import Thought, ThoughtSettings, Vector

QUERY_REPEATS = 3  # how often BM25 reads the query before its thoughts, so that they do not drown it
NEVER = ThoughtSettings(mode="never")


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

    `hnsw` searches through Chroma's graph and reports the recall that this loses.
    """

    name: str
    embedder: ThinkingEmbedder
    corpus: Corpus
    encoded: EncodedCorpus
    settings: ThoughtSettings = NEVER
    hnsw: bool = False
    batch_size: int = 32
    _ties: Places = field(init=False)

    def __post_init__(self) -> None:
        self._ties = tie_order(self.corpus.ids)

    def search(self, queries: Sequence[str], depth: int) -> Answer:
        """Exactly, or through the graph when `hnsw` is set."""
        vectors, thoughts = self._embedded(queries)
        rankings = search_exactly(vectors, self.encoded.matrix, depth, ties=self._ties)
        lost = None
        if self.hnsw:
            exact, rankings = rankings, search_hnsw(vectors, self.encoded.matrix, depth)
            lost = recall_lost(exact, rankings, depth)
        return Answer(
            rankings=rankings,
            thoughts=thoughts,
            recall_lost=lost,
            documents_per_second=self.encoded.documents_per_second,
        )

    def scores(self, queries: Sequence[str]) -> tuple[Iterator[Vector], Sequence[Sequence[Thought]]]:
        """Inner products with all documents."""
        vectors, thoughts = self._embedded(queries)
        return all_scores(vectors, self.encoded.matrix), thoughts

    def _embedded(self, queries: Sequence[str]) -> tuple[Vector, Sequence[Sequence[Thought]]]:
        dimension = self.encoded.matrix.shape[1]
        embedded = self.embedder.embed_queries(
            queries, settings=self.settings, batch_size=self.batch_size, truncate_dim=dimension
        )
        return np.stack([item.vector for item in embedded]), [item.thoughts for item in embedded]


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
            texts = [
                " ".join([*[query] * QUERY_REPEATS, *(thought.text for thought in row if not thought.failed)])
                for query, row in zip(queries, thoughts, strict=True)
            ]
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


class Bm25Index:
    """A corpus for BM25: bm25s, Lucene's variant, k1 1.5, b 0.75, Snowball English, English stop words."""

    def __init__(self, corpus: Corpus) -> None:
        self._bm25s = require("bm25s", extra="index", purpose="BM25")
        self._stemmer = require("Stemmer", extra="index", purpose="BM25").Stemmer("english")
        self._index = self._bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index(self._tokens(corpus.texts(0, len(corpus.ids))), show_progress=False)

    def scores(self, text: str) -> Vector:
        """BM25 of every document, float32; a word that the text repeats counts as often."""
        words = self._tokens([text], ids=False)[0]
        return np.asarray(self._index.get_scores(words), dtype=np.float32)

    def _tokens(self, texts: Sequence[str], *, ids: bool = True) -> Any:
        return self._bm25s.tokenize(
            list(texts), stopwords="en", stemmer=self._stemmer, return_ids=ids, show_progress=False
        )
