"""Searching any LangChain vector store by a vector, with scores where the store has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore

from o1_retriever.errors import SettingsError
from o1_retriever.query import Conversation
from o1_retriever.ranking.fusion import best_of
from o1_retriever.search.result import SearchSettings
from o1_retriever.thought import ThoughtSettings, Vector
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

    `how` has those options of our own search that were asked for; `extra` goes to the store, or to our
    index, as it is.
    """

    k: int
    score_threshold: float | None = None
    filter: Any = None
    settings: ThoughtSettings | None = None
    history: Conversation = field(default_factory=Conversation)
    how: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        SearchSettings().with_changes(**self.how)
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise SettingsError(f"k is {self.k!r}; expected a whole number from 1.")
        threshold = self.score_threshold
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
            raise SettingsError(f"score_threshold is {threshold!r}; expected a number or None.")

    def kept(self, found: list[ScoredDocument]) -> list[ScoredDocument]:
        """Those that reach the threshold."""
        if self.score_threshold is None:
            return found
        return [(doc, score) for doc, score in found if score is not None and score >= self.score_threshold]


class StoreSearch:
    """Looks vectors up in a store.

    A score is what the store itself calls relevance (for Chroma with the cosine space and for the
    in-memory store: the cosine), or `score_fn` of the store's own number. Raises `SettingsError` for a
    store that cannot search by vector.
    """

    def __init__(self, store: VectorStore, score_fn: Callable[[float], float] | None = None) -> None:
        self._store = store
        self._score_fn = score_fn

    def search(self, vectors: Vector, request: Request) -> list[ScoredDocument]:
        """The documents nearest to any of the vectors (n, dimension), best first.

        A document's score is its best; scores are None when the store gives none, and several vectors then
        raise `SettingsError`.
        """
        name = self._method(request, several=len(vectors) > 1)
        method = getattr(self._store, name)
        with searching(type(self._store).__name__, vectors.shape[1]):
            found = [method(vector.tolist(), **_arguments(request)) for vector in vectors]
        return self._merged(name, found, request)

    async def asearch(self, vectors: Vector, request: Request) -> list[ScoredDocument]:
        """The same without blocking: by the store's own async method, or else in a thread."""
        name = self._method(request, several=len(vectors) > 1)
        if not self._has(f"a{name}"):
            return await run_in_executor(None, self.search, vectors, request)
        method = getattr(self._store, f"a{name}")
        asked = [method(vector.tolist(), **_arguments(request)) for vector in vectors]
        with searching(type(self._store).__name__, vectors.shape[1]):
            found = await asyncio.gather(*asked)
        return self._merged(name, found, request)

    def _merged(self, name: str, found: list[list[Any]], request: Request) -> list[ScoredDocument]:
        rankings = [self._scored(name, one) for one in found]
        if len(rankings) == 1:
            return request.kept(rankings[0])
        documents = {_key(document): document for ranking in rankings for document, _ in ranking}
        scores = [[(_key(document), score or 0.0) for document, score in ranking] for ranking in rankings]
        return request.kept([(documents[key], score) for key, score in best_of(scores, request.k)])

    def _method(self, request: Request, *, several: bool) -> str:
        name = next((each for each in (*_WITH_SCORES, _WITHOUT) if self._has(each)), None)
        kind = type(self._store).__name__
        if name is None:
            raise SettingsError(
                f"{kind} cannot search by vector; expected a store with {_WITHOUT}.",
                hint="Give the store O1Embeddings as its embeddings and use store.as_retriever().",
            )
        if name == _WITHOUT and request.score_threshold is not None:
            raise SettingsError(
                f"{kind} gives no scores for a search by vector; a score_threshold cannot be applied."
            )
        if name == _WITHOUT and several:
            raise SettingsError(
                f"{kind} gives no scores for a search by vector; which thought is best cannot be told.",
                hint="Use pooling='mean'.",
            )
        return name

    def _has(self, name: str) -> bool:
        """Whether the store has a method of its own, rather than the one that only raises or delegates."""
        own = getattr(type(self._store), name, None)
        return own is not None and own is not getattr(VectorStore, name, None)

    def _scored(self, name: str, found: list[Any]) -> list[ScoredDocument]:
        if name == _WITHOUT:
            return [(document, None) for document in found]
        score = self._score_fn or self._relevance()
        return [(document, score(float(number))) for document, number in found]

    def _relevance(self) -> Callable[[float], float]:
        try:
            return self._store._select_relevance_score_fn()
        except NotImplementedError:
            return float


def _key(document: Document) -> Hashable:
    """What makes two documents of one store the same: the id, or all of it where the store gives none."""
    if document.id is not None:
        return document.id
    return document.page_content, repr(sorted(document.metadata.items(), key=repr))


def _arguments(request: Request) -> dict[str, Any]:
    filters = {} if request.filter is None else {"filter": request.filter}
    return {"k": request.k, **filters, **request.extra}
