"""A LangChain retriever that thinks, over our index or over any LangChain vector store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.vectorstores import VectorStore
from pydantic import Field, field_validator, model_validator

from langchain_o1_retriever.embeddings import O1Embeddings
from langchain_o1_retriever.metadata import FoundMetadata
from langchain_o1_retriever.searches import IndexSearch, Request, SearchType, store_search
from langchain_o1_retriever.tracing import record, think_run
from o1_retriever.concurrency.blocking import finished
from o1_retriever.concurrency.sent import check_sendable
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.explain.explanation import Explanation
from o1_retriever.query import as_query
from o1_retriever.ranking.relevance import of_score
from o1_retriever.search.result import Pooling, split_options
from o1_retriever.search.retriever import Retriever
from o1_retriever.search.stores import StoreSearch
from o1_retriever.thought import QueryEmbedding, Thinking, ThoughtSettings, flat

_PER_CALL = ("k", "score_threshold", "filter", "settings", "search_type")
# Options of our own search; None: as the retriever of our index is set, or else as `SearchSettings`.
_HOW = ("pooling", "thinking", "hybrid")


class O1Retriever(BaseRetriever):
    """Thinks about a query and finds the nearest documents.

    Searches either our own index (`retriever`) or any LangChain vector store (`vectorstore`), one of which
    must be given. `embeddings` (`O1Embeddings`, or a `ThinkingEmbedder`) think for a vector store; None takes
    the store's own, which must then be `O1Embeddings`.

    Documents are those of the store. Their metadata gains scores, which do not count when two documents are
    compared: `relevance_score`, from 0 to 1 (see `o1_retriever.ranking.relevance`; absent where the store
    gives no score), and over our index the `cosine`, and `fused_score` after a hybrid search.
    `scores_in_metadata=False` leaves the metadata as they are; `thoughts_in_metadata=True` adds `thoughts`, a
    string with a line for each. Callbacks receive the thoughts as the custom event `THOUGHTS_EVENT`, even
    when there is no hit, and tracers such as LangSmith show the thinking as a run of its own, `THINKING_RUN`.

    A conversation goes with the query: `invoke(query, history=messages)`, where `messages` are those of
    LangChain (or any that `Conversation.of` reads). The thoughts are written after it; nothing else changes.

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
        return Request(query=as_query(query, options.pop("history", None)), **known, how=how, extra=options)

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
        request = self._request(query, changes)
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
