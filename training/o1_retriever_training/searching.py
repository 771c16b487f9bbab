"""Score all documents of a corpus for queries: for mining negatives and for round trips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from o1_retriever.lexical import Bm25
from o1_retriever.pooling import unit
from o1_retriever.thought import ThoughtSettings, Vector


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
        from o1_retriever.embedder import ThinkingEmbedder
        from o1_retriever.encoders import as_encoder

        self._embedder = model if isinstance(model, ThinkingEmbedder) else None
        self._encoder = None if self._embedder else as_encoder(model)
        if self._embedder is not None:
            found = self._embedder.encode_documents(documents, show_progress_bar=False)
        else:
            assert self._encoder is not None
            found = self._encoder.embed_documents(documents)
        self._matrix = unit(np.asarray(found, dtype=np.float32))

    def scores(self, queries: Sequence[str]) -> Iterator[Vector]:
        """Cosines of all documents."""
        if self._embedder is not None:
            never = ThoughtSettings(mode="never")
            found = self._embedder.encode_queries(list(queries), settings=never, show_progress_bar=False)
        else:
            assert self._encoder is not None
            found = self._encoder.embed_queries(queries)
        return (self._matrix @ vector for vector in unit(np.asarray(found, dtype=np.float32)))


def as_searcher(name: Any, documents: Sequence[str]) -> Searcher:
    """A searcher over documents from "bm25", "minilm", a model's name, or a loaded model."""
    if name == "bm25":
        return LexicalSearcher(documents)
    if name == "minilm":
        from o1_retriever_training.committee import minilm

        return DenseSearcher(documents, minilm())
    return DenseSearcher(documents, name)
