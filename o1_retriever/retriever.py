"""Questions in, passages out, with the thoughts that led there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from o1_retriever.errors import FingerprintError, SettingsError
from o1_retriever.hit import Hit
from o1_retriever.index import Index
from o1_retriever.inputs import check_text, check_texts
from o1_retriever.space import VectorSpace
from o1_retriever.storage.graph import check_where
from o1_retriever.thought import QueryEmbedding, Thought, ThoughtSettings

__all__ = ["Hit", "QueryEmbedder", "Retriever", "SearchResult", "thought_record"]


class QueryEmbedder(Protocol):
    """What turns questions into vectors; a `ThinkingEmbedder` does."""

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space."""
        ...

    def embed_queries(
        self,
        queries: Sequence[str],
        *,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[QueryEmbedding]:
        """One embedding per question, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """What a question found, best hit first, and what was thought on the way. Iterating it gives the hits.

    `search_ms` are the wall-clock milliseconds of the index, divided by the questions of one call; those of
    thinking and embedding are in `embedding.timings`.
    """

    embedding: QueryEmbedding
    hits: tuple[Hit, ...]
    search_ms: float = 0.0

    @property
    def query(self) -> str:
        """The question."""
        return self.embedding.query

    @property
    def thoughts(self) -> tuple[Thought, ...]:
        """What was thought about it."""
        return self.embedding.thoughts

    @property
    def total_ms(self) -> float:
        """Thinking, embedding and searching together."""
        return self.embedding.timings.total_ms + self.search_ms

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __bool__(self) -> bool:
        """A result is true even when nothing was found."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values, without the vectors."""
        timings = self.embedding.timings
        return {
            "query": self.query,
            "thoughts": [thought_record(thought) for thought in self.thoughts],
            "prompt_tokens": self.embedding.prompt_tokens,
            "thought_tokens": self.embedding.thought_tokens,
            "timings": {
                "think_ms": round(timings.think_ms, 3),
                "embed_ms": round(timings.embed_ms, 3),
                "search_ms": round(self.search_ms, 3),
            },
            "hits": [
                {
                    "rank": hit.rank,
                    "score": hit.score,
                    "id": hit.id,
                    "source": hit.source,
                    "text": hit.text,
                    "metadata": dict(hit.metadata),
                }
                for hit in self.hits
            ],
        }


def thought_record(thought: Thought) -> dict[str, Any]:
    """A thought as plain JSON values: `text`, `finish`, `error`, `tokens` and `cached`."""
    return {
        "text": thought.text,
        "finish": thought.finish,
        "error": thought.error,
        "tokens": thought.completion_tokens,
        "cached": thought.cached,
    }


class Retriever:
    """Answers questions from an index: thinks about each, embeds it with its thoughts, finds the nearest.

    The index must be of the embedder's own document space; `FingerprintError` otherwise.
    """

    def __init__(self, embedder: QueryEmbedder, index: Index) -> None:
        found, expected = index.info().space, embedder.space
        if found != expected:
            raise FingerprintError(
                f"The index in {index.path} is of the document space {found.fingerprint}, the embedder of "
                f"{expected.fingerprint}; expected the same one.",
                hint="Use the embedder that built the index, or index into another folder.",
            )
        self.embedder = embedder
        self.index = index

    def search(
        self,
        query: str,
        *,
        k: int = 10,
        where: dict[str, Any] | None = None,
        settings: ThoughtSettings | None = None,
    ) -> SearchResult:
        """The `k` passages nearest to one question. `where` and the errors are those of `search_many`."""
        check_text(query, what="query")
        return self.search_many([query], k=k, where=where, settings=settings)[0]

    def search_many(
        self,
        queries: Sequence[str],
        *,
        k: int = 10,
        where: dict[str, Any] | None = None,
        settings: ThoughtSettings | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[SearchResult]:
        """The `k` passages nearest to each question, in the order of the questions.

        They are thought about together and looked up together. `where` filters by metadata as in
        `Index.search`; `settings` None takes the embedder's own. Everything is checked before any model
        runs: `InputError` with the position of a question that cannot be used or for a filter,
        `SettingsError` for `k`.
        """
        texts = check_texts(queries, what="query")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise SettingsError(f"k is {k!r}; expected a whole number from 1.")
        check_where(where)
        if not texts:
            return []
        embeddings = self.embedder.embed_queries(
            texts, settings=settings, show_progress_bar=show_progress_bar
        )
        started = time.perf_counter()
        found = self.index.search(np.stack([item.vector for item in embeddings]), k=k, where=where)
        search_ms = (time.perf_counter() - started) * 1000 / len(texts)
        return [
            SearchResult(embedding=embedding, hits=tuple(hits), search_ms=search_ms)
            for embedding, hits in zip(embeddings, found, strict=True)
        ]
