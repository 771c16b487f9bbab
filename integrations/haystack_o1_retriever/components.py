"""Haystack's components. They load the model when they are warmed up or first used; pipelines save them."""

import os
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from haystack import Document, component
from haystack.dataclasses import ChatMessage

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.errors import SettingsError
from o1_retriever.index.index import Index
from o1_retriever.query import as_query
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import ThoughtSettings

Model = ThinkingEmbedder | str | os.PathLike[str]
_OPERATORS = {"==": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_OPERATORS |= {"in": "$in", "not in": "$nin", "AND": "$and", "OR": "$or", "NOT": "$not"}


class _Component:
    """`model` is a `ThinkingEmbedder`, or a folder or Hub id, without which a pipeline cannot be saved."""

    model: Model
    settings: dict[str, Any] | None = None

    @cached_property
    def embedder(self) -> ThinkingEmbedder:
        """The embedder behind it, loaded when first used."""
        return as_embedder(self.model)

    def warm_up(self) -> None:
        """Load the model now."""
        _ = self.embedder

    def _settings(self) -> ThoughtSettings:
        return self.embedder.settings.with_changes(**self.settings or {})


@component
class O1TextEmbedder(_Component):
    """Embeds a query with thoughts about it; `settings` are those fields of `ThoughtSettings` to change."""

    def __init__(
        self, model: Model, settings: dict[str, Any] | None = None, truncate_dim: int | None = None
    ) -> None:
        self.model, self.settings, self.truncate_dim = model, settings, truncate_dim

    @component.output_types(embedding=list[float], thoughts=list[str])
    def run(self, text: str, history: list[ChatMessage] | None = None) -> dict[str, Any]:
        """The embedding of `text`, and what was thought about it; `history` is the chat before it."""
        [embedded] = self.embedder.embed_queries(
            [as_query(text, history)],
            settings=self._settings(),
            truncate_dim=self.truncate_dim,
            show_progress_bar=False,
        )
        thoughts = [thought.text for thought in embedded.thoughts if not thought.failed]
        return {"embedding": embedded.vector.tolist(), "thoughts": thoughts}


@component
class O1DocumentEmbedder(_Component):
    """Embeds documents as they are, behind the values of `meta_fields_to_embed`, a line each."""

    def __init__(
        self,
        model: Model,
        truncate_dim: int | None = None,
        batch_size: int = 32,
        meta_fields_to_embed: list[str] | None = None,
    ) -> None:
        self.model, self.truncate_dim, self.batch_size = model, truncate_dim, batch_size
        self.meta_fields_to_embed = meta_fields_to_embed

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Copies of the documents with their embeddings."""
        fields = self.meta_fields_to_embed or []
        texts = [
            "\n".join([*(str(each.meta[name]) for name in fields if each.meta.get(name)), each.content or ""])
            for each in documents
        ]
        vectors = self.embedder.encode_documents(
            texts, batch_size=self.batch_size, truncate_dim=self.truncate_dim, show_progress_bar=False
        )
        rows = np.asarray(vectors).tolist()
        return {
            "documents": [replace(each, embedding=row) for each, row in zip(documents, rows, strict=True)]
        }


@component
class O1Retriever(_Component):
    """Thinks about a query and finds the nearest documents of our own `index`, an `Index` or its folder.

    Scores are from 0 to 1 (see `o1_retriever.ranking.relevance`). `options` are fields of `SearchSettings`.
    """

    def __init__(
        self,
        model: Model,
        index: Index | str | os.PathLike[str],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        settings: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.index, self.filters, self.top_k = model, index, filters, top_k
        self.settings, self.options = settings, options

    @cached_property
    def retriever(self) -> Retriever:
        """Our own retriever behind it, made when first used."""
        index = (
            self.index if isinstance(self.index, Index) else Index(self.index, self.embedder, create=False)
        )
        return Retriever(self.embedder, index, **self.options or {})

    @component.output_types(documents=list[Document], thoughts=list[str])
    def run(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        history: list[ChatMessage] | None = None,
    ) -> dict[str, Any]:
        """The documents, best first, and what was thought; `filters` and `top_k` replace its own."""
        k, where = top_k or self.top_k, as_where(filters or self.filters)
        found = self.retriever.search(as_query(query, history), k=k, where=where, settings=self._settings())
        documents = [
            Document(id=hit.id, content=hit.text, meta=dict(hit.metadata), score=hit.relevance)
            for hit in found
        ]
        return {"documents": documents, "thoughts": [each.text for each in found.thoughts if not each.failed]}


def as_where(filters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Haystack's filter as our index takes it. Raises `SettingsError` for an operator that there is not."""
    if not filters:
        return None
    operator = _OPERATORS.get(filters.get("operator", ""))
    if operator is None:
        raise SettingsError(
            f"The filter has the operator {filters.get('operator')!r}; expected {[*_OPERATORS]}."
        )
    if "field" in filters:
        return {filters["field"].removeprefix("meta."): {operator: filters.get("value")}}
    parts = [as_where(each) for each in filters.get("conditions", [])]
    return {"$not": {"$and": parts}} if operator == "$not" else {operator: parts}
