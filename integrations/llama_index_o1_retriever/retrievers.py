"""A LlamaIndex retriever that thinks, over our index or over any `VectorStoreIndex`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)

from llama_index_o1_retriever.models import O1Embedding, announce
from o1_retriever.concurrency.shared import called, finished
from o1_retriever.documents.structure import RESERVED
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.guard import LOOKED_AT
from o1_retriever.index.hits import Hit, check_count
from o1_retriever.query import History, Query, as_queries, as_query
from o1_retriever.ranking.ranking import cosine_of_distance, of_score
from o1_retriever.search.explanation import Explanation
from o1_retriever.search.result import split_options
from o1_retriever.search.retriever import Retriever
from o1_retriever.search.stores import StoreSearch, store_settings
from o1_retriever.thought import QueryEmbedding, Thinking, ThoughtSettings, Vector, flat

_BASE_OPTIONS = ("callback_manager", "object_map", "objects", "verbose")


class O1Retriever(BaseRetriever):
    """Thinks about a query and finds the nearest nodes.

    `source` is our own `Retriever`, or a `VectorStoreIndex` over any vector store; for the latter
    `embed_model` (`O1Embedding` or a `ThinkingEmbedder`) thinks, None being the index's own, which must
    then be an `O1Embedding`. Scores are from 0 to 1 (see `o1_retriever.ranking.ranking`), but for a store's
    other query modes, which have their own. Nodes below `similarity_cutoff` are left out. `settings` None
    takes the embedder's own. `options` are those of every LlamaIndex retriever (`callback_manager`,
    `object_map`, `objects`, `verbose`), those of our search (`pooling`, `thinking`, and for our own index
    `hybrid` and `min_relevance`, see `SearchSettings`), and what else `index.as_retriever`, or
    `Retriever.search`, takes.

    A `QueryBundle` is honoured: its `embedding` is used as it is, without thinking; its
    `custom_embedding_strs`, such as what `HyDEQueryTransform` or an agent wrote, are thoughts about its
    `query_str`, and no others are written (without a `query_str` each is a query, and their mean is searched
    with); a `ConversationBundle` brings the conversation after which the thoughts are written.

    The thoughts, and the raw scores of our own index, are told to the event handlers as `O1ThoughtsEvent`.
    Nodes stay as they are, since their metadata goes into prompts; with `thoughts_in_metadata=True` it gains
    `thoughts`, a string that prompts and embeddings leave out.
    """

    def __init__(
        self,
        source: Retriever | BaseIndex[Any],
        *,
        embed_model: O1Embedding | ThinkingEmbedder | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        similarity_cutoff: float | None = None,
        filters: MetadataFilters | None = None,
        settings: ThoughtSettings | None = None,
        thoughts_in_metadata: bool = False,
        **options: Any,
    ) -> None:
        check_count("similarity_top_k", similarity_top_k)
        own = {name: options.pop(name) for name in _BASE_OPTIONS if name in options}
        self._similarity_top_k = similarity_top_k
        self._cutoff = similarity_cutoff
        self._shows_thoughts = thoughts_in_metadata
        call: dict[str, Any] = {
            "k": similarity_top_k,
            "filters": filters,
            "settings": settings,
            "options": options,
        }
        self._search: IndexSearch | VectorStoreSearch
        if isinstance(source, Retriever):
            if embed_model is not None:
                raise SettingsError("Found a Retriever and an embed_model; the retriever brings its own.")
            self._search = IndexSearch(source, **call)
        elif isinstance(source, BaseIndex):
            own = {"object_map": source._object_map, "callback_manager": source._callback_manager, **own}
            model = _thinking_model(embed_model or source._embed_model)  # type: ignore[attr-defined]
            self._search = VectorStoreSearch(source, model, **call)
        else:
            raise SettingsError(
                f"source is a {type(source).__name__}; expected our Retriever or a VectorStoreIndex."
            )
        own.setdefault("callback_manager", Settings.callback_manager)
        super().__init__(**own)

    @property
    def similarity_top_k(self) -> int:
        """How many nodes are returned."""
        return self._similarity_top_k

    def explain(self, query: str | QueryBundle) -> Explanation:
        """What each thought finds in our own index, and what thinking moved.

        Of a bundle the query counts, and the history of a `ConversationBundle`; `similarity_cutoff` is not
        applied. Raises `SettingsError` over a `VectorStoreIndex`.
        """
        if isinstance(self._search, VectorStoreSearch):
            raise SettingsError(
                "This retriever searches a VectorStoreIndex; explain needs our own index.",
                hint="Type: O1Retriever(Retriever(embedder, index)).explain(query)",
            )
        bundle = QueryBundle(query) if isinstance(query, str) else query
        return self._search.explain(bundle)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return finished(self._nodes(query_bundle, blocking=True))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._nodes(query_bundle, blocking=False)

    async def _nodes(self, bundle: QueryBundle, *, blocking: bool) -> list[NodeWithScore]:
        nodes, embeddings = await self._search.retrieve(bundle, blocking=blocking)
        if self._shows_thoughts:
            nodes = [with_thoughts(node, embeddings) for node in nodes]
        if self._cutoff is None:
            return nodes
        return [each for each in nodes if each.score is not None and each.score >= self._cutoff]


def _thinking_model(model: Any) -> O1Embedding:
    if isinstance(model, ThinkingEmbedder):
        return O1Embedding(model)
    if not isinstance(model, O1Embedding):
        raise SettingsError(
            f"The index's embed_model is a {type(model).__name__}; expected an O1Embedding.",
            hint="Pass embed_model=O1Embedding(...), of the model that embedded the nodes.",
        )
    return model


@dataclass
class ConversationBundle(QueryBundle):
    """A query with its history, for retrievers and query engines: `ConversationBundle("Why?", history=chat)`.

    `history` are the messages of LlamaIndex before the query (`memory.get()`, `chat_engine.chat_history`), or
    any that `Conversation.of` reads. `O1Retriever` writes its thoughts after them; others see the query.
    """

    history: History = None


def queries_of(bundle: QueryBundle) -> list[Query]:
    """The query of a bundle with its history, and with its custom strings as thoughts that were given.

    Without a `query_str` each of the strings is a query. Raises `SettingsError` where there is no text.
    """
    asked, strings = bundle.query_str, bundle.custom_embedding_strs
    if asked and asked.strip():
        # `HyDEQueryTransform` puts the query itself beside what it writes.
        given = [text for text in strings or () if text.strip() != asked.strip()]
        return [as_query(asked, _history(bundle), given or None)]
    if not strings:
        raise SettingsError("The query bundle has no text to embed; expected a query_str or an embedding.")
    return as_queries(strings, [_history(bundle)] * len(strings))


def _history(bundle: QueryBundle) -> History:
    return bundle.history if isinstance(bundle, ConversationBundle) else None


# The nodes that a search found, and the query or queries as they were thought about.
Retrieved = tuple[list[NodeWithScore], Sequence[QueryEmbedding]]


class IndexSearch:
    """Searches our own index with our own retriever. `options` are those of `Retriever.search`."""

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int,
        filters: MetadataFilters | None,
        settings: ThoughtSettings | None,
        options: dict[str, Any],
    ) -> None:
        self._retriever = retriever
        self._settings = settings
        self._options = {"k": k, "where": as_where(filters), "settings": settings, **options}
        how, _ = split_options(options)
        self._how = retriever.search_settings.with_changes(**how)

    async def retrieve(self, bundle: QueryBundle, *, blocking: bool) -> Retrieved:
        """The nodes nearest to a query, and what was thought."""
        hits, embeddings = await self._hits(bundle, blocking)
        return [_node(hit) for hit in hits], embeddings

    def explain(self, bundle: QueryBundle) -> Explanation:
        """What is found for the bundle's query, and what thinking does to it."""
        queries = queries_of(bundle)
        if len(queries) > 1:
            raise SettingsError("The query bundle brings several queries; expected a query_str to explain.")
        return self._retriever.explain(queries[0], **self._options)

    async def _hits(
        self, bundle: QueryBundle, blocking: bool
    ) -> tuple[Sequence[Hit], Sequence[QueryEmbedding]]:
        embedded: Sequence[QueryEmbedding] = ()
        if bundle.embedding is None:
            queries = queries_of(bundle)
            if len(queries) == 1:
                if blocking:
                    result = self._retriever.search(queries[0], **self._options)
                else:
                    result = await self._retriever.asearch(queries[0], **self._options)
                announce(result.embedding, result.decision, result.hits)
                return result.hits, [result.embedding]
            embedded = await self._embedded(queries, blocking)
            vectors = self._how.pooled(*embedded)
        elif self._how.min_relevance is not None:
            raise SettingsError("The query bundle brings a vector; min_relevance needs a query.")
        else:
            vectors = _given(bundle.embedding)
        k, where = self._options["k"], self._options["where"]
        index = self._retriever.index
        return (await called(blocking, index.search_groups, [vectors], k=k, where=where))[0], embedded

    async def _embedded(self, queries: list[Query], blocking: bool) -> list[QueryEmbedding]:
        """Several queries that are searched with together."""
        if self._how.hybrid or self._how.thinking == "auto" or self._how.min_relevance is not None:
            raise SettingsError(
                "The query bundle brings several queries; hybrid, thinking='auto' and min_relevance are for "
                "one.",
                hint="Pass them one by one, or with a query_str: then the strings are thoughts about it.",
            )
        embedder = self._retriever.embedder
        settings = (self._settings or embedder.settings).with_changes(thinking=self._how.thinking)
        if blocking:
            embedded = embedder.embed_queries(queries, settings=settings)
        else:
            embedded = await embedder.aembed_queries(queries, settings=settings)
        for embedding in embedded:
            announce(embedding)
        return embedded


class VectorStoreSearch:
    """Searches an index of LlamaIndex, whose own retriever is given the vectors.

    `options` are those of our search and of `index.as_retriever`. Raises `SettingsError` for what a vector
    store cannot do.
    """

    def __init__(
        self,
        index: BaseIndex[Any],
        model: O1Embedding,
        *,
        k: int,
        filters: MetadataFilters | None,
        settings: ThoughtSettings | None,
        options: dict[str, Any],
    ) -> None:
        how, others = split_options(options)
        if filters is not None:
            others["filters"] = filters
        self._how = store_settings(
            how,
            "VectorStoreIndex",
            "Use our own index, a store by stores_o1_retriever.open_index, or its own hybrid query mode.",
        )
        self._mode = VectorStoreQueryMode(others.get("vector_store_query_mode", "default"))
        compares = self._how.pooling == "best" or self._how.thinking == "auto"
        if compares and self._mode != VectorStoreQueryMode.DEFAULT:
            raise SettingsError(
                f"vector_store_query_mode is {self._mode.value!r}; expected 'default' with pooling='best' or "
                "thinking='auto', which compare cosines."
            )
        self._model = model
        self._k = k
        self._settings = settings or model.settings
        self._retrievers: dict[int, Any] = {
            depth: index.as_retriever(similarity_top_k=depth, embed_model=model, **others)
            for depth in (k, max(k, LOOKED_AT))
        }
        self._store = index.vector_store  # type: ignore[attr-defined]

    async def retrieve(self, bundle: QueryBundle, *, blocking: bool) -> Retrieved:
        """The nodes nearest to a query, and what was thought."""
        search = self._search(bundle, blocking=blocking)
        embeddings: Sequence[QueryEmbedding] = ()
        if bundle.embedding is not None:
            found = await search.look_up(_given(bundle.embedding), self._k)
        else:
            embedded = await search.think()
            embeddings = embedded.embeddings
            for embedding in embeddings:
                announce(embedding, embedded.decision)
            found = await search.find(embedded)
        return [NodeWithScore(node=node, score=self._relevance(score)) for node, score in found], embeddings

    def _relevance(self, score: float | None) -> float | None:
        """From 0 to 1 where it is a cosine; other ways to query than by the nearest vectors keep theirs."""
        if score is None or self._mode != VectorStoreQueryMode.DEFAULT:
            return score
        return of_score(score)

    def _search(self, bundle: QueryBundle, *, blocking: bool) -> StoreSearch[BaseNode]:
        queries = queries_of(bundle) if bundle.embedding is None else []

        async def embed(thinking: Thinking | None) -> list[QueryEmbedding]:
            settings = self._settings.with_changes(thinking=thinking)
            if blocking:
                return self._model.think(queries, settings=settings, events=False)
            return await self._model.athink(queries, settings=settings, events=False)

        async def nearest(vectors: Vector, k: int) -> list[list[tuple[BaseNode, float | None]]]:
            # Copies, because the caller's bundle may be used with another retriever.
            bundles = [replace(bundle, embedding=vector.tolist()) for vector in vectors]
            retriever = self._retrievers[k]
            # Where a store has no async query, LlamaIndex runs the blocking one within the loop.
            if blocking or type(self._store).aquery is BasePydanticVectorStore.aquery:
                rankings = [await called(blocking, retriever._retrieve, each) for each in bundles]
            else:
                rankings = await asyncio.gather(*map(retriever._aretrieve, bundles))
            as_cosine = self._as_cosine()
            return [[(each.node, as_cosine(each.score)) for each in ranking] for ranking in rankings]

        return StoreSearch(
            how=self._how,
            k=self._k,
            store=type(self._store).__name__,
            embed=embed,
            nearest=nearest,
            key=lambda node: node.node_id,
            given=any(query.thoughts is not None for query in queries),
        )

    def _as_cosine(self) -> Callable[[float | None], float | None]:
        """From the store's scores to cosines: LlamaIndex's Chroma store reports exp(-distance)."""
        chroma = (
            self._mode == VectorStoreQueryMode.DEFAULT and self._store.class_name() == "ChromaVectorStore"
        )
        cosine = cosine_of_distance(self._store.client) if chroma else None
        return lambda score: cosine(-math.log(score)) if cosine and score else score


def _given(embedding: list[float]) -> Vector:
    return np.asarray(embedding, np.float32)[None]


# What this library writes about a file, and not about its text, is not for prompts: `root` is a path here.
_PRIVATE = tuple(name for name in RESERVED if name not in ("title", "page"))


def _node(hit: Hit) -> NodeWithScore:
    ours = [name for name in _PRIVATE if name in hit.metadata]
    node = TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=dict(hit.metadata),
        excluded_embed_metadata_keys=ours,
        excluded_llm_metadata_keys=ours,
    )
    return NodeWithScore(node=node, score=hit.relevance)


def with_thoughts(found: NodeWithScore, embeddings: Sequence[QueryEmbedding]) -> NodeWithScore:
    """A copy whose metadata say what was thought, as one string that prompts and embeddings leave out."""
    node, name = found.node, "thoughts"
    thoughts = [thought for embedding in embeddings for thought in embedding.thoughts]
    changed = {
        "metadata": {**node.metadata, name: flat(thoughts)},
        "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, name],
        "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, name],
    }
    return NodeWithScore(node=node.model_copy(update=changed), score=found.score)


_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.ANY: "$any",
    FilterOperator.ALL: "$all",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$contains",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "$icontains",
    FilterOperator.IS_EMPTY: "$empty",
}
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or", FilterCondition.NOT: "$or"}


def as_where(filters: MetadataFilter | MetadataFilters | None) -> dict[str, Any] | None:
    """The filter as `Index.search` takes it. Raises `SettingsError` for what the index cannot do."""
    if isinstance(filters, MetadataFilter):
        operator = _known(filters.operator, _OPERATORS, f"The filter on {filters.key!r} has the operator")
        return {filters.key: {operator: True if operator == "$empty" else filters.value}}
    if filters is None or not filters.filters:
        return None
    condition = filters.condition or FilterCondition.AND
    key = _known(condition, _CONDITIONS, "The filter condition is")
    parts = [part for each in filters.filters if (part := as_where(each)) is not None]
    if not parts:
        return None
    where = parts[0] if len(parts) == 1 else {key: parts}
    return {"$not": where} if condition == FilterCondition.NOT else where


def _known(name: Any, ours: dict[Any, str], what: str) -> str:
    if name not in ours:
        expected = ", ".join(each.value for each in ours)
        raise SettingsError(f"{what} {name.value!r}; expected one of {expected}.")
    return ours[name]
