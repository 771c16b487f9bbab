"""The embedder that thinks: queries are embedded with thoughts about them, documents without."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from o1_retriever.concurrency.awaiting import AwaitedPipeline
from o1_retriever.concurrency.processes import made_again
from o1_retriever.concurrency.shared import finished
from o1_retriever.guard import DRAWN, off_subject
from o1_retriever.query import Given, History, Query, as_queries, as_query, check_texts, text_blocks
from o1_retriever.reporting import progress
from o1_retriever.thinking import Backend, PairBackend, Pooling, ThoughtPipeline, settings_of
from o1_retriever.thought import QueryEmbedding, Thought, ThoughtPiece, ThoughtSettings, Vector
from o1_retriever.vectors import (
    Precision,
    TokenLimit,
    VectorSpace,
    check_batch,
    check_dim,
    delivered,
    stacked,
    unit,
)

if TYPE_CHECKING:
    import torch

    from o1_retriever.cache import ThoughtCache
    from o1_retriever.encoders import Encoder
    from o1_retriever.thinkers import Thinker


def as_embedder(embedder: ThinkingEmbedder | str | os.PathLike[str]) -> ThinkingEmbedder:
    """An embedder as it is, or the one that a folder or Hub id names, loaded."""
    if isinstance(embedder, ThinkingEmbedder):
        return embedder
    return ThinkingEmbedder.from_pretrained(os.fspath(embedder))


class ThinkingEmbedder:
    """Writes thoughts about a query, embeds the query with each, and averages (arXiv 2502.07555).

    Make one with `from_pretrained` (one model does both), `from_model` (the same, already loaded) or
    `from_parts` (any thinker with any encoder). `settings` are its `ThoughtSettings`; every call may
    pass others. Thoughts and query vectors are kept on disk unless `cache=False`.

    It may be pickled, copied and sent to other processes: what travels is how it was made. A copy shares the
    model, and a process that it is sent to loads the model once, when it is first used. `NotSendableError`
    for parts that cannot travel, such as a lambda, a live client or a model of `from_model`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        settings: ThoughtSettings | None = None,
        cache: bool | str | os.PathLike[str] | ThoughtCache = True,
    ) -> None:
        self.backend = backend
        self.settings = settings or settings_of(backend)
        self._pipeline = ThoughtPipeline(backend, cache)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | None = None,
        dtype: str = "auto",
        load_in_4bit: bool = False,
        revision: str | None = None,
        instruction: str | None = None,
        trust_remote_code: bool = False,
        settings: ThoughtSettings | None = None,
        cache: bool | str | os.PathLike[str] | ThoughtCache = True,
    ) -> ThinkingEmbedder:
        """Load a checkpoint that thinks and embeds, from a folder or by its Hub id (safetensors only).

        `device` None takes CUDA, then Apple's MPS, then the CPU. `dtype` is "auto" (float32 but on CUDA),
        "float32", "bfloat16", "float16", or for a CPU "int8" or "fastest" (bfloat16 or int8 where faster).
        `load_in_4bit` quantises to NF4 (extra `4bit`). `revision` is a branch, tag or commit on the Hub.
        `instruction` follows `<query>` in every query; None takes the checkpoint's own, "" none.
        `trust_remote_code` runs Python that comes with a checkpoint: leave it False for what you have not
        read.

        Raises `ModelNotFoundError` or `CheckpointError`, both `ModelError`.
        """
        from o1_retriever.engine.backend import LocalBackend
        from o1_retriever.engine.load import LoadOptions

        options = LoadOptions(
            device=device,
            dtype=dtype,
            load_in_4bit=load_in_4bit,
            revision=revision,
            instruction=instruction,
            trust_remote_code=trust_remote_code,
        )
        return cls(LocalBackend(os.fspath(model), options), settings=settings, cache=cache)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        instruction: str = "",
        settings: ThoughtSettings | None = None,
        cache: bool | str | os.PathLike[str] | ThoughtCache = True,
    ) -> ThinkingEmbedder:
        """Use a causal language model of transformers that is loaded already, with its tokenizer.

        The layout is told by the tokenizer's special tokens. The model is put into evaluation mode.
        """
        from o1_retriever.engine.backend import LocalBackend
        from o1_retriever.engine.load import assemble

        local = assemble(type(model).__name__, model, tokenizer, instruction=instruction)
        return cls(LocalBackend(local), settings=settings, cache=cache)

    @classmethod
    def from_parts(
        cls,
        thinker: Thinker
        | Callable[[list[str], int], Sequence[Sequence[str]]]
        | str
        | os.PathLike[str]
        | None,
        encoder: Encoder | Callable[[list[str]], Any] | Any,
        *,
        settings: ThoughtSettings | None = None,
        cache: bool | str | os.PathLike[str] | ThoughtCache = True,
    ) -> ThinkingEmbedder:
        """Join any thinker with any encoder.

        A thinker is a `Thinker`, a function from (queries, n) to n texts per query, or the path of a JSONL
        file with recorded thoughts; None: you bring the thoughts, and queries without any are embedded alone.
        An encoder is an `Encoder`, a `SentenceTransformer` or its name, or a
        function from texts to an array of shape (texts, dimension).
        """
        from o1_retriever.encoders import as_encoder
        from o1_retriever.thinkers import as_thinker

        return cls(PairBackend(as_thinker(thinker), as_encoder(encoder)), settings=settings, cache=cache)

    @cached_property
    def _awaited(self) -> AwaitedPipeline:
        return AwaitedPipeline(self._pipeline)

    def __reduce__(self) -> tuple[Any, ...]:
        made_with = {"backend": self.backend, "settings": self.settings, "cache": self._pipeline.cache.option}
        return made_again, (type(self), made_with)

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space: what an index must share."""
        return self.backend.space

    @property
    def precision(self) -> Precision:
        """dtype, quantisation and device of the encoder."""
        return self.backend.precision

    @property
    def token_limit(self) -> TokenLimit | None:
        """How long a document may be before its end is not embedded; None where nobody knows."""
        return getattr(self.backend, "token_limit", None)

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.space.dimension

    @property
    def cache(self) -> ThoughtCache | None:
        """The thought cache, None when it is off."""
        return self._pipeline.cache.store

    def think(
        self,
        queries: Sequence[str | Query],
        *,
        n_thoughts: int | None = None,
        settings: ThoughtSettings | None = None,
        histories: Sequence[History] | None = None,
    ) -> list[list[Thought]]:
        """Write `n_thoughts` thoughts about each query, without embedding them by themselves."""
        chosen = (settings or self.settings).with_changes(n_thoughts=n_thoughts, thinking="always")
        return self._pipeline.think(as_queries(queries, histories), chosen)

    def remembers(self, queries: Sequence[str | Query], *, settings: ThoughtSettings | None = None) -> bool:
        """Whether no thought is left to be written about these queries: the cache has them, or they bring
        their own."""
        return self._pipeline.remembers(as_queries(queries), settings or self.settings)

    def stream_thoughts(
        self, query: str | Query, *, settings: ThoughtSettings | None = None, history: History = None
    ) -> Iterator[ThoughtPiece]:
        """The thoughts about one query, piece by piece while they are written; pieces of different thoughts
        take turns. At its end each thought comes whole, and is kept in the cache.

        A thought from the cache is one piece, and one of a thinker that does not stream: a function, or a
        server that cannot. Whoever leaves the iterator early ends the writing.
        """
        from o1_retriever.engine.follow import pieces

        checked = as_query(query, history)
        chosen = (settings or self.settings).with_changes(thinking="always")
        return pieces(lambda: self._pipeline.think([checked], chosen)[0])

    def astream_thoughts(
        self, query: str | Query, *, settings: ThoughtSettings | None = None, history: History = None
    ) -> AsyncGenerator[ThoughtPiece]:
        """`stream_thoughts` for coroutines: `async for piece in embedder.astream_thoughts(query)`.

        Whoever leaves early ends the writing with `aclose`, or when the task is cancelled.
        """
        chosen = (settings or self.settings).with_changes(thinking="always")
        return self._awaited.stream(as_query(query, history), chosen)

    async def athink(
        self,
        queries: Sequence[str | Query],
        *,
        n_thoughts: int | None = None,
        settings: ThoughtSettings | None = None,
        histories: Sequence[History] | None = None,
    ) -> list[list[Thought]]:
        """`think` for coroutines. See `aembed_queries`."""
        chosen = (settings or self.settings).with_changes(n_thoughts=n_thoughts, thinking="always")
        return await self._awaited.think(as_queries(queries, histories), chosen)

    def embed_query(
        self,
        query: str | Query,
        *,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
    ) -> QueryEmbedding:
        """One query with its thoughts, their vectors and the vector to search with.

        `history` is the conversation before it: a `Conversation`, or turns that `Conversation.of` reads.
        `thoughts` are your own: see `embed_queries`.
        """
        return self.embed_queries([as_query(query, history, thoughts)], settings=settings)[0]

    async def aembed_query(
        self,
        query: str | Query,
        *,
        settings: ThoughtSettings | None = None,
        history: History = None,
        thoughts: Given = None,
    ) -> QueryEmbedding:
        """`embed_query` for coroutines. See `aembed_queries`."""
        return (await self.aembed_queries([as_query(query, history, thoughts)], settings=settings))[0]

    def embed_queries(
        self,
        queries: Sequence[str | Query],
        *,
        settings: ThoughtSettings | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        histories: Sequence[History] | None = None,
        thoughts: Sequence[Given] | None = None,
    ) -> list[QueryEmbedding]:
        """Queries with their thoughts, the unit vectors of each, and the vector to search with.

        Vectors are truncated to `truncate_dim`, normalised, averaged, and the mean is normalised again
        unless `normalize_embeddings=False` (the reference implementation leaves the plain mean). A
        query for which no thought could be written is embedded alone, with a warning, and its thoughts
        say why. Equal queries are computed once. `batch_size` is how many are in flight at most; None sizes
        batches by tokens. `histories` are the conversations before the queries; only the thinker reads them.

        `thoughts` has for each query those that you bring, texts or `Thought` objects, or None where they are
        to be written. Yours are embedded as written ones are, whatever `settings` say of thinking and of
        their number; no thinker runs, and none is loaded. An empty list embeds the query alone.
        """
        checked = as_queries(queries, histories, thoughts)
        check_dim(truncate_dim, self.dimension)
        check_batch(batch_size)
        how = Pooling(settings or self.settings, truncate_dim, normalize_embeddings)
        return self._pipeline.embed(checked, how, batch_size=batch_size, show=show_progress_bar)

    async def aembed_queries(
        self,
        queries: Sequence[str | Query],
        *,
        settings: ThoughtSettings | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        histories: Sequence[History] | None = None,
        thoughts: Sequence[Given] | None = None,
    ) -> list[QueryEmbedding]:
        """`embed_queries` for coroutines: the event loop goes on meanwhile.

        A model on this machine works in a thread of the embedder's own, and all queries that are awaited at
        the same time, by whichever coroutine, are one batch; a thinker behind an endpoint is awaited itself.
        A coroutine that is cancelled takes its queries out of the batch. The timings are those of waiting.
        """
        checked = as_queries(queries, histories, thoughts)
        how = Pooling(settings or self.settings, truncate_dim, normalize_embeddings)
        await self._awaited.ready()
        check_dim(truncate_dim, self.dimension)
        return await self._awaited.embed(checked, how)

    def on_subject(
        self,
        embeddings: Sequence[QueryEmbedding],
        passages: Vector,
        *,
        settings: ThoughtSettings | None = None,
    ) -> list[QueryEmbedding]:
        """The embeddings without thoughts that are off the query's subject; see `guard.off_subject`.

        `passages` are unit vectors (n, dimension) of documents drawn at random from where is searched. What
        embedding the queries and the thoughts by themselves takes is added to the timings.
        """
        return finished(self._on_subject(embeddings, passages, settings, blocking=True))

    async def aon_subject(
        self,
        embeddings: Sequence[QueryEmbedding],
        passages: Vector,
        *,
        settings: ThoughtSettings | None = None,
    ) -> list[QueryEmbedding]:
        """`on_subject` for coroutines."""
        return await self._on_subject(embeddings, passages, settings, blocking=False)

    async def _on_subject(
        self,
        embeddings: Sequence[QueryEmbedding],
        passages: Vector,
        settings: ThoughtSettings | None,
        *,
        blocking: bool,
    ) -> list[QueryEmbedding]:
        chosen = settings or self.settings
        tells = chosen.guard and len(passages) >= DRAWN
        judged = {place: each for place, each in enumerate(embeddings) if tells and each.thought_about}
        if not judged:
            return list(embeddings)
        started, dimension = time.perf_counter(), passages.shape[1]
        queries = [each.query for each in judged.values()]
        texts = [each.text for about in judged.values() for each in about.thoughts if each.usable]
        fast = chosen.with_changes(thinking="never")
        if blocking:
            own = self.embed_queries(queries, settings=fast, truncate_dim=dimension)
            alone = self._pipeline.cache.passages(texts, batch_size=None)
        else:
            own = await self.aembed_queries(queries, settings=fast, truncate_dim=dimension)
            alone = await self._awaited.passages(texts)
        share = (time.perf_counter() - started) * 1000 / len(judged)
        rows, found = iter(unit(np.stack(alone)[:, :dimension])), list(embeddings)
        for (place, each), query in zip(judged.items(), own, strict=True):
            vectors = np.stack([next(rows) for thought in each.thoughts if thought.usable])
            left = Pooling(chosen).without(each, off_subject(query.vector, vectors, passages), query.vector)
            timings = replace(left.timings, embed_ms=left.timings.embed_ms + share)
            found[place] = replace(left, timings=timings)
        return found

    def encode_queries(
        self,
        queries: str | Sequence[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        convert_to_tensor: bool = False,
        settings: ThoughtSettings | None = None,
    ) -> Vector | torch.Tensor:
        """Think about queries and return their vectors, float32 (queries, dimension).

        A single string gives one vector of shape (dimension,). See `embed_queries` for what is computed.
        """
        embedded = self.embed_queries(
            [queries] if isinstance(queries, str) else queries,
            settings=settings,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )
        rows = stacked([each.vector for each in embedded], truncate_dim or self.dimension)
        return delivered(rows, single=isinstance(queries, str), convert_to_tensor=convert_to_tensor)

    async def aencode_queries(
        self,
        queries: str | Sequence[str],
        *,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        convert_to_tensor: bool = False,
        settings: ThoughtSettings | None = None,
    ) -> Vector | torch.Tensor:
        """`encode_queries` for coroutines. See `aembed_queries`."""
        embedded = await self.aembed_queries(
            [queries] if isinstance(queries, str) else queries,
            settings=settings,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )
        rows = stacked([each.vector for each in embedded], truncate_dim or self.dimension)
        return delivered(rows, single=isinstance(queries, str), convert_to_tensor=convert_to_tensor)

    def encode_documents(
        self,
        documents: str | Iterable[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        convert_to_tensor: bool = False,
    ) -> Vector | torch.Tensor:
        """Embed documents, never thinking about them, as float32 (documents, dimension).

        A single string gives one vector of shape (dimension,). `normalize_embeddings=False` returns the
        encoder's raw vectors. For more documents than fit into memory take `stream_documents`.
        """
        single = isinstance(documents, str)
        texts = [documents] if isinstance(documents, str) else documents
        if isinstance(texts, list | tuple):
            check_texts(texts, what="document")  # before any model runs
        blocks = self.stream_documents(
            texts,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )
        rows = np.concatenate(list(blocks) or [np.zeros((0, truncate_dim or self.dimension), np.float32)])
        return delivered(rows, single=single, convert_to_tensor=convert_to_tensor)

    async def aencode_documents(
        self,
        documents: str | Iterable[str],
        *,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        convert_to_tensor: bool = False,
    ) -> Vector | torch.Tensor:
        """`encode_documents` for coroutines: those that are awaited at the same time share batches."""
        texts = check_texts([documents] if isinstance(documents, str) else documents, what="document")
        await self._awaited.ready()
        check_dim(truncate_dim, self.dimension)
        rows = (await self._awaited.documents(texts))[:, :truncate_dim]
        rows = unit(rows) if normalize_embeddings and len(rows) else rows
        return delivered(rows, single=isinstance(documents, str), convert_to_tensor=convert_to_tensor)

    def stream_documents(
        self,
        documents: Iterable[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
    ) -> Iterator[Vector]:
        """Embed documents of any number in constant memory: blocks of float32 (n, dimension), in order.

        Any iterable will do; a few thousand documents are read at a time. Equal ones of a block are embedded
        once. A document that cannot be used raises `InputError` when its block is reached.
        """
        check_dim(truncate_dim, self.dimension)
        check_batch(batch_size)
        total = len(documents) if isinstance(documents, Sized) else None
        with progress("Embedding", total, show=show_progress_bar) as advance:
            for texts in text_blocks(documents, what="document"):
                place_of = {text: place for place, text in enumerate(dict.fromkeys(texts))}
                rows = np.zeros((len(place_of), truncate_dim or self.dimension), np.float32)
                for place, vector in self.backend.embed_documents(list(place_of), batch_size=batch_size):
                    rows[place] = vector[:truncate_dim]
                    advance(1)
                advance(len(texts) - len(place_of))
                rows = unit(rows) if normalize_embeddings else rows
                yield rows[[place_of[text] for text in texts]]
