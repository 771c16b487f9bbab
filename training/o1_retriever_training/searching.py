"""Score all documents of a corpus for queries: for mining negatives and for round trips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from o1_retriever.ranking.bm25 import Bm25
from o1_retriever.thought import Vector
from o1_retriever_training.dense import Dense


class Searcher(Protocol):
    """Anything that scores every document of its corpus for a query."""

    def scores(self, queries: Sequence[str]) -> Iterator[Vector]:
        """For each query the scores of all documents, in the corpus' order."""
        ...


class LexicalSearcher:
    """BM25 over the documents."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._index = Bm25(documents)

    def scores(self, queries: Sequence[str]) -> Iterator[Vector]:
        """BM25 of all documents."""
        return (self._index.scores(query) for query in queries)


class DenseSearcher:
    """Cosines with the documents' vectors, by an encoder or a model of ours that does not think here."""

    def __init__(self, documents: Sequence[str], model: Any) -> None:
        self._dense = Dense(model)
        self._matrix = self._dense.documents(documents)

    def scores(self, queries: Sequence[str]) -> Iterator[Vector]:
        """Cosines of all documents."""
        return (self._matrix @ vector for vector in self._dense.queries(queries))


def as_searcher(name: Any, documents: Sequence[str]) -> Searcher:
    """A searcher over documents from "bm25", "minilm", a model's name, or a loaded model."""
    return LexicalSearcher(documents) if name == "bm25" else DenseSearcher(documents, name)
