"""The control of every claim about thoughts: the same model with thoughts about another question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from o1_retriever import ThinkingEmbedder
from o1_retriever.query import Query
from o1_retriever.thinking import Backend, NewThoughts


def with_other_thoughts(embedder: ThinkingEmbedder, queries: Sequence[str]) -> ThinkingEmbedder:
    """An embedder that embeds each of `queries` with what is thought about the one after it, uncached."""
    texts = list(dict.fromkeys(query.strip() for query in queries))
    after = dict(zip(texts, [*texts[1:], *texts[:1]], strict=True))
    return ThinkingEmbedder(_Others(embedder.backend, after), settings=embedder.settings, cache=False)


class _Others:
    """A backend whose thoughts are about other queries; all else is the inner backend's."""

    def __init__(self, inner: Backend, after: dict[str, str]) -> None:
        self._inner = inner
        self._after = after
        self.thinker_identity = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def think(self, queries: Sequence[Query], **options: Any) -> Iterator[NewThoughts]:
        others = [Query(self._after[query.text.strip()]) for query in queries]
        for thinking in self._inner.think(others, **options):
            # Vectors that came with the thoughts are of the other query.
            yield replace(thinking, vectors=None, fast=None)
