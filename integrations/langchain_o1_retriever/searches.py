"""What the retriever searches: our own index, or any LangChain vector store by a vector."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.documents import Document
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore

from langchain_o1_retriever.embeddings import O1Embeddings
from o1_retriever.errors import SettingsError
from o1_retriever.explain.explanation import Explanation
from o1_retriever.guard import LOOKED_AT, Decision
from o1_retriever.index.hits import Hit, check_count
from o1_retriever.query import Query
from o1_retriever.ranking.fusion import best_of
from o1_retriever.search.result import SearchOptions, SearchSettings
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import QueryEmbedding, Thinking, ThoughtSettings, Vector
from o1_retriever.vectors import searching

ScoredDocument = tuple[Document, float | None]

# There is no method for it in VectorStore; these names are what the integrations have agreed on.
_WITH_SCORES = (
    "similarity_search_with_score_by_vector",
    "similarity_search_by_vector_with_relevance_scores",
    "similarity_search_by_vector_with_score",
)
_WITHOUT = "similarity_search_by_vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call of the retriever asks for.

    `how` has those options of our own search that were passed; `extra` goes to the store, or to our index, as
    it is. Raises `SettingsError` for `k` and `score_threshold`.
    """

    query: Query
    k: int
    score_threshold: float | None = None
    filter: Any = None
    settings: ThoughtSettings | None = None
    how: SearchOptions = field(default_factory=SearchOptions)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("k", self.k)
        threshold = self.score_threshold
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
            raise SettingsError(f"score_threshold is {threshold!r}; expected a number or None.")

    def kept(self, ranking: list[ScoredDocument]) -> list[ScoredDocument]:
        """Those that reach the threshold."""
        if self.score_threshold is None:
            return ranking
        return [(doc, score) for doc, score in ranking if score is not None and score >= self.score_threshold]


@dataclass(frozen=True, kw_only=True)
class EmbeddedQuery:
    """A query with its thoughts, why it was thought about or not, and the documents where they are known."""

    embedding: QueryEmbedding
    decision: Decision | None = None
    documents: list[ScoredDocument] | None = None


class IndexSearch:
    """Searches our own index with our own retriever, which thinks and searches in one go."""

    def __init__(self, retriever: Retriever, request: Request) -> None:
        self._retriever = retriever
        self._request = request
        self._options: dict[str, Any] = {
            "k": request.k,
            "where": request.filter,
            "settings": request.settings,
            **request.how,
            **request.extra,
        }

    def think(self) -> EmbeddedQuery:
        """Think about the query, and find its documents."""
        result = self._retriever.search(self._request.query, **self._options)
        documents = self._request.kept([_scored(hit) for hit in result.hits])
        return EmbeddedQuery(embedding=result.embedding, decision=result.decision, documents=documents)

    async def athink(self) -> EmbeddedQuery:
        """`think`, in a thread."""
        return await run_in_executor(None, self.think)

    def find(self, embedded: EmbeddedQuery) -> list[ScoredDocument]:
        """The documents nearest to the query and its thoughts, best first."""
        return embedded.documents or []

    async def afind(self, embedded: EmbeddedQuery) -> list[ScoredDocument]:
        """`find`, which has nothing to wait for."""
        return self.find(embedded)

    def explain(self) -> Explanation:
        """What each thought finds, and what thinking moved."""
        return self._retriever.explain(self._request.query, **self._options)


class StoreSearch:
    """Searches a vector store with a query and its thoughts.

    A document's score is what the store itself calls relevance (for Chroma with the cosine space and for the
    in-memory store: the cosine), or `score_fn` of the store's own number; None where the store gives none.
    Raises `SettingsError` for what the store cannot do.
    """

    def __init__(
        self,
        store: VectorStore,
        embeddings: O1Embeddings,
        request: Request,
        score_fn: Callable[[float], float] | None = None,
    ) -> None:
        self._store = store
        self._embeddings = embeddings
        self._request = request
        self._score_fn = score_fn
        self._how = SearchSettings().with_changes(**request.how)
        if self._how.hybrid:
            raise SettingsError(
                "hybrid=True was passed for a vector store, which has no ranking by words to fuse with.",
                hint="Use our own index, or LangChain's EnsembleRetriever with a BM25Retriever.",
            )
        self._method = self._search_method()

    def think(self) -> EmbeddedQuery:
        """Think about the query; with thinking="auto" after a look at what it finds by itself."""
        query = self._request.query
        if self._how.thinking != "auto":
            settings = self._settings(self._how.thinking)
            return EmbeddedQuery(embedding=self._embeddings.think(query, settings=settings))
        fast = self._embeddings.think(query, settings=self._settings("never"))
        decided = self._decided(fast, self._nearest(fast.vector[None], self._depth))
        if decided.documents is not None:
            return decided
        return replace(decided, embedding=self._embeddings.think(query, settings=self._settings("always")))

    async def athink(self) -> EmbeddedQuery:
        """`think` without blocking."""
        query = self._request.query
        if self._how.thinking != "auto":
            settings = self._settings(self._how.thinking)
            return EmbeddedQuery(embedding=await self._embeddings.athink(query, settings=settings))
        fast = await self._embeddings.athink(query, settings=self._settings("never"))
        decided = self._decided(fast, await self._anearest(fast.vector[None], self._depth))
        if decided.documents is not None:
            return decided
        embedding = await self._embeddings.athink(query, settings=self._settings("always"))
        return replace(decided, embedding=embedding)

    def find(self, embedded: EmbeddedQuery) -> list[ScoredDocument]:
        """The documents nearest to the query and its thoughts, best first."""
        if embedded.documents is not None:
            return embedded.documents
        vectors = self._how.pooled(embedded.embedding)
        return self._request.kept(self._nearest(vectors, self._request.k))

    async def afind(self, embedded: EmbeddedQuery) -> list[ScoredDocument]:
        """`find` without blocking: by the store's own async method, or else in a thread."""
        if embedded.documents is not None:
            return embedded.documents
        vectors = self._how.pooled(embedded.embedding)
        return self._request.kept(await self._anearest(vectors, self._request.k))

    def _settings(self, thinking: Thinking | None) -> ThoughtSettings:
        base = self._request.settings or self._embeddings.settings or self._embeddings.embedder.settings
        return base.with_changes(thinking=thinking)

    @property
    def _depth(self) -> int:
        return max(self._request.k, LOOKED_AT)

    def _decided(self, fast: QueryEmbedding, ranking: list[ScoredDocument]) -> EmbeddedQuery:
        scores = [score for _, score in ranking if score is not None]
        if len(scores) < len(ranking):
            raise SettingsError(
                "The store gives no scores for a search by vector; thinking='auto' decides by them.",
                hint="Use thinking='always' or thinking='never'.",
            )
        decision = self._how.gate.decide(scores)
        documents = None if decision.think else self._request.kept(ranking[: self._request.k])
        return EmbeddedQuery(embedding=fast, decision=decision, documents=documents)

    def _nearest(self, vectors: Vector, k: int) -> list[ScoredDocument]:
        """The `k` documents nearest to any of the vectors (n, dimension): a document's score is its best."""
        self._check_comparable(vectors)
        method = getattr(self._store, self._method)
        with searching(type(self._store).__name__, vectors.shape[1]):
            rankings = [method(vector.tolist(), **self._arguments(k)) for vector in vectors]
        return self._merged(rankings, k)

    async def _anearest(self, vectors: Vector, k: int) -> list[ScoredDocument]:
        if not self._has(f"a{self._method}"):
            return await run_in_executor(None, self._nearest, vectors, k)
        self._check_comparable(vectors)
        method = getattr(self._store, f"a{self._method}")
        calls = [method(vector.tolist(), **self._arguments(k)) for vector in vectors]
        with searching(type(self._store).__name__, vectors.shape[1]):
            rankings = await asyncio.gather(*calls)
        return self._merged(rankings, k)

    def _merged(self, rankings: list[list[Any]], k: int) -> list[ScoredDocument]:
        scored = [self._with_scores(ranking) for ranking in rankings]
        if len(scored) == 1:
            return scored[0]
        documents = {_key(document): document for ranking in scored for document, _ in ranking}
        scores = [[(_key(document), score or 0.0) for document, score in ranking] for ranking in scored]
        return [(documents[key], score) for key, score in best_of(scores, k)]

    def _search_method(self) -> str:
        name = next((each for each in (*_WITH_SCORES, _WITHOUT) if self._has(each)), None)
        kind = type(self._store).__name__
        if name is None:
            raise SettingsError(
                f"{kind} cannot search by vector; expected a store with {_WITHOUT}.",
                hint="Give the store O1Embeddings as its embeddings and use store.as_retriever().",
            )
        if name == _WITHOUT and self._request.score_threshold is not None:
            raise SettingsError(
                f"{kind} gives no scores for a search by vector; a score_threshold cannot be applied."
            )
        return name

    def _check_comparable(self, vectors: Vector) -> None:
        if self._method == _WITHOUT and len(vectors) > 1:
            raise SettingsError(
                f"{type(self._store).__name__} gives no scores for a search by vector; which thought is best "
                "cannot be told.",
                hint="Use pooling='mean'.",
            )

    def _has(self, name: str) -> bool:
        """Whether the store has a method of its own, rather than the one that only raises or delegates."""
        own = getattr(type(self._store), name, None)
        return own is not None and own is not getattr(VectorStore, name, None)

    def _with_scores(self, ranking: list[Any]) -> list[ScoredDocument]:
        if self._method == _WITHOUT:
            return [(document, None) for document in ranking]
        score = self._score_fn or self._relevance()
        return [(document, score(float(number))) for document, number in ranking]

    def _relevance(self) -> Callable[[float], float]:
        try:
            return self._store._select_relevance_score_fn()
        except NotImplementedError:
            return float

    def _arguments(self, k: int) -> dict[str, Any]:
        filters = {} if self._request.filter is None else {"filter": self._request.filter}
        return {"k": k, **filters, **self._request.extra}


def _key(document: Document) -> Hashable:
    """What makes two documents of one store the same: the id, or all of it where the store gives none."""
    if document.id is not None:
        return document.id
    return document.page_content, repr(sorted(document.metadata.items(), key=repr))


def _scored(hit: Hit) -> ScoredDocument:
    fused = {} if hit.fused_score is None else {"fused_score": hit.fused_score}
    return Document(id=hit.id, page_content=hit.text, metadata={**hit.metadata, **fused}), hit.score
