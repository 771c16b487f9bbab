"""Models as LlamaIndex knows them: an embedding model that thinks about queries, and an LLM that thinks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding, mean_agg
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.base import BaseEvent  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent

from o1_retriever.concurrency.processes import check_sendable
from o1_retriever.concurrency.shared import finished
from o1_retriever.embedder import ThinkingEmbedder, as_embedder
from o1_retriever.endpoint.chat import DEFAULT_PROMPT, ChatPrompt
from o1_retriever.endpoint.exchange import RequestPolicy, completion
from o1_retriever.errors import SettingsError
from o1_retriever.guard import Decision
from o1_retriever.index.hits import Hit
from o1_retriever.query import History, Query, as_queries
from o1_retriever.thinkers.endpoint import ModelThinker
from o1_retriever.thought import QueryEmbedding, ThoughtSettings

_dispatcher = get_dispatcher(__name__)


class O1ThoughtsEvent(BaseEvent):
    """A query has been thought about and embedded.

    `thoughts` are dicts with `text`, `finish`, `error`, `tokens` and `cached`; a thought that could not be
    had has `finish="failed"` and its reason. The list is empty where there was no thinking; `decision` says
    why or why not (`think`, `reason`, `worth`, `threshold`) where a search decided it. `hits` are the ranks,
    ids and scores of what our own index found: `relevance` from 0 to 1, the cosine as `score`, and those of a
    hybrid search.
    """

    query: str
    thoughts: list[dict[str, Any]]
    think_ms: float
    embed_ms: float
    decision: dict[str, Any] | None = None
    hits: list[dict[str, Any]] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """Class name."""
        return "O1ThoughtsEvent"


def announce(embedding: QueryEmbedding, decision: Decision | None = None, hits: Sequence[Hit] = ()) -> None:
    """Tell the handlers what was thought about one query, and how what was found has been scored."""
    _dispatcher.event(
        O1ThoughtsEvent(
            query=embedding.query,
            thoughts=[thought.to_dict() for thought in embedding.thoughts],
            think_ms=embedding.timings.think_ms,
            embed_ms=embedding.timings.embed_ms,
            decision=None if decision is None else decision.to_dict(),
            hits=[
                {name: value for name, value in hit.to_dict().items() if name not in ("text", "metadata")}
                for hit in hits
            ],
        )
    )


class O1Embedding(BaseEmbedding):
    """Embeds queries with thoughts about them and documents as they are.

    `embedder` is a `ThinkingEmbedder`, or the folder or Hub id of a checkpoint. `settings` None takes the
    embedder's own. `truncate_dim` shortens all vectors. `options` are the fields of `BaseEmbedding`
    (`callback_manager`, `num_workers`, `rate_limiter`, `model_name`).

    The async methods are those of the embedder: what is awaited at the same time shares batches, and no event
    loop waits. It may be pickled, for `IngestionPipeline(num_workers=2)`: see `ThinkingEmbedder`. Texts that
    cannot be embedded raise `InputError`. `embeddings_cache` raises `SettingsError`: LlamaIndex keeps queries
    and texts under one key there, and a query would be answered with the vector of a text.
    """

    fingerprint: str = Field(description="The document space: vectors of another one cannot be compared.")
    truncate_dim: int | None = Field(default=None, description="Length of the vectors; None: all of it.")

    _embedder: ThinkingEmbedder = PrivateAttr()
    _settings: ThoughtSettings | None = PrivateAttr()

    def __init__(
        self,
        embedder: ThinkingEmbedder | str | os.PathLike[str],
        *,
        settings: ThoughtSettings | None = None,
        truncate_dim: int | None = None,
        embed_batch_size: int = 32,
        **options: Any,
    ) -> None:
        if options.get("embeddings_cache") is not None:
            raise SettingsError(
                "embeddings_cache was passed; it cannot tell a query from a text of the same words.",
                hint="Leave it out: ThinkingEmbedder keeps thoughts and query vectors itself.",
            )
        name = None if isinstance(embedder, ThinkingEmbedder) else os.fspath(embedder)
        loaded = as_embedder(embedder)
        fingerprint = loaded.space.fingerprint
        options = {"model_name": name or fingerprint, **options}
        options |= {"fingerprint": fingerprint, "truncate_dim": truncate_dim}
        super().__init__(embed_batch_size=embed_batch_size, **options)
        self._embedder = loaded
        self._settings = settings

    @classmethod
    def class_name(cls) -> str:
        """Class name."""
        return "O1Embedding"

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex leaves out what cannot be pickled, and what arrives would have no embedder.
        check_sendable(self._embedder, "The embedder of O1Embedding")
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # LlamaIndex would call `__init__` with the fields.
        BaseModel.__setstate__(self, state)

    @property
    def embedder(self) -> ThinkingEmbedder:
        """The embedder behind it."""
        return self._embedder

    @property
    def settings(self) -> ThoughtSettings:
        """How it thinks when a call does not say."""
        return self._settings or self._embedder.settings

    def to_payload(self) -> dict[str, Any]:
        """What events show of this model."""
        own = {"fingerprint": self.fingerprint, "truncate_dim": self.truncate_dim}
        if not hasattr(BaseEmbedding, "to_payload"):  # of earlier versions of llama-index-core
            return {"model_name": self.model_name, "embed_batch_size": self.embed_batch_size, **own}
        return {**super().to_payload(), **own}

    def think(
        self,
        queries: Sequence[str | Query],
        *,
        settings: ThoughtSettings | None = None,
        events: bool = True,
        histories: Sequence[History] | None = None,
    ) -> list[QueryEmbedding]:
        """Think about queries in one batch, with the events of one query and one of thoughts for each.

        `events=False` leaves the events of thoughts to the caller. `histories` are the conversations before
        each query, such as chat messages of LlamaIndex. `Query` objects may bring thoughts.
        """
        return finished(self._announced(as_queries(queries, histories), settings, events, blocking=True))

    async def _announced(
        self, queries: list[Query], settings: ThoughtSettings | None, events: bool, *, blocking: bool
    ) -> list[QueryEmbedding]:
        texts = [query.text for query in queries]
        payload = self.to_payload()
        _dispatcher.event(EmbeddingStartEvent(model_dict=payload))
        with self.callback_manager.event(
            CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}
        ) as event:
            embedded = await self._think(queries, settings, events=events, blocking=blocking)
            vectors = [item.vector.tolist() for item in embedded]
            event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: vectors})
        _dispatcher.event(EmbeddingEndEvent(chunks=texts, embeddings=vectors))
        return embedded

    async def athink(
        self,
        queries: Sequence[str | Query],
        *,
        settings: ThoughtSettings | None = None,
        events: bool = True,
        histories: Sequence[History] | None = None,
    ) -> list[QueryEmbedding]:
        """`think`, together with other queries that are awaited at the same time."""
        return await self._announced(as_queries(queries, histories), settings, events, blocking=False)

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """One embedding of several queries, thought about in one batch."""
        return (agg_fn or mean_agg)([item.vector.tolist() for item in self.think(queries)])

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """The same for coroutines."""
        return (agg_fn or mean_agg)([item.vector.tolist() for item in await self.athink(queries)])

    async def _think(
        self,
        queries: Sequence[str | Query],
        settings: ThoughtSettings | None = None,
        *,
        events: bool = True,
        blocking: bool,
    ) -> list[QueryEmbedding]:
        how: Any = {"settings": settings or self._settings, "truncate_dim": self.truncate_dim}
        if blocking:
            how |= {"batch_size": self.embed_batch_size, "show_progress_bar": False}
            embedded = self._embedder.embed_queries(queries, **how)
        else:
            embedded = await self._embedder.aembed_queries(queries, **how)
        for embedding in embedded if events else ():
            announce(embedding)
        return embedded

    def _get_query_embedding(self, query: str) -> Embedding:
        return finished(self._think([query], blocking=True))[0].vector.tolist()  # type: ignore[no-any-return]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._think([query], blocking=False))[0].vector.tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors = self._embedder.encode_documents(
            texts, batch_size=self.embed_batch_size, show_progress_bar=False, truncate_dim=self.truncate_dim
        )
        return np.asarray(vectors).tolist()  # type: ignore[no-any-return]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors = await self._embedder.aencode_documents(texts, truncate_dim=self.truncate_dim)
        return np.asarray(vectors).tolist()  # type: ignore[no-any-return]


class LLMThinker(ModelThinker):
    """Thoughts written by a LlamaIndex LLM.

    The model samples as it was configured to: `n_thoughts`, of the thought settings, is how often it is
    asked, and with a temperature of 0 it says the same each time. `prompt` is a `ChatPrompt`, or a message
    with `{query}` in it. `policy` bounds time, retries and parallel calls. With a `name`, the thoughts may
    be kept in the cache under it: change the name when the model or its parameters change.

    Raises `SettingsError` for something that is no LLM.
    """

    library = "llama-index"

    def __init__(
        self,
        llm: BaseLLM,
        *,
        prompt: ChatPrompt | str = DEFAULT_PROMPT,
        policy: RequestPolicy | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(llm, BaseLLM):
            raise SettingsError(f"llm is a {type(llm).__name__}; expected a LlamaIndex LLM.")

        def complete(messages: list[dict[str, str]]) -> dict[str, Any]:
            return _completion(llm.chat([ChatMessage(**message) for message in messages]))

        super().__init__(complete, kind=type(llm).__name__, name=name, prompt=prompt, policy=policy)


def _completion(reply: ChatResponse) -> dict[str, Any]:
    facts = {**reply.additional_kwargs, **reply.message.additional_kwargs}
    finish = facts.get("finish_reason") or facts.get("stop_reason") or _raw_finish(reply.raw)
    message = {
        "content": reply.message.content,
        "reasoning_content": facts.get("reasoning_content"),
        "refusal": facts.get("refusal"),
    }
    return completion(message, finish, facts.get("prompt_tokens"), facts.get("completion_tokens"))


def _raw_finish(raw: Any) -> Any:
    """Why the model stopped, where the reply carries the provider's own answer in the shape of OpenAI."""
    choices = raw.get("choices") if isinstance(raw, dict) else getattr(raw, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    first = choices[0]
    return first.get("finish_reason") if isinstance(first, dict) else getattr(first, "finish_reason", None)
