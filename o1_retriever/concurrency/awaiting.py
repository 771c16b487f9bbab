"""The way of an awaited query: what `thinking` does in one go, in steps of which none blocks an event loop.

The cache is asked in one thread and the model in another; a thinker behind an endpoint is awaited itself. All
that is awaited at the same time goes through them in batches. A coroutine that is cancelled takes its rows
out of the batch that is being written.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from o1_retriever.concurrency.shared import Batches, Ticket
from o1_retriever.engine.follow import Heard, listening
from o1_retriever.query import Query
from o1_retriever.thinking import (
    Free,
    NewThoughts,
    Pooling,
    ThoughtPipeline,
    Written,
    guarded,
    pairs_of,
    relevant,
    to_write,
)
from o1_retriever.thought import (
    Listener,
    QueryEmbedding,
    Thought,
    ThoughtPiece,
    ThoughtSettings,
    Timings,
    Vector,
)

Result = TypeVar("Result")

# Documents in one turn of the model: queries that come meanwhile are next.
_AT_ONCE = 128


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A query to think about, and who listens: told once, also of what is begun again."""

    query: Query
    heard: Heard | None = None


class AwaitedPipeline:
    """A pipeline for coroutines. Its threads are started when something is awaited, and end soon after."""

    def __init__(self, pipeline: ThoughtPipeline) -> None:
        self._pipeline = pipeline
        self._backend, self._cache = pipeline.backend, pipeline.cache
        self._looking = Batches("o1-retriever-cache")
        self._computing = Batches("o1-retriever-model", patient=True)
        self._ready = False

    async def ready(self) -> None:
        """Load what is loaded when it is first used: from then on its names and sizes cost nothing."""
        if not self._ready:
            await self._computing.ask(self._load, item=None)
            self._ready = True

    async def embed(self, queries: Sequence[Query], how: Pooling) -> list[QueryEmbedding]:
        """The whole way of each query. Equal queries take it once."""
        queries = relevant(queries, how.settings)
        unique = dict.fromkeys(queries)
        done = dict(zip(unique, await together(self._embed(each, how) for each in unique), strict=True))
        return [done[query] for query in queries]

    async def think(self, queries: Sequence[Query], settings: ThoughtSettings) -> list[list[Thought]]:
        """The first half of the way alone."""
        unique = dict.fromkeys(queries)
        written = await together(self._thoughts(each, settings) for each in unique)
        thoughts = dict(zip(unique, written, strict=True))
        return [guarded(query, thoughts[query][0], settings) for query in queries]

    async def stream(self, query: Query, settings: ThoughtSettings) -> AsyncGenerator[ThoughtPiece]:
        """What is written about one query, while it is; at the end the thoughts as they are kept."""
        loop, found, told = asyncio.get_running_loop(), asyncio.Queue[ThoughtPiece | None](), set[int]()

        def listen(_place: int, index: int, text: str) -> None:  # in the thread that writes
            told.add(index)
            loop.call_soon_threadsafe(found.put_nowait, ThoughtPiece(index=index, text=text))

        writing = asyncio.ensure_future(self._thoughts(query, settings, listen))
        writing.add_done_callback(lambda _: found.put_nowait(None))
        try:
            while (piece := await found.get()) is not None:
                yield piece
            for index, thought in enumerate(guarded(query, writing.result()[0], settings)):
                text = "" if index in told else thought.text
                yield ThoughtPiece(index=index, text=text, thought=thought)
        finally:
            writing.cancel()

    async def documents(self, texts: Sequence[str]) -> Vector:
        """The raw vectors (n, dimension) of documents, part by part, so that others have their turn."""
        rows = [np.zeros((0, self._backend.space.dimension), np.float32)]
        for first in range(0, len(texts), _AT_ONCE):
            part = texts[first : first + _AT_ONCE]
            rows.append(await self._computing.ask(self._embed_documents, item=part, size=len(part)))
        return np.concatenate(rows)

    async def passages(self, texts: Sequence[str]) -> list[Vector]:
        """The raw vectors of texts as documents, from the cache where it has them."""
        rows: list[Vector] = await self._computing.ask(self._embed_passages, item=texts)
        return rows

    async def _embed(self, query: Query, how: Pooling) -> QueryEmbedding:
        started, settings = time.perf_counter(), how.settings
        written, free = await self._thoughts(query, settings)
        thoughts = guarded(query, written, settings)
        thought_at = time.perf_counter()
        rows = await self._vectors(query, thoughts, free, settings)
        timings = Timings(
            think_ms=(thought_at - started) * 1000, embed_ms=(time.perf_counter() - thought_at) * 1000
        )
        return how.embedding(query, thoughts, rows, timings)

    async def _thoughts(
        self, query: Query, settings: ThoughtSettings, listener: Listener | None = None
    ) -> tuple[list[Thought], Free]:
        """The thoughts about a query, and what vectors there are of it with them."""
        await self.ready()
        known, free = await self._looking.ask(self._recall, settings, item=query)
        while len(known) < to_write(query, settings):
            with self._pipeline.shared.claim([(query, settings)]) as (mine, theirs):
                if mine:
                    written = await self._write(query, known, settings, listener)
                    self._pipeline.shared.settle((query, settings), written)
            for future in theirs.values():  # of another caller, who may be no coroutine
                try:
                    # Nobody but the one who computes it may cancel it.
                    written = await asyncio.shield(asyncio.wrap_future(future))
                except LookupError:
                    written = known, NewThoughts(place=0, start=0, thoughts=())
            known, new = written
            free |= self._cache.free(query, new)
        return known, free

    async def _write(
        self, query: Query, known: list[Thought], settings: ThoughtSettings, listener: Listener | None
    ) -> Written:
        start = len(known)
        if getattr(self._backend, "awaits", False):
            with listening(listener):
                new = await self._backend.athink(query, settings=settings, start=start)  # type: ignore[attr-defined]
            await self._looking.ask(self._keep, settings, item=(query, new))
        else:
            asked = _Asked(query, None if listener is None else Heard(listener))
            new = await self._computing.ask(self._think, settings, start, item=asked)
        return [*known, *new.thoughts], new

    async def _vectors(
        self, query: Query, thoughts: Sequence[Thought], free: Free, settings: ThoughtSettings
    ) -> Vector:
        pairs = pairs_of(query, thoughts, settings)
        keys = [self._cache.vector_key(*pair) for pair in pairs]
        if all(key in free for key in keys):
            return np.stack([free[key] for key in keys])
        # What was thought about in this turn of the model need not wait for all thoughts of the next one.
        return np.stack(await self._computing.ask(self._fill, item=(pairs, free), first=True))

    # What follows is called in the threads, with all tickets of a batch.

    def _load(self, tickets: Sequence[Ticket[None, None]]) -> None:
        names = self._backend.space, self._backend.thinker_identity, self._backend.encoder_identity
        for ticket in tickets if names else ():
            ticket.settle(None)

    def _recall(self, tickets: Sequence[Ticket[Query, Any]], settings: ThoughtSettings) -> None:
        queries = [ticket.item for ticket in tickets]
        known = self._cache.thoughts(queries, settings)
        usable = [guarded(query, own, settings) for query, own in zip(queries, known, strict=True)]
        keys = [
            [self._cache.vector_key(*pair) for pair in pairs_of(query, own, settings)]
            for query, own in zip(queries, usable, strict=True)
        ]
        stored = self._cache.stored([key for own in keys for key in own])
        for ticket, thoughts, own in zip(tickets, known, keys, strict=True):
            ticket.settle((thoughts, {key: stored[key] for key in own if key in stored}))

    def _keep(self, tickets: Sequence[Ticket[Any, None]], settings: ThoughtSettings) -> None:
        for ticket in tickets:
            query, new = ticket.item
            self._cache.keep(query, new, settings)
            ticket.settle(None)

    def _think(
        self, tickets: Sequence[Ticket[_Asked, NewThoughts]], settings: ThoughtSettings, start: int
    ) -> None:
        heard = {place: each for place, ticket in enumerate(tickets) if (each := ticket.item.heard)}
        texts: defaultdict[tuple[int, int], str] = defaultdict(str)

        def listen(place: int, index: int, text: str) -> None:
            texts[place, index] += text
            heard[place].said(0, index, texts[place, index])

        queries = [ticket.item.query for ticket in tickets]
        # Reading tokens costs time: those alone are read for which somebody listens.
        with listening(
            listen if heard else None, wanted=lambda place: tickets[place].wanted, hears=heard.__contains__
        ):
            for new in self._backend.think(queries, settings=settings, start=start, batch_size=None):
                self._cache.keep(queries[new.place], new, settings)
                tickets[new.place].settle(new)

    def _fill(self, tickets: Sequence[Ticket[Any, list[Vector]]]) -> None:
        pairs = [pair for ticket in tickets for pair in ticket.item[0]]
        free = {key: row for ticket in tickets for key, row in ticket.item[1].items()}
        rows = iter(self._cache.filled(pairs, free, batch_size=None))
        for ticket in tickets:
            ticket.settle([next(rows) for _ in ticket.item[0]])

    def _embed_passages(self, tickets: Sequence[Ticket[Sequence[str], list[Vector]]]) -> None:
        rows = iter(self._cache.passages([text for each in tickets for text in each.item], batch_size=None))
        for ticket in tickets:
            ticket.settle([next(rows) for _ in ticket.item])

    def _embed_documents(self, tickets: Sequence[Ticket[Sequence[str], Vector]]) -> None:
        texts = list(dict.fromkeys(text for ticket in tickets for text in ticket.item))
        embedded = self._backend.embed_documents(texts, batch_size=None)
        rows = {texts[place]: row for place, row in embedded}
        for ticket in tickets:
            ticket.settle(np.stack([rows[text] for text in ticket.item]))


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of all; when one fails, or the caller is cancelled, the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
