"""Models as LangChain knows them: embeddings that think about queries, and a chat model that thinks."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.endpoint.chat import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.endpoint.exchange import RequestPolicy, completion
from o1_retriever.errors import SettingsError
from o1_retriever.query import Given, History, Query, as_query
from o1_retriever.thinkers.endpoint import ModelThinker
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


class ChatModelThinker(ModelThinker):
    """Thoughts written by a LangChain chat model, or any runnable from messages to a message or a string.

    The model samples as it was configured to: `n_thoughts`, of the thought settings, is how often it is
    asked, and with a temperature of 0 it says the same each time. `prompt` is a `ChatPrompt`, or a message
    with `{query}` in it. `policy` bounds time, retries and parallel calls. With a `name`, the thoughts may
    be kept in the cache under it: change the name when the model or its parameters change.

    Raises `SettingsError` for something that is no runnable.
    """

    library = "langchain"

    def __init__(
        self,
        model: Runnable[Any, Any],
        *,
        prompt: ChatPrompt | str = DEFAULT_PROMPT,
        policy: RequestPolicy | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(model, Runnable):
            raise SettingsError(f"model is a {type(model).__name__}; expected a LangChain chat model.")

        def complete(messages: list[dict[str, str]]) -> dict[str, Any]:
            return _completion(model.invoke([(message["role"], message["content"]) for message in messages]))

        super().__init__(complete, kind=type(model).__name__, name=name, prompt=prompt, policy=policy)


def _completion(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, BaseMessage):
        return completion({"content": reply}, None, None, None)
    facts, content = reply.response_metadata, reply.content
    finish = facts.get("finish_reason") or facts.get("stop_reason") or facts.get("done_reason")
    usage = getattr(reply, "usage_metadata", None) or {}
    if not isinstance(content, str):  # plain strings of a list are text parts
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    message = {**reply.additional_kwargs, "content": content}
    return completion(message, finish, usage.get("input_tokens"), usage.get("output_tokens"))
