"""A LlamaIndex retriever that thinks, over our index or over any `VectorStoreIndex`."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.settings import Settings
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQueryMode,
)

from llama_index_o1_retriever.embeddings import O1Embedding
from llama_index_o1_retriever.events import announce
from llama_index_o1_retriever.filters import as_where
from llama_index_o1_retriever.scores import with_cosines
from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever.hit import Hit
from o1_retriever.pooling import unit
from o1_retriever.retriever import Retriever
from o1_retriever.thought import QueryEmbedding, ThoughtSettings, Vector

_BASE_OPTIONS = ("callback_manager", "object_map", "objects", "verbose")


class O1Retriever(BaseRetriever):
    """Thinks about a question and finds the nearest nodes.

    `source` is our own `Retriever`, or a `VectorStoreIndex` over any vector store; for the latter
    `embed_model` (`O1Embedding` or a `ThinkingEmbedder`) thinks, None being the index's own, which must
    then be an `O1Embedding`. Scores are cosines; a vector store's own similarity where its relation to the
    cosine is not known. Nodes below `similarity_cutoff` are left out. `settings` None takes the embedder's
    own. `options` are those of every LlamaIndex retriever (`callback_manager`, `object_map`, `objects`,
    `verbose`), and what else `index.as_retriever`, or `Retriever.search`, takes.

    A `QueryBundle` is honoured: its `embedding` is used as it is, without thinking; each of its
    `custom_embedding_strs` is thought about, and their mean is searched with. The thoughts are told to the
    event handlers as `O1ThoughtsEvent`; the metadata of nodes stays as it is, since it goes into prompts.
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
        **options: Any,
    ) -> None:
        if (
            isinstance(similarity_top_k, bool)
            or not isinstance(similarity_top_k, int)
            or similarity_top_k < 1
        ):
            raise SettingsError(f"similarity_top_k is {similarity_top_k!r}; expected a whole number from 1.")
        own = {name: options.pop(name) for name in _BASE_OPTIONS if name in options}
        self._similarity_top_k = similarity_top_k
        self._cutoff = similarity_cutoff
        self._settings = settings
        self._road: _OurRoad | _StoreRoad
        if isinstance(source, Retriever):
            if embed_model is not None:
                raise SettingsError("Found a Retriever and an embed_model; the retriever brings its own.")
            self._road = _OurRoad(source, as_where(filters), options)
        elif isinstance(source, BaseIndex):
            own = {"object_map": source._object_map, "callback_manager": source._callback_manager, **own}
            model = _thinking_model(embed_model or source._embed_model)  # type: ignore[attr-defined]
            if filters is not None:
                options["filters"] = filters
            self._road = _StoreRoad(source, model, similarity_top_k, options)
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

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._kept(self._road.retrieve(query_bundle, self._similarity_top_k, self._settings))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._kept(await self._road.aretrieve(query_bundle, self._similarity_top_k, self._settings))

    def _kept(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        if self._cutoff is None:
            return nodes
        return [each for each in nodes if each.score is not None and each.score >= self._cutoff]


class _OurRoad:
    """Through our own retriever and index."""

    def __init__(self, retriever: Retriever, where: dict[str, Any] | None, options: dict[str, Any]) -> None:
        self._retriever = retriever
        self._where = where
        self._options = options

    def retrieve(self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None) -> list[NodeWithScore]:
        if bundle.embedding is None and bundle.embedding_strs == [bundle.query_str]:
            result = self._retriever.search(
                bundle.query_str, k=k, where=self._where, settings=settings, **self._options
            )
            announce(result.embedding)
            return [_node(hit) for hit in result.hits]
        vector = self._vector(bundle, settings)
        return [_node(hit) for hit in self._retriever.index.search(vector[None], k=k, where=self._where)[0]]

    async def aretrieve(
        self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None
    ) -> list[NodeWithScore]:
        return await asyncio.to_thread(self.retrieve, bundle, k, settings)

    def _vector(self, bundle: QueryBundle, settings: ThoughtSettings | None) -> Vector:
        if bundle.embedding is not None:
            return np.asarray(bundle.embedding, np.float32)
        embedded = self._retriever.embedder.embed_queries(bundle.embedding_strs, settings=settings)
        for embedding in embedded:
            announce(embedding)
        return _mean(embedded)


class _StoreRoad:
    """Through an index of LlamaIndex, whose own retriever is given the vector."""

    def __init__(
        self, index: BaseIndex[Any], model: O1Embedding, similarity_top_k: int, options: dict[str, Any]
    ) -> None:
        self._model = model
        self._inner = index.as_retriever(similarity_top_k=similarity_top_k, embed_model=model, **options)
        self._store = index.vector_store  # type: ignore[attr-defined]
        self._mode = VectorStoreQueryMode(options.get("vector_store_query_mode", "default"))

    def retrieve(self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None) -> list[NodeWithScore]:
        embedding = bundle.embedding
        if embedding is None:
            embedding = _mean(self._model.think(bundle.embedding_strs, settings=settings)).tolist()
        return self._scored(self._inner._retrieve(_embedded(bundle, embedding)))

    async def aretrieve(
        self, bundle: QueryBundle, k: int, settings: ThoughtSettings | None
    ) -> list[NodeWithScore]:
        embedding = bundle.embedding
        if embedding is None:
            embedding = _mean(await self._model.athink(bundle.embedding_strs, settings=settings)).tolist()
        ready = _embedded(bundle, embedding)
        # Where a store has no async query, LlamaIndex runs the blocking one within the loop.
        if type(self._store).aquery is BasePydanticVectorStore.aquery:
            return self._scored(await asyncio.to_thread(self._inner._retrieve, ready))
        return self._scored(await self._inner._aretrieve(ready))

    def _scored(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        return with_cosines(nodes, self._store, self._mode)


def _thinking_model(model: Any) -> O1Embedding:
    if isinstance(model, ThinkingEmbedder):
        return O1Embedding(model)
    if not isinstance(model, O1Embedding):
        raise SettingsError(
            f"The index's embed_model is a {type(model).__name__}; expected an O1Embedding.",
            hint="Pass embed_model=O1Embedding(...), of the model that embedded the nodes.",
        )
    return model


def _mean(embedded: list[QueryEmbedding]) -> Vector:
    if not embedded:
        raise SettingsError("The query bundle has no text to embed; expected a query_str or an embedding.")
    if len(embedded) == 1:
        return embedded[0].vector
    mean = np.mean([embedding.vector for embedding in embedded], axis=0, dtype=np.float32)
    direction: Vector = unit(np.asarray(mean)[None])[0]
    return direction


def _embedded(bundle: QueryBundle, embedding: list[float]) -> QueryBundle:
    """The bundle with its embedding; a copy, because the caller's may be used with another retriever."""
    return QueryBundle(
        query_str=bundle.query_str,
        image_path=bundle.image_path,
        custom_embedding_strs=bundle.custom_embedding_strs,
        embedding=embedding,
    )


def _node(hit: Hit) -> NodeWithScore:
    return NodeWithScore(
        node=TextNode(id_=hit.id, text=hit.text, metadata=dict(hit.metadata)), score=hit.score
    )
