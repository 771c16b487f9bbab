"""Embeddings for any LangChain vector store: queries are thought about, documents are not."""

from __future__ import annotations

import os
from functools import cached_property

from langchain_core.embeddings import Embeddings

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.query import Given, History, Query, as_query
from o1_retriever.thought import QueryEmbedding, ThoughtSettings


class O1Embeddings(Embeddings):
    """Embeds queries with thoughts about them and documents as they are.

    `embedder` is a `ThinkingEmbedder`, or the folder or Hub id of a checkpoint. `settings` None takes the
    embedder's own. `truncate_dim` shortens all vectors, those of queries and of documents alike.

    The async methods are those of the embedder: what is awaited at the same time shares batches, and no
    event loop waits. Texts that cannot be embedded raise `InputError`, a `ValueError`.
    """

    def __init__(
        self,
        embedder: ThinkingEmbedder | str | os.PathLike[str],
        *,
        settings: ThoughtSettings | None = None,
        batch_size: int = 32,
        truncate_dim: int | None = None,
        show_progress_bar: bool | None = False,
    ) -> None:
        self._name = None if isinstance(embedder, ThinkingEmbedder) else os.fspath(embedder)
        self.embedder = as_embedder(embedder)
        self.settings = settings
        self.batch_size = batch_size
        self.truncate_dim = truncate_dim
        self.show_progress_bar = show_progress_bar

    def __repr__(self) -> str:
        return f"O1Embeddings({self.model_name!r})"

    @cached_property
    def model_name(self) -> str:
        """What traces call the model: the name it was loaded by, or the fingerprint of its vector space."""
        return self._name or self.embedder.space.fingerprint

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, without thinking."""
        vectors = self.embedder.encode_documents(
            texts,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
            truncate_dim=self.truncate_dim,
        )
        return vectors.tolist()

    def embed_query(self, text: str) -> list[float]:
        """Think about a query and embed it with the thoughts."""
        return self.think(text).vector.tolist()  # type: ignore[no-any-return]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents; those that are awaited at the same time share batches."""
        vectors = await self.embedder.aencode_documents(texts, truncate_dim=self.truncate_dim)
        return vectors.tolist()

    async def aembed_query(self, text: str) -> list[float]:
        """Think about a query and embed it, together with others that are awaited at the same time."""
        return (await self.athink(text)).vector.tolist()  # type: ignore[no-any-return]

    def think(
        self,
        query: str | Query,
        *,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
    ) -> QueryEmbedding:
        """What `embed_query` makes, with the thoughts and timings that a bare vector does not show.

        `history` is the conversation before the query, such as messages of LangChain; `thoughts` are your
        own about it: then none is written.
        """
        return self.embedder.embed_queries(
            [as_query(query, history, thoughts)],
            settings=settings or self.settings,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
            truncate_dim=self.truncate_dim,
        )[0]

    async def athink(
        self,
        query: str | Query,
        *,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
    ) -> QueryEmbedding:
        """`think`, together with other queries that are awaited at the same time."""
        embedded = await self.embedder.aembed_queries(
            [as_query(query, history, thoughts)],
            settings=settings or self.settings,
            truncate_dim=self.truncate_dim,
        )
        return embedded[0]
