"""What the retriever searches: our own index, or any LangChain vector store by vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from langchain_o1_retriever.embeddings import O1Embeddings
from langchain_o1_retriever.metadata import raw_scores
from o1_retriever.concurrency.blocking import called
from o1_retriever.errors import SettingsError
from o1_retriever.index.hits import Hit, check_count
from o1_retriever.query import Query
from o1_retriever.ranking.relevance import cosine_of_distance
from o1_retriever.search.result import SearchOptions
from o1_retriever.search.retriever import Retriever
from o1_retriever.search.stores import Embedded, Found, StoreSearch, store_settings
from o1_retriever.thought import QueryEmbedding, Thinking, ThoughtSettings, Vector

# There is no method for it in VectorStore; these names are what the integrations have agreed on.
_WITH_SCORES = (
    "similarity_search_with_score_by_vector",
    "similarity_search_by_vector_with_relevance_scores",
    "similarity_search_by_vector_with_score",
)
_WITHOUT = "similarity_search_by_vector"
_MMR = "max_marginal_relevance_search_by_vector"

SearchType = Literal["similarity", "mmr", "similarity_score_threshold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call of the retriever asks for.

    `how` has those options of our own search that were passed; `extra` goes to the store, or to our index, as
    it is. Raises `SettingsError` for `k`, `score_threshold` and `search_type`.
    """

    query: Query
    k: int
    search_type: SearchType = "similarity"
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
        if self.search_type not in get_args(SearchType):
            expected = ", ".join(map(repr, get_args(SearchType)))
            raise SettingsError(f"search_type is {self.search_type!r}; expected one of {expected}.")
        if self.search_type == "similarity_score_threshold" and threshold is None:
            raise SettingsError(f"search_type is {self.search_type!r}; expected a score_threshold with it.")
        if self.search_type == "mmr" and threshold is not None:
            raise SettingsError("search_type is 'mmr', which ranks by variety; it takes no score_threshold.")

    @property
    def index_options(self) -> dict[str, Any]:
        """What `Retriever.search` takes beside the query."""
        own = {"k": self.k, "where": self.filter, "settings": self.settings}
        return {**own, **self.how, **self.extra}

    def kept(self, ranking: Found[Document]) -> Found[Document]:
        """Those that reach the threshold."""
        if self.score_threshold is None:
            return ranking
        return [(doc, score) for doc, score in ranking if score is not None and score >= self.score_threshold]


@dataclass(frozen=True, slots=True)
class IndexSearch:
    """Searches our own index with our own retriever, which thinks and searches in one go.

    `scores` says whether the documents' metadata gain those of our search.
    """

    retriever: Retriever
    request: Request
    blocking: bool
    scores: bool = True

    async def think(self) -> Embedded[Document]:
        """Think about the query, and find its documents."""
        options = self.request.index_options
        varied = self.request.search_type == "mmr"
        fetch_k, variety = (options.pop("fetch_k", 20), options.pop("lambda_mult", 0.5)) if varied else (0, 0)
        options["k"] = max(self.request.k, fetch_k)
        if self.blocking:
            result = self.retriever.search(self.request.query, **options)
        else:
            result = await self.retriever.asearch(self.request.query, **options)
        if varied:
            found = [hit.id for hit in result]
            vectors = await called(self.blocking, self.retriever.index.vectors, found)
            chosen = maximal_marginal_relevance(
                result.embedding.vector, list(vectors), lambda_mult=variety, k=self.request.k
            )
            hits = [result.hits[place] for place in chosen]
        else:
            hits = list(result)
        documents = [(self._document(hit), hit.relevance) for hit in hits]
        return Embedded(embeddings=[result.embedding], decision=result.decision, found=documents)

    async def find(self, embedded: Embedded[Document]) -> Found[Document]:
        """The documents nearest to the query and its thoughts, best first."""
        return embedded.found or ()

    def _document(self, hit: Hit) -> Document:
        added = raw_scores(hit) if self.scores else {}
        return Document(id=hit.id, page_content=hit.text, metadata={**hit.metadata, **added})


def store_search(
    store: VectorStore,
    embeddings: O1Embeddings,
    request: Request,
    *,
    score_fn: Callable[[float], float] | None,
    blocking: bool,
) -> StoreSearch[Document]:
    """A search of a vector store with a query and its thoughts.

    A document's score is the cosine for Chroma, whatever its space, and else what the store itself calls
    relevance (for the in-memory store: the cosine), or `score_fn` of the store's own number; None where the
    store gives none. Raises `SettingsError` for what the store cannot do.
    """
    kind = type(store).__name__
    how = store_settings(
        request.how, kind, "Use our own index, or LangChain's EnsembleRetriever with a BM25Retriever."
    )
    method = _MMR if request.search_type == "mmr" else _search_method(store)
    if method == _MMR and (how.pooling == "best" or how.thinking == "auto"):
        raise SettingsError(
            "search_type is 'mmr'; expected 'similarity' with pooling='best' or thinking='auto'."
        )
    if method == _WITHOUT and request.score_threshold is not None:
        raise SettingsError(
            f"{kind} gives no scores for a search by vector; a score_threshold cannot be applied."
        )
    base = request.settings or embeddings.settings or embeddings.embedder.settings
    filters = {} if request.filter is None else {"filter": request.filter}

    async def embed(thinking: Thinking | None) -> list[QueryEmbedding]:
        settings = base.with_changes(thinking=thinking)
        if blocking:
            return [embeddings.think(request.query, settings=settings)]
        return [await embeddings.athink(request.query, settings=settings)]

    async def nearest(vectors: Vector, k: int) -> list[Found[Document]]:
        options = {"k": k, **filters, **request.extra}
        if not blocking and _has(store, f"a{method}"):
            search = getattr(store, f"a{method}")
            rankings = await asyncio.gather(*(search(vector.tolist(), **options) for vector in vectors))
        else:
            search = getattr(store, method)
            rankings = [await called(blocking, search, vector.tolist(), **options) for vector in vectors]
        if method in (_WITHOUT, _MMR):
            return [[(document, None) for document in ranking] for ranking in rankings]
        score = score_fn or _relevance(store)
        return [[(document, score(float(number))) for document, number in ranking] for ranking in rankings]

    return StoreSearch(how=how, k=request.k, store=kind, embed=embed, nearest=nearest, key=_key)


def _search_method(store: VectorStore) -> str:
    """The name of the method that searches by vector, the one with scores where there is one."""
    name = next((each for each in (*_WITH_SCORES, _WITHOUT) if _has(store, each)), None)
    if name is None:
        raise SettingsError(
            f"{type(store).__name__} cannot search by vector; expected a store with {_WITHOUT}.",
            hint="Give the store O1Embeddings as its embeddings and use store.as_retriever().",
        )
    return name


def _has(store: VectorStore, name: str) -> bool:
    """Whether the store has a method of its own, rather than the one that only raises or delegates."""
    own = getattr(type(store), name, None)
    return own is not None and own is not getattr(VectorStore, name, None)


def _relevance(store: VectorStore) -> Callable[[float], float]:
    if type(store).__name__ == "Chroma" and not getattr(store, "override_relevance_score_fn", None):
        # LangChain's own formula for `l2` takes the squared distance for the distance, and falls below 0.
        cosine = cosine_of_distance(store._collection)  # type: ignore[attr-defined]
        if cosine is not None:
            return cosine
    try:
        return store._select_relevance_score_fn()
    except NotImplementedError:
        return float


def _key(document: Document) -> Hashable:
    """What makes two documents of one store the same: the id, or all of it where the store gives none."""
    if document.id is not None:
        return document.id
    return document.page_content, repr(sorted(document.metadata.items(), key=repr))
