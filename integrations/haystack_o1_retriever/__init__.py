"""Haystack: a text embedder that thinks, a document embedder, and a retriever over our own index.

```python
from haystack import Document
from haystack_o1_retriever import O1DocumentEmbedder, O1TextEmbedder
texts = [Document(content="Water vapour condenses on cold glass.")]
documents = O1DocumentEmbedder("models/o1-embedder-22m").run(texts)["documents"]
query = O1TextEmbedder("models/o1-embedder-22m").run("Why does my bathroom mirror go blank?")["embedding"]
```

`models/o1-embedder-22m` is a folder of the repository; any other `ThinkingEmbedder` does as well.

`model` is a `ThinkingEmbedder`, or a folder or Hub id: such a one is loaded when first used, and it alone can
be saved with a pipeline. `settings` are those fields of `ThoughtSettings` to change.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from o1_retriever.errors import require

require("haystack", extra="haystack", purpose="The Haystack adapter", distribution="haystack-ai")

from haystack import Document, component
from haystack.core import serialization
from haystack.dataclasses import ChatMessage

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.errors import SettingsError
from o1_retriever.index.index import Index
from o1_retriever.query import as_query
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import ThoughtSettings, texts_of

__all__ = ["O1DocumentEmbedder", "O1Retriever", "O1TextEmbedder"]

Model = ThinkingEmbedder | str
Fields = dict[str, Any] | None
_OPERATORS = {"==": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_OPERATORS |= {"in": "$in", "not in": "$nin", "AND": "$and", "OR": "$or", "NOT": "$not"}

# Haystack 3 reads components from a file only of modules that are trusted: whoever imports this one does.
if hasattr(serialization, "allow_deserialization_module"):
    serialization.allow_deserialization_module(__name__)


@dataclass(eq=False)
class _Component:
    model: Model

    @cached_property
    def embedder(self) -> ThinkingEmbedder:
        """The embedder behind it, loaded when first used."""
        return as_embedder(self.model)

    def warm_up(self) -> None:
        """Load the model now."""
        _ = self.embedder

    def _changed(self, settings: Fields) -> ThoughtSettings:
        return self.embedder.settings.with_changes(**settings or {})


@component
@dataclass(eq=False)
class O1TextEmbedder(_Component):
    """Embeds a query with thoughts about it."""

    settings: Fields = None
    truncate_dim: int | None = None

    @component.output_types(embedding=list[float], thoughts=list[str])
    def run(
        self, text: str, history: list[ChatMessage] | None = None, thoughts: list[str] | None = None
    ) -> dict[str, Any]:
        """The embedding of `text`, and what was thought about it; `history` is the chat before it.

        `thoughts` are your own: then none is written.
        """
        how: dict[str, Any] = {"settings": self._changed(self.settings), "truncate_dim": self.truncate_dim}
        asked = as_query(text, history, thoughts)
        [made] = self.embedder.embed_queries([asked], show_progress_bar=False, **how)
        return {"embedding": made.vector.tolist(), "thoughts": texts_of(made.thoughts)}


@component
@dataclass(eq=False)
class O1DocumentEmbedder(_Component):
    """Embeds documents as they are, behind the values of `meta_fields_to_embed`, a line each."""

    truncate_dim: int | None = None
    batch_size: int = 32
    meta_fields_to_embed: list[str] | None = None

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Copies of the documents with their embeddings."""
        names = self.meta_fields_to_embed or []
        fields = [[str(each.meta[name]) for name in names if each.meta.get(name)] for each in documents]
        texts = ["\n".join([*row, each.content or ""]) for row, each in zip(fields, documents, strict=True)]
        how: dict[str, Any] = {"batch_size": self.batch_size, "truncate_dim": self.truncate_dim}
        rows = self.embedder.encode_documents(texts, show_progress_bar=False, **how).tolist()
        pairs = zip(documents, rows, strict=True)
        return {"documents": [replace(document, embedding=row) for document, row in pairs]}


@component
@dataclass(eq=False)
class O1Retriever(_Component):
    """Thinks about a query and finds the nearest documents of our own `index`, an `Index` or its folder.

    Scores are from 0 to 1 (see `o1_retriever.ranking.ranking`). `options` are fields of `SearchSettings`.
    """

    index: Index | str
    filters: Fields = None
    top_k: int = 10
    settings: Fields = None
    options: Fields = None

    @cached_property
    def retriever(self) -> Retriever:
        """Our own retriever behind it, made when first used."""
        given = self.index
        index = given if isinstance(given, Index) else Index(given, self.embedder, create=False)
        return Retriever(self.embedder, index, **self.options or {})

    @component.output_types(documents=list[Document], thoughts=list[str])
    def run(
        self,
        query: str,
        filters: Fields = None,
        top_k: int | None = None,
        history: list[ChatMessage] | None = None,
        thoughts: list[str] | None = None,
    ) -> dict[str, Any]:
        """The documents, best first, and what was thought; `filters` and `top_k` replace its own.

        `thoughts` are your own about the query: then none is written.
        """
        k, where, how = top_k or self.top_k, as_where(filters or self.filters), self._changed(self.settings)
        asked = as_query(query, history, thoughts)
        found = self.retriever.search(asked, k=k, where=where, settings=how)
        documents = [
            Document(id=hit.id, content=hit.text, meta=dict(hit.metadata), score=hit.relevance)
            for hit in found
        ]
        return {"documents": documents, "thoughts": texts_of(found.thoughts)}


def as_where(filters: Fields) -> Fields:
    """Haystack's filter as our index takes it. Raises `SettingsError` for an operator that there is not."""
    if not filters:
        return None
    name = filters.get("operator", "")
    if name not in _OPERATORS:
        raise SettingsError(f"The filter has the operator {name!r}; expected one of {[*_OPERATORS]}.")
    if "field" in filters:
        return {filters["field"].removeprefix("meta."): {_OPERATORS[name]: filters.get("value")}}
    parts = [as_where(each) for each in filters.get("conditions", [])]
    return {"$not": {"$and": parts}} if name == "NOT" else {_OPERATORS[name]: parts}
