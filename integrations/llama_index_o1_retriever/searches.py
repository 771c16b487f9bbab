"""What the retriever searches: our own index, or an index of LlamaIndex whose store is given the vectors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)

from llama_index_o1_retriever.embeddings import O1Embedding, announce
from o1_retriever.errors import SettingsError
from o1_retriever.explain.explanation import Explanation
from o1_retriever.guard import LOOKED_AT
from o1_retriever.index.hits import Hit
from o1_retriever.query import History, Query, as_queries, as_query
from o1_retriever.ranking.fusion import best_of
from o1_retriever.search.result import SearchSettings, split_options
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import QueryEmbedding, Thinking, ThoughtSettings, Vector
from o1_retriever.vectors import searching, unit


@dataclass
class ConversationBundle(QueryBundle):
    """A query with its history, for retrievers and query engines: `ConversationBundle("Why?", history=chat)`.

    `history` are the messages of LlamaIndex before the query (`memory.get()`, `chat_engine.chat_history`), or
    any that `Conversation.of` reads. `O1Retriever` writes its thoughts after them; others see the query.
    """

    history: History = None


def queries_of(bundle: QueryBundle) -> list[Query]:
    """The strings of a bundle, each with the bundle's history. Raises `SettingsError` where there is none."""
    texts = bundle.embedding_strs
    if not texts:
        raise SettingsError("The query bundle has no text to embed; expected a query_str or an embedding.")
    return as_queries(texts, [_history(bundle)] * len(texts))


def _history(bundle: QueryBundle) -> History:
    return bundle.history if isinstance(bundle, ConversationBundle) else None


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

    def retrieve(self, bundle: QueryBundle) -> list[NodeWithScore]:
        """The nodes nearest to a query."""
        if bundle.embedding is None:
            queries = queries_of(bundle)
            if [query.text for query in queries] == [bundle.query_str]:
                result = self._retriever.search(queries[0], **self._options)
                announce(result.embedding, result.decision)
                return [_node(hit) for hit in result.hits]
            vectors = self._vectors(queries)
        else:
            vectors = np.asarray(bundle.embedding, np.float32)[None]
        k, where = self._options["k"], self._options["where"]
        return [_node(hit) for hit in self._retriever.index.search_groups([vectors], k=k, where=where)[0]]

    async def aretrieve(self, bundle: QueryBundle) -> list[NodeWithScore]:
        """The same, in a thread."""
        return await asyncio.to_thread(self.retrieve, bundle)

    def explain(self, bundle: QueryBundle) -> Explanation:
        """What is found for the bundle's query, and what thinking does to it."""
        return self._retriever.explain(as_query(bundle.query_str, _history(bundle)), **self._options)

    def _vectors(self, queries: list[Query]) -> Vector:
        """What several strings are searched with together."""
        if self._how.hybrid or self._how.thinking == "auto":
            raise SettingsError(
                "The query bundle brings several strings; hybrid and thinking='auto' are for one query.",
                hint="Pass them one by one, or use QueryFusionRetriever.",
            )
        embedder, settings = self._retriever.embedder, self._settings
        if self._how.thinking is not None:
            base = settings or getattr(embedder, "settings", None) or ThoughtSettings()
            settings = base.with_changes(thinking=self._how.thinking)
        embedded = embedder.embed_queries(queries, settings=settings)
        for embedding in embedded:
            announce(embedding)
        return _pooled(embedded, self._how)


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """The vectors (n, dimension) to search with, and the nodes where the query alone has found enough."""

    vectors: Vector
    nodes: list[NodeWithScore] | None = None


class StoreSearch:
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
        self._how = SearchSettings().with_changes(**how)
        self._mode = VectorStoreQueryMode(others.get("vector_store_query_mode", "default"))
        self._check()
        self._model = model
        self._k = k
        self._settings = settings or model.settings
        self._inner = index.as_retriever(similarity_top_k=k, embed_model=model, **others)
        self._deep = index.as_retriever(similarity_top_k=max(k, LOOKED_AT), embed_model=model, **others)
        self._store = index.vector_store  # type: ignore[attr-defined]

    def _check(self) -> None:
        if self._how.hybrid:
            raise SettingsError(
                "hybrid=True was passed for a VectorStoreIndex, which has no ranking by words to fuse with.",
                hint="Use our own index, the store's own hybrid query mode, or a QueryFusionRetriever.",
            )
        compares = self._how.pooling == "best" or self._how.thinking == "auto"
        if compares and self._mode != VectorStoreQueryMode.DEFAULT:
            raise SettingsError(
                f"vector_store_query_mode is {self._mode.value!r}; expected 'default' with pooling='best' or "
                "thinking='auto', which compare cosines."
            )

    def retrieve(self, bundle: QueryBundle) -> list[NodeWithScore]:
        """The nodes nearest to a query."""
        embedded = self._embedded(bundle)
        if embedded.nodes is not None:
            return embedded.nodes
        return self._best([self._nearest(self._inner, bundle, vector) for vector in embedded.vectors])

    async def aretrieve(self, bundle: QueryBundle) -> list[NodeWithScore]:
        """The same without blocking the loop."""
        # Where a store has no async query, LlamaIndex runs the blocking one within the loop.
        if self._how.thinking == "auto" or type(self._store).aquery is BasePydanticVectorStore.aquery:
            return await asyncio.to_thread(self.retrieve, bundle)
        embedded = await asyncio.to_thread(self._embedded, bundle)
        bundles = [_with_embedding(bundle, vector) for vector in embedded.vectors]
        with searching(type(self._store).__name__, embedded.vectors.shape[1]):
            rankings = await asyncio.gather(*map(self._inner._aretrieve, bundles))
        return self._best([self._scored(nodes) for nodes in rankings])

    def _embedded(self, bundle: QueryBundle) -> _Embedded:
        """Think about the query; with thinking="auto" after a look at what it finds by itself."""
        if bundle.embedding is not None:
            return _Embedded(vectors=np.asarray(bundle.embedding, np.float32)[None])
        queries = queries_of(bundle)
        if self._how.thinking != "auto":
            return _Embedded(vectors=_pooled(self._think(queries, self._how.thinking), self._how))
        fast = self._think(queries, "never", events=False)
        nodes = self._nearest(self._deep, bundle, _mean(fast))
        decision = self._how.gate.decide([_score(node) for node in nodes])
        embedded = self._think(queries, "always", events=False) if decision.think else fast
        for embedding in embedded:
            announce(embedding, decision)
        known = None if decision.think else nodes[: self._k]
        return _Embedded(vectors=_pooled(embedded, self._how), nodes=known)

    def _think(
        self, queries: list[Query], thinking: Thinking | None, *, events: bool = True
    ) -> list[QueryEmbedding]:
        settings = self._settings.with_changes(thinking=thinking)
        return self._model.think(queries, settings=settings, events=events)

    def _nearest(self, retriever: Any, bundle: QueryBundle, vector: Vector) -> list[NodeWithScore]:
        with searching(type(self._store).__name__, len(vector)):
            return self._scored(retriever._retrieve(_with_embedding(bundle, vector)))

    def _scored(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        return with_cosines(nodes, self._store, self._mode)

    def _best(self, rankings: list[list[NodeWithScore]]) -> list[NodeWithScore]:
        if len(rankings) == 1:
            return rankings[0]
        nodes = {each.node.node_id: each.node for ranking in rankings for each in ranking}
        scores = [[(each.node.node_id, _score(each)) for each in ranking] for ranking in rankings]
        return [NodeWithScore(node=nodes[name], score=score) for name, score in best_of(scores, self._k)]


def _score(node: NodeWithScore) -> float:
    if node.score is None:
        raise SettingsError(
            "The vector store gives no scores; pooling='best' and thinking='auto' compare them.",
            hint="Use pooling='mean', and thinking='always' or 'never'.",
        )
    return float(node.score)


def _pooled(embedded: Sequence[QueryEmbedding], how: SearchSettings) -> Vector:
    """What is searched with: every thought of every string, or the mean of all."""
    if how.pooling == "best":
        return np.concatenate([each.vectors for each in embedded])
    return _mean(embedded)[None]


def _mean(embedded: Sequence[QueryEmbedding]) -> Vector:
    if len(embedded) == 1:
        return embedded[0].vector
    mean = np.mean([embedding.vector for embedding in embedded], axis=0, dtype=np.float32)
    direction: Vector = unit(np.asarray(mean)[None])[0]
    return direction


def _with_embedding(bundle: QueryBundle, vector: Vector) -> QueryBundle:
    """The bundle with an embedding; a copy, because the caller's may be used with another retriever."""
    return QueryBundle(
        query_str=bundle.query_str,
        image_path=bundle.image_path,
        custom_embedding_strs=bundle.custom_embedding_strs,
        embedding=vector.tolist(),
    )


def _node(hit: Hit) -> NodeWithScore:
    # The fused score orders a hybrid ranking, and whoever sorts nodes again does so by the score.
    score = hit.score if hit.fused_score is None else hit.fused_score
    return NodeWithScore(node=TextNode(id_=hit.id, text=hit.text, metadata=dict(hit.metadata)), score=score)


_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
}
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or"}


def as_where(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """The filter as `Index.search` takes it. Raises `SettingsError` for what the index cannot do."""
    if filters is None or not filters.filters:
        return None
    condition = filters.condition or FilterCondition.AND
    if condition not in _CONDITIONS:
        raise SettingsError(
            f"The filter condition is {condition.value!r}; expected one of {_names(_CONDITIONS)}."
        )
    parts = [part for each in filters.filters if (part := _part(each)) is not None]
    if len(parts) < 2:
        return parts[0] if parts else None
    return {_CONDITIONS[condition]: parts}


def _part(each: MetadataFilter | MetadataFilters) -> dict[str, Any] | None:
    if isinstance(each, MetadataFilters):
        return as_where(each)
    if each.operator not in _OPERATORS:
        raise SettingsError(
            f"The filter on {each.key!r} has the operator {each.operator.value!r}; expected one of "
            f"{_names(_OPERATORS)}."
        )
    return {each.key: {_OPERATORS[each.operator]: each.value}}


def _names(known: Any) -> str:
    return ", ".join(each.value for each in known)


# Distance to cosine, for unit vectors: Chroma's `l2` is the squared distance.
_COSINE: dict[str, Callable[[float], float]] = {
    "cosine": lambda distance: 1.0 - distance,
    "ip": lambda distance: 1.0 - distance,
    "l2": lambda distance: 1.0 - distance / 2.0,
}


def with_cosines(nodes: list[NodeWithScore], store: Any, mode: VectorStoreQueryMode) -> list[NodeWithScore]:
    """The nodes with cosines as scores where the store is one whose scores are something else.

    LlamaIndex's Chroma store reports exp(-distance). Other stores, and other ways to query than by the
    nearest vectors, keep their scores.
    """
    if mode != VectorStoreQueryMode.DEFAULT or store.class_name() != "ChromaVectorStore":
        return nodes
    cosine = _COSINE.get(_space(store.client))
    if cosine is None:
        return nodes
    return [
        NodeWithScore(node=each.node, score=cosine(-math.log(each.score)) if each.score else each.score)
        for each in nodes
    ]


def _space(collection: Any) -> str:
    """The distance of a Chroma collection, from its configuration as stored."""
    stored = collection.configuration_json
    configuration = json.loads(stored) if isinstance(stored, str) else stored
    index = configuration.get("hnsw") or configuration.get("spann") or {}
    return str(index.get("space", "l2"))
