"""Cosines from what vector stores call similarity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQueryMode

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
