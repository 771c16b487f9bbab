"""The two ways from a query to nodes: through our own index, or through an index of LlamaIndex."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryMode

from llama_index_o1_retriever.conversation import history_of
from llama_index_o1_retriever.embeddings import O1Embedding
from llama_index_o1_retriever.events import announce
from llama_index_o1_retriever.scores import with_cosines
from o1_retriever.errors import SettingsError
from o1_retriever.explain.explanation import Explanation
from o1_retriever.guard import LOOKED_AT, Decision
from o1_retriever.index.hits import Hit
from o1_retriever.query import as_queries
from o1_retriever.ranking.fusion import best_of
from o1_retriever.search.result import SearchSettings
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import QueryEmbedding, ThoughtSettings, Vector
from o1_retriever.vectors import searching, unit

_HOW = ("hybrid", "pooling", "thinking", "depth", "gate")


class OurRoad:
    """Through our own retriever and index."""

    def __init__(self, retriever: Retriever, where: dict[str, Any] | None, options: dict[str, Any]) -> None:
        self._retriever = retriever
        self._where = where
        self._options = options
        how = {name: value for name, value in options.items() if name in _HOW}
        self._how = retriever.search_settings.with_changes(**how)

    def retrieve(self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None) -> list[NodeWithScore]:
        """The nodes nearest to a query."""
        if bundle.embedding is None and bundle.embedding_strs == [bundle.query_str]:
            result = self._retriever.search(
                bundle.query_str,
                k=k,
                where=self._where,
                settings=settings,
                history=history_of(bundle),
                **self._options,
            )
            announce(result.embedding, result.decision)
            return [_node(hit) for hit in result.hits]
        group = self._vectors(bundle, settings)
        return [_node(hit) for hit in self._retriever.index.search_groups([group], k=k, where=self._where)[0]]

    async def aretrieve(
        self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None
    ) -> list[NodeWithScore]:
        """The same, in a thread."""
        return await asyncio.to_thread(self.retrieve, bundle, k, settings)

    def explain(self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None) -> Explanation:
        """What was found, and what thinking did to it."""
        return self._retriever.explain(
            bundle.query_str,
            k=k,
            where=self._where,
            settings=settings,
            history=history_of(bundle),
            **self._options,
        )

    def _vectors(self, bundle: QueryBundle, settings: ThoughtSettings | None) -> Vector:
        if bundle.embedding is not None:
            return np.asarray(bundle.embedding, np.float32)[None]
        if self._how.hybrid or self._how.thinking == "auto":
            raise SettingsError(
                "The query bundle brings several strings; hybrid and thinking='auto' are for one question.",
                hint="Pass them one by one, or use QueryFusionRetriever.",
            )
        embedder = self._retriever.embedder
        if self._how.thinking is not None:
            base = settings or getattr(embedder, "settings", None) or ThoughtSettings()
            settings = base.with_changes(thinking=self._how.thinking)
        embedded = embedder.embed_queries(
            as_queries(bundle.embedding_strs, **_said(bundle)), settings=settings
        )
        for embedding in embedded:
            announce(embedding)
        return _pooled(embedded, self._how)


@dataclass(frozen=True, kw_only=True)
class _Thinking:
    """The vectors (n, dimension) to search with; `found` where the query alone has found enough."""

    vectors: Vector
    found: list[NodeWithScore] | None = None


class StoreRoad:
    """Through an index of LlamaIndex, whose own retriever is given the vectors."""

    def __init__(
        self, index: BaseIndex[Any], model: O1Embedding, similarity_top_k: int, options: dict[str, Any]
    ) -> None:
        how = {name: options.pop(name) for name in _HOW if name in options}
        self._how = SearchSettings().with_changes(**how)
        self._mode = VectorStoreQueryMode(options.get("vector_store_query_mode", "default"))
        self._check()
        self._model = model
        self._inner = index.as_retriever(similarity_top_k=similarity_top_k, embed_model=model, **options)
        deep = max(similarity_top_k, LOOKED_AT)
        self._deep = index.as_retriever(similarity_top_k=deep, embed_model=model, **options)
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

    def retrieve(self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None) -> list[NodeWithScore]:
        """The nodes nearest to a query."""
        thinking = self._think(bundle, k, settings)
        if thinking.found is not None:
            return thinking.found
        return self._best([self._find(self._inner, bundle, vector) for vector in thinking.vectors], k)

    async def aretrieve(
        self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None
    ) -> list[NodeWithScore]:
        """The same without blocking the loop."""
        # Where a store has no async query, LlamaIndex runs the blocking one within the loop.
        if self._how.thinking == "auto" or type(self._store).aquery is BasePydanticVectorStore.aquery:
            return await asyncio.to_thread(self.retrieve, bundle, k, settings)
        thinking = await asyncio.to_thread(self._think, bundle, k, settings)
        asked = [_with_embedding(bundle, vector) for vector in thinking.vectors]
        with searching(type(self._store).__name__, thinking.vectors.shape[1]):
            found = await asyncio.gather(*map(self._inner._aretrieve, asked))
        return self._best([self._scored(nodes) for nodes in found], k)

    def _think(self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None) -> _Thinking:
        if bundle.embedding is not None:
            return _Thinking(vectors=np.asarray(bundle.embedding, np.float32)[None])
        base = settings or self._model.settings
        if self._how.thinking != "auto":
            chosen = base.with_changes(thinking=self._how.thinking)
            embedded = self._model.think(bundle.embedding_strs, settings=chosen, **_said(bundle))
            return _Thinking(vectors=_pooled(embedded, self._how))
        fast = self._model.think(
            bundle.embedding_strs, settings=base.with_changes(thinking="never"), tell=False
        )
        nodes = self._find(self._deep, bundle, _mean(fast))
        decision = self._how.gate.decide([_score(node) for node in nodes])
        if not decision.think:
            _announce(fast, decision)
            return _Thinking(vectors=_pooled(fast, self._how), found=nodes[:k])
        chosen = base.with_changes(thinking="always")
        embedded = self._model.think(bundle.embedding_strs, settings=chosen, tell=False, **_said(bundle))
        _announce(embedded, decision)
        return _Thinking(vectors=_pooled(embedded, self._how))

    def _find(self, retriever: Any, bundle: QueryBundle, vector: Vector) -> list[NodeWithScore]:
        with searching(type(self._store).__name__, len(vector)):
            return self._scored(retriever._retrieve(_with_embedding(bundle, vector)))

    def _scored(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        return with_cosines(nodes, self._store, self._mode)

    def _best(self, rankings: list[list[NodeWithScore]], k: int) -> list[NodeWithScore]:
        if len(rankings) == 1:
            return rankings[0]
        nodes = {each.node.node_id: each.node for ranking in rankings for each in ranking}
        scores = [[(each.node.node_id, _score(each)) for each in ranking] for ranking in rankings]
        return [NodeWithScore(node=nodes[name], score=score) for name, score in best_of(scores, k)]


def _said(bundle: QueryBundle) -> dict[str, Any]:
    """The history of a bundle for each of its strings, for those who think."""
    return {"histories": [history_of(bundle)] * len(bundle.embedding_strs)}


def _announce(embedded: Sequence[QueryEmbedding], decision: Decision) -> None:
    for embedding in embedded:
        announce(embedding, decision)


def _score(node: NodeWithScore) -> float:
    if node.score is None:
        raise SettingsError(
            "The vector store gives no scores; pooling='best' and thinking='auto' compare them.",
            hint="Use pooling='mean', and thinking='always' or 'never'.",
        )
    return float(node.score)


def _pooled(embedded: Sequence[QueryEmbedding], how: SearchSettings) -> Vector:
    """What is searched with: every thought of every string, or the mean of all."""
    mean = _mean(embedded)
    return np.concatenate([each.vectors for each in embedded]) if how.pooling == "best" else mean[None]


def _mean(embedded: Sequence[QueryEmbedding]) -> Vector:
    if not embedded:
        raise SettingsError("The query bundle has no text to embed; expected a query_str or an embedding.")
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
