"""A LangChain retriever that thinks, over our index or over any LangChain vector store by vectors.

Callbacks and tracers see the thinking as a run beneath the retriever's, and as a custom event.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import Field, field_validator, model_validator

from langchain_o1_retriever.models import O1Embeddings
from o1_retriever.concurrency.processes import check_sendable
from o1_retriever.concurrency.shared import called, finished
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.guard import Decision
from o1_retriever.index.hits import Hit, check_count
from o1_retriever.query import Given, Query, as_query
from o1_retriever.ranking.ranking import cosine_of_distance, of_score
from o1_retriever.search.explanation import Explanation
from o1_retriever.search.result import Pooling, SearchOptions, split_options
from o1_retriever.search.retriever import Retriever
from o1_retriever.search.stores import Embedded, Found, StoreSearch, store_settings
from o1_retriever.thought import QueryEmbedding, Thinking, ThoughtSettings, Vector, flat

_PER_CALL = ("k", "score_threshold", "filter", "settings", "search_type")
# Options of our own search; None: as the retriever of our index is set, or else as `SearchSettings`.
_HOW = ("pooling", "thinking", "hybrid", "min_relevance")
# There is no method for it in VectorStore; these names are what the integrations have agreed on.
_WITH_SCORES = (
    "similarity_search_with_score_by_vector",
    "similarity_search_by_vector_with_relevance_scores",
    "similarity_search_by_vector_with_score",
)
_WITHOUT = "similarity_search_by_vector"
_MMR = "max_marginal_relevance_search_by_vector"

SearchType = Literal["similarity", "mmr", "similarity_score_threshold"]


class O1Retriever(BaseRetriever):
    """Thinks about a query and finds the nearest documents.

    Searches either our own index (`retriever`) or any LangChain vector store (`vectorstore`), one of which
    must be given. `embeddings` (`O1Embeddings`, or a `ThinkingEmbedder`) think for a vector store; None takes
    the store's own, which must then be `O1Embeddings`.

    Documents are those of the store. Their metadata gains scores, which do not count when two documents are
    compared: `relevance_score`, from 0 to 1 (see `o1_retriever.ranking.ranking`; absent where the store
    gives no score), and over our index the `cosine`, `fused_score` after a hybrid search, and the
    `probability` of being relevant with `min_relevance`.
    `scores_in_metadata=False` leaves the metadata as they are; `thoughts_in_metadata=True` adds `thoughts`, a
    string with a line for each. Callbacks receive the thoughts as the custom event `THOUGHTS_EVENT`, even
    when there is no hit, and tracers such as LangSmith show the thinking as a run of its own, `THINKING_RUN`.

    A conversation goes with the query: `invoke(query, history=messages)`, where `messages` are those of
    LangChain (or any that `Conversation.of` reads). The thoughts are written after it; nothing else changes.

    An agent that has reasoned already brings its thoughts, and none is written: `invoke(query,
    thoughts=[...])`, or within a chain `config={"metadata": {THOUGHTS: [...]}}` of the run, which goes with
    every query that is retrieved for in it.

    All from `k` to `search_type` may also be passed to `invoke`, and so may the other fields of
    `SearchSettings`; what else is passed there goes with `search_kwargs` to the store's search by vector, or
    to `Retriever.search`.
    """

    retriever: Retriever | None = None
    """Our own retriever over our own index."""

    vectorstore: VectorStore | None = None
    """Any LangChain vector store that can search by vector."""

    embeddings: O1Embeddings | None = None
    """Who thinks for a vector store; None: the store's own embeddings."""

    k: int = Field(default=4, ge=1)
    """How many documents to return."""

    score_threshold: float | None = None
    """Documents below this relevance, from 0 to 1, are left out; None: all are kept."""

    filter: Any = None
    """Metadata filter in the store's own language; for our index that of docs/filters.md."""

    settings: ThoughtSettings | None = None
    """How to think; None: as the embedder does by itself."""

    pooling: Pooling | None = None
    """"mean" searches with the mean of the thoughts, "best" with each: a document's score is its best."""

    thinking: Thinking | None = None
    """"always", "never", or "auto": only where the query alone does not find something clear."""

    hybrid: bool | None = None
    """Whether to fuse with BM25, which reads the thoughts too; our index alone can."""

    min_relevance: float | None = None
    """Leaves out what is relevant with a smaller probability; our index alone, once it was calibrated."""

    search_type: SearchType = "similarity"
    """As in `as_retriever`: "mmr" takes `fetch_k` and `lambda_mult`, the third one a `score_threshold`."""

    scores_in_metadata: bool = True
    """Whether the metadata gain the scores; without them they are the store's own."""

    thoughts_in_metadata: bool = False
    """Whether the metadata gain `thoughts`, as one string."""

    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """What else the store, or `Retriever.search`, is passed."""

    relevance_score_fn: Callable[[float], float] | None = None
    """From the store's own number to a score, higher is better; None: to a relevance from 0 to 1."""

    @field_validator("embeddings", mode="before")
    @classmethod
    def _as_embeddings(cls, value: Any) -> Any:
        return O1Embeddings(value) if isinstance(value, ThinkingEmbedder) else value

    @model_validator(mode="after")
    def _check(self) -> O1Retriever:
        if (self.retriever is None) == (self.vectorstore is None):
            raise SettingsError("Found both or none of retriever and vectorstore; expected one of them.")
        if self.retriever is not None and self.embeddings is not None:
            raise SettingsError("Found a retriever and embeddings; the retriever brings its own embedder.")
        if self.vectorstore is not None:
            self._thinking_embeddings(self.vectorstore)
        return self

    def __getstate__(self) -> dict[Any, Any]:
        for name, value in vars(self).items():
            check_sendable(value, f"The {name} of O1Retriever")
        return super().__getstate__()

    def _thinking_embeddings(self, store: VectorStore) -> O1Embeddings:
        embeddings = self.embeddings or store.embeddings
        if not isinstance(embeddings, O1Embeddings):
            raise SettingsError(
                f"The store's embeddings are {type(embeddings).__name__}; expected O1Embeddings.",
                hint="Pass embeddings=O1Embeddings(...), of the model that embedded the documents.",
            )
        return embeddings

    def _request(self, query: str, changes: dict[str, Any]) -> Request:
        own = {name: getattr(self, name) for name in (*_PER_CALL, *_HOW)}
        how, options = split_options({**own, **self.search_kwargs, **changes})
        known = {name: options.pop(name) for name in _PER_CALL}
        asked = as_query(query, options.pop("history", None), options.pop("thoughts", None))
        return Request(query=asked, **known, how=how, extra=options)

    def _search(self, request: Request, *, blocking: bool) -> IndexSearch | StoreSearch[Document]:
        if self.retriever is not None:
            return IndexSearch(self.retriever, request, blocking, scores=self.scores_in_metadata)
        assert self.vectorstore is not None
        embeddings = self._thinking_embeddings(self.vectorstore)
        return store_search(
            self.vectorstore, embeddings, request, score_fn=self.relevance_score_fn, blocking=blocking
        )

    async def _documents(
        self, query: str, manager: Any, changes: dict[str, Any], *, blocking: bool
    ) -> list[Document]:
        """The documents with what we know about them; copies, as a store may hand out its own objects."""
        request = self._request(query, {"thoughts": given_thoughts(manager), **changes})
        search = self._search(request, blocking=blocking)
        async with think_run(manager, query) as shown:
            embedded = await search.think()
            shown |= record(embedded.embeddings[0], embedded.decision)
        found = await search.find(embedded)
        if self.relevance_score_fn is None:
            found = [(document, None if score is None else of_score(score)) for document, score in found]
        return [
            document.model_copy(update={"metadata": self._metadata(document, score, embedded.embeddings[0])})
            for document, score in request.kept(found)
        ]

    def _metadata(self, document: Document, score: float | None, query: QueryEmbedding) -> dict[str, Any]:
        metadata = FoundMetadata(document.metadata)
        if self.scores_in_metadata and score is not None:
            metadata["relevance_score"] = score
        if self.thoughts_in_metadata:
            metadata["thoughts"] = flat(query.thoughts)
        return metadata

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return finished(self._documents(query, run_manager, kwargs, blocking=True))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await self._documents(query, run_manager, kwargs, blocking=False)

    def explain(self, query: str, **kwargs: Any) -> Explanation:
        """What each thought finds in our own index, and what thinking moved; `kwargs` as in `invoke`.

        `score_threshold` is not applied. Raises `SettingsError` over a vector store.
        """
        if self.retriever is None:
            raise SettingsError(
                f"This retriever searches a {type(self.vectorstore).__name__}; explain needs our own index.",
                hint="Type: O1Retriever(retriever=Retriever(embedder, index)).explain(query)",
            )
        request = self._request(query, kwargs)
        return self.retriever.explain(request.query, **request.index_options)

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """What LangSmith shows of this retriever."""
        params = super()._get_ls_params(**kwargs)
        if self.vectorstore is not None:
            embeddings = self._thinking_embeddings(self.vectorstore)
            params["ls_vector_store_provider"] = type(self.vectorstore).__name__
            params["ls_embedding_model"] = embeddings.model_name
        elif self.retriever is not None:
            params["ls_vector_store_provider"] = "o1-retriever"
            params["ls_embedding_model"] = self.retriever.embedder.space.fingerprint
        params["ls_embedding_provider"] = "o1-retriever"
        return params


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
        request.how,
        kind,
        "Use our own index, or a store by stores_o1_retriever.open_index (docs/scaling.md).",
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

    given = request.query.thoughts is not None
    return StoreSearch(how=how, k=request.k, store=kind, embed=embed, nearest=nearest, key=_key, given=given)


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


# What a search adds to a document's metadata.
ADDED = ("relevance_score", "cosine", "fused_score", "probability", "thoughts")


class FoundMetadata(dict[str, Any]):
    """The metadata of a document that was found, with scores that are no part of the document.

    Retrievers that ask several queries, such as `MultiQueryRetriever`, tell by equality whether two of them
    found one document. So two are equal whatever the search has `ADDED`, and equal to the store's own.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):
            return NotImplemented
        return _own(self) == _own(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


def _own(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in ADDED}


def raw_scores(hit: Hit) -> dict[str, float]:
    """The scores of our own search from which the relevance is made."""
    fused = {} if hit.fused_score is None else {"fused_score": hit.fused_score}
    likely = {} if hit.probability is None else {"probability": hit.probability}
    return {"cosine": hit.score, **fused, **likely}


THOUGHTS_EVENT = "o1_retriever_thoughts"
"""Name of the custom event that shows callbacks, and `astream_events`, what was thought."""

THINKING_RUN = "think"
"""Name of the run, a child of the retriever's, in which tracers such as LangSmith show the thinking."""


THOUGHTS = "o1_retriever_thoughts"
"""Key of a run's metadata under which a caller brings thoughts of its own."""


def given_thoughts(manager: CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun) -> Given:
    """The thoughts that the configuration of a run brings; None where it brings none."""
    found: Given = manager.metadata.get(THOUGHTS)
    return found


@asynccontextmanager
async def think_run(
    manager: CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun, query: str
) -> AsyncIterator[dict[str, Any]]:
    """A run in which a query is thought about; the block puts a `record` of what was thought into the dict.

    Under a blocking manager nothing waits.
    """
    blocking = isinstance(manager, CallbackManagerForRetrieverRun)
    dispatch = dispatch_custom_event if blocking else adispatch_custom_event
    shown: dict[str, Any] = {}
    run: Any = await _value(manager.get_child().on_chain_start({}, {"query": query}, name=THINKING_RUN))
    try:
        yield shown
    except BaseException as error:
        await _value(run.on_chain_error(error))
        raise
    await _value(run.on_chain_end(shown))
    await _value(dispatch(THOUGHTS_EVENT, shown, config={"callbacks": manager.get_child()}))


async def _value(result: Any) -> Any:
    """What a manager's method returns, of whichever of the two kinds it is."""
    return await result if inspect.isawaitable(result) else result


def record(embedding: QueryEmbedding, decision: Decision | None) -> dict[str, Any]:
    """What was thought, and why, as plain JSON values."""
    return {
        "query": embedding.query,
        "thoughts": [thought.to_dict() for thought in embedding.thoughts],
        "think_ms": round(embedding.timings.think_ms, 3),
        "embed_ms": round(embedding.timings.embed_ms, 3),
        "decision": None if decision is None else decision.to_dict(),
    }
