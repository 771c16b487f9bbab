"""Thinking for a vector store of LangChain's: always, never, or where its own ranking leaves room for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from langchain_o1_retriever.embeddings import O1Embeddings
from langchain_o1_retriever.stores import Request, ScoredDocument, StoreSearch
from o1_retriever.errors import SettingsError
from o1_retriever.guard import LOOKED_AT, Decision
from o1_retriever.search.result import SearchSettings
from o1_retriever.thought import QueryEmbedding, ThoughtSettings, Vector


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """What is to be searched with; `found` where the query alone has found enough."""

    embedding: QueryEmbedding
    decision: Decision | None = None
    found: list[ScoredDocument] | None = None


class ThinkingStore:
    """Searches a store with a query and its thoughts. Raises `SettingsError` for what a store cannot do."""

    def __init__(self, embeddings: O1Embeddings, search: StoreSearch, request: Request) -> None:
        self._embeddings = embeddings
        self._search = search
        self._request = request
        self._how = SearchSettings().with_changes(**request.how)
        if self._how.hybrid:
            raise SettingsError(
                "hybrid=True was passed for a vector store, which has no ranking by words to fuse with.",
                hint="Use our own index, or LangChain's EnsembleRetriever with a BM25Retriever.",
            )

    def think(self, query: str) -> Thinking:
        """Think about a query; with thinking="auto" after a look at what it finds by itself."""
        if self._how.thinking != "auto":
            return Thinking(embedding=self._embeddings.think(query, **self._asking()))
        fast = self._embeddings.think(query, settings=self._settings("never"))
        seen = self._decided(fast, self._search.search(fast.vector[None], self._looking()))
        if seen.found is not None:
            return seen
        embedding = self._embeddings.think(query, **self._asking("always"))
        return replace(seen, embedding=embedding)

    async def athink(self, query: str) -> Thinking:
        """`think` without blocking."""
        if self._how.thinking != "auto":
            return Thinking(embedding=await self._embeddings.athink(query, **self._asking()))
        fast = await self._embeddings.athink(query, settings=self._settings("never"))
        seen = self._decided(fast, await self._search.asearch(fast.vector[None], self._looking()))
        if seen.found is not None:
            return seen
        embedding = await self._embeddings.athink(query, **self._asking("always"))
        return replace(seen, embedding=embedding)

    def find(self, thinking: Thinking) -> list[ScoredDocument]:
        """The documents nearest to the query and its thoughts, best first."""
        if thinking.found is not None:
            return thinking.found
        return self._search.search(self._vectors(thinking), self._request)

    async def afind(self, thinking: Thinking) -> list[ScoredDocument]:
        """`find` without blocking."""
        if thinking.found is not None:
            return thinking.found
        return await self._search.asearch(self._vectors(thinking), self._request)

    def _vectors(self, thinking: Thinking) -> Vector:
        embedding = thinking.embedding
        return embedding.vectors if self._how.pooling == "best" else embedding.vector[None]

    def _asking(self, mode: str | None = None) -> dict[str, Any]:
        return {"settings": self._settings(mode), "history": self._request.history}

    def _settings(self, mode: str | None = None) -> ThoughtSettings:
        base = self._request.settings or self._embeddings.settings or self._embeddings.embedder.settings
        return base.with_changes(thinking=mode or self._how.thinking)

    def _looking(self) -> Request:
        return replace(self._request, k=max(self._request.k, LOOKED_AT), score_threshold=None)

    def _decided(self, fast: QueryEmbedding, ranking: list[ScoredDocument]) -> Thinking:
        scores = [score for _, score in ranking if score is not None]
        if len(scores) < len(ranking):
            raise SettingsError(
                "The store gives no scores for a search by vector; thinking='auto' decides by them.",
                hint="Use thinking='always' or thinking='never'.",
            )
        decision = self._how.gate.decide(scores)
        found = None if decision.think else self._request.kept(ranking[: self._request.k])
        return Thinking(embedding=fast, decision=decision, found=found)
