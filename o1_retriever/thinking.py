"""The way of a query: cache, think, embed, pool. It is read from top to bottom.

`ThoughtPipeline` takes checked queries. Thoughts come from the cache or from the backend, each is composed
with its query and embedded, and the unit vectors of a query's thoughts are averaged. A backend is one model
that does both (`engine.backend.LocalBackend`), or a thinker joined to an encoder (`PairBackend`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from o1_retriever.cache.sqlite import absolute
from o1_retriever.cache.store import JSON, ThoughtCache, cache_key
from o1_retriever.concurrency.processes import Sent
from o1_retriever.concurrency.shared import SharedWork
from o1_retriever.engine.follow import among
from o1_retriever.errors import CheckpointError, SettingsError, ThinkerError
from o1_retriever.guard import why_not
from o1_retriever.query import Query
from o1_retriever.reporting import counted, progress
from o1_retriever.thought import QueryEmbedding, Thought, ThoughtSettings, Timings, Vector
from o1_retriever.vectors import InSpace, Precision, TokenLimit, VectorSpace, unit

if TYPE_CHECKING:
    from o1_retriever.encoders import Encoder
    from o1_retriever.thinkers import Thinker
    from o1_retriever.thinkers.config import Correction

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewThoughts:
    """New thoughts about the query at `place`, from index `start` on.

    `vectors` has the raw vector of each thought where thinking gave it for free, and `fast` the raw vector
    of the query without thoughts; both None otherwise.
    """

    place: int
    start: int
    thoughts: Sequence[Thought]
    vectors: Sequence[Vector] | None = None
    fast: Vector | None = None


class Backend(InSpace, Protocol):
    """What a pipeline needs: thoughts, vectors, and names for both that a cache can key by."""

    @property
    def default_settings(self) -> Mapping[str, Any]:
        """Preferred thought settings of the checkpoint."""
        ...

    @property
    def thinker_identity(self) -> str | None:
        """Stable name of who thinks, without sampling and query; None: thoughts must not be persisted."""
        ...

    @property
    def encoder_identity(self) -> str | None:
        """Stable name of who embeds queries; None: vectors must not be persisted."""
        ...

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int, batch_size: int | None
    ) -> Iterator[NewThoughts]:
        """Thoughts `start` to `settings.n_thoughts - 1` of each query, handed over as they are done.

        They are written after the query's history; a vector that comes with a thought must be of the query
        and the thought alone. `batch_size` queries at once at most; None: as many as suit the backend. The
        same below.
        """
        ...

    def embed_queries(
        self, pairs: Sequence[tuple[str, Thought | None]], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """(place, raw vector) of each query with one thought, or without (None), in any order."""
        ...

    def embed_documents(
        self, texts: Sequence[str], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """(place, raw vector) of each document, in any order."""
        ...


def settings_of(backend: Backend) -> ThoughtSettings:
    """The library's thought settings with what the checkpoint prefers.

    The weight that it prefers for the query is its doubt in its own thoughts, and not about those of others.
    """
    preferred = dict(backend.default_settings)
    try:
        return ThoughtSettings().with_changes(doubt=preferred.pop("query_weight", None), **preferred)
    except SettingsError as error:
        raise CheckpointError(f"The checkpoint's own thought settings cannot be used: {error}") from error


class ThoughtPipeline:
    """Joins a backend and its cache; what the cache has is neither thought nor embedded again.

    A query that is asked several times, by one caller or by several at once, is thought about once. `cache`
    is True (the default folder), a folder, a `ThoughtCache`, or False.
    """

    def __init__(self, backend: Backend, cache: bool | str | os.PathLike[str] | ThoughtCache) -> None:
        self.backend = backend
        self.cache = QueryCache(backend, cache)
        self.shared: SharedWork[tuple[Query, ThoughtSettings], Written] = SharedWork()

    def embed(
        self, queries: Sequence[Query], how: Pooling, *, batch_size: int | None, show: bool | None
    ) -> list[QueryEmbedding]:
        """The whole way: thoughts, one raw vector for each, and their mean. Equal queries take it once."""
        settings = how.settings
        queries = relevant(queries, settings)
        unique = list(dict.fromkeys(queries))
        started = time.perf_counter()
        thoughts, free = self._thoughts(unique, settings, batch_size, show)
        thought_at = time.perf_counter()
        raw = self._vectors(unique, thoughts, free, settings, batch_size)
        share = 1000 / max(1, len(unique))
        timings = Timings(
            think_ms=(thought_at - started) * share, embed_ms=(time.perf_counter() - thought_at) * share
        )
        done = {
            query: how.embedding(query, own, rows, timings)
            for query, own, rows in zip(unique, thoughts, raw, strict=True)
        }
        return [done[query] for query in queries]

    def think(self, queries: Sequence[Query], settings: ThoughtSettings) -> list[list[Thought]]:
        """The first half of the way alone: `settings.n_thoughts` thoughts about each query."""
        unique = list(dict.fromkeys(queries))
        thoughts = dict(zip(unique, self._thoughts(unique, settings, None, False)[0], strict=True))
        return [list(thoughts[query]) for query in queries]

    def remembers(self, queries: Sequence[Query], settings: ThoughtSettings) -> bool:
        """Whether no thought about these queries is left to be written."""
        kept = zip(queries, self.cache.thoughts(queries, settings), strict=True)
        return all(len(own) >= to_write(query, settings) for query, own in kept)

    def _thoughts(
        self, queries: Sequence[Query], settings: ThoughtSettings, batch_size: int | None, show: bool | None
    ) -> tuple[list[list[Thought]], Free]:
        """Thoughts about each query, from the cache or written now, and the raw vectors that came free."""
        free: Free = {}
        known = dict(zip(queries, self.cache.thoughts(queries, settings), strict=True))
        missing = {
            query: cached for query, cached in known.items() if len(cached) < to_write(query, settings)
        }
        # Closed when interrupted here too: other callers may wait for what is being written.
        writing = closing(self._written(missing, settings, batch_size))
        with writing as done, progress("Thinking", len(missing), show=show if missing else False) as advance:
            for query, written in done:
                known[query], new = written
                free |= self.cache.free(query, new)
                advance(1)
        return [guarded(query, known[query], settings) for query in queries], free

    def _written(
        self, missing: dict[Query, list[Thought]], settings: ThoughtSettings, batch_size: int | None
    ) -> Generator[tuple[Query, Written]]:
        """What is missing, each query written here or taken from a caller who is writing it already."""
        left = dict(missing)
        while left:
            with self.shared.claim([(query, settings) for query in left]) as (mine, theirs):
                own = {query: left.pop(query) for query in list(left) if (query, settings) in mine}
                for query, written in self._new(own, settings, batch_size):
                    self.shared.settle((query, settings), written)
                    yield query, written
            for (query, _), future in theirs.items():
                try:
                    yield query, future.result()
                    del left[query]
                except LookupError:
                    logger.debug("Another caller gave up thinking about %.60r", query.text)

    def _new(
        self, missing: dict[Query, list[Thought]], settings: ThoughtSettings, batch_size: int | None
    ) -> Iterator[tuple[Query, Written]]:
        by_start: dict[int, list[Query]] = {}
        for query, thoughts in missing.items():
            by_start.setdefault(len(thoughts), []).append(query)
        for start, queries in by_start.items():
            for new in self.backend.think(queries, settings=settings, start=start, batch_size=batch_size):
                query = queries[new.place]
                # Kept at once: an interrupted batch loses only the queries that were being written.
                self.cache.keep(query, new, settings)
                yield query, ([*missing[query], *new.thoughts], new)

    def _vectors(
        self,
        queries: Sequence[Query],
        thoughts: Sequence[Sequence[Thought]],
        free: Free,
        settings: ThoughtSettings,
        batch_size: int | None,
    ) -> list[Vector]:
        """Raw vectors (n, dimension) of each query: those of its `pairs_of`."""
        pairs: list[tuple[str, Thought | None]] = []
        counts: list[int] = []
        for query, written in zip(queries, thoughts, strict=True):
            own = pairs_of(query, written, settings)
            pairs += own
            counts.append(len(own))
        rows = iter(self.cache.filled(pairs, free, batch_size=batch_size))
        return [np.stack([next(rows) for _ in range(count)]) for count in counts]


# All thoughts about one query, and what is new of them.
Written = tuple[list[Thought], NewThoughts]
# Raw vectors by `QueryCache.vector_key`.
Free = dict[bytes, Vector]


def relevant(queries: Sequence[Query], settings: ThoughtSettings) -> Sequence[Query]:
    """The queries without what was said before them where nothing is thought: it is for thoughts alone."""
    return queries if settings.thinks else [Query(query.text, thoughts=query.thoughts) for query in queries]


def to_write(query: Query, settings: ThoughtSettings) -> int:
    """How many thoughts the thinker owes a query: none to one that brings its own, or has none."""
    return settings.n_thoughts if settings.thinks and query.thoughts is None else 0


def guarded(query: Query, written: Sequence[Thought], settings: ThoughtSettings) -> list[Thought]:
    """The thoughts about a query, those that the guard leaves out marked by why; as they are without it."""
    return [replace(each, dropped=why_not(query.text, each)) if settings.guard else each for each in written]


def pairs_of(
    query: Query, written: Sequence[Thought], settings: ThoughtSettings
) -> list[tuple[str, Thought | None]]:
    """What is embedded: the query with each usable thought; alone too if it counts, or if one is dropped."""
    usable: list[Thought | None] = [thought for thought in written if thought.usable]
    if written and not usable and (failed := next((each for each in written if each.failed), None)):
        logger.warning("No thought could be written about %.60r: %s", query.text, failed.error)
    counts = settings.weight(written) > 0
    alone = [None] if counts or not usable or any(each.dropped for each in written) else []
    return [(query.text, thought) for thought in [*usable, *alone]]


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the raw vectors of a query become one.

    The query's own vector takes the place of each dropped thought in the mean, so that those that are left
    count no more than before, and counts as much beside that mean as the settings say. Vectors are truncated
    first, so that each thought weighs the same in the truncated space.
    """

    settings: ThoughtSettings
    truncate_dim: int | None = None
    normalize: bool = True

    def embedding(
        self, query: Query, thoughts: Sequence[Thought], rows: Vector, timings: Timings
    ) -> QueryEmbedding:
        """A query with its thoughts, and the raw vectors of its `pairs_of`, `rows`, pooled."""
        usable = sum(thought.usable for thought in thoughts) or 1
        vectors, vector = self._pooled(thoughts, rows[:usable], rows[usable:])
        return QueryEmbedding(
            query=query.text,
            history=query.history,
            thoughts=tuple(thoughts),
            vectors=vectors,
            vector=vector,
            timings=timings,
        )

    def without(
        self, embedding: QueryEmbedding, reasons: Sequence[str | None], own: Vector
    ) -> QueryEmbedding:
        """The embedding without those usable thoughts that have a reason; `own`, the query's vector, instead.

        `reasons` has one for each usable thought, None where it stays.
        """
        if not any(reasons):
            return embedding
        left = iter(reasons)
        thoughts = tuple(
            replace(each, dropped=next(left)) if each.usable else each for each in embedding.thoughts
        )
        kept = [row for row, reason in zip(embedding.vectors, reasons, strict=True) if reason is None]
        vectors, vector = self._pooled(thoughts, np.stack(kept or [own]), own[None])
        return replace(embedding, thoughts=thoughts, vectors=vectors, vector=vector)

    def _pooled(self, thoughts: Sequence[Thought], rows: Vector, own: Vector) -> tuple[Vector, Vector]:
        """Unit vectors (k, dimension) of `rows` and their mean (dimension,); `own` has one row, or none."""
        vectors = unit(rows[:, : self.truncate_dim])
        mean = vectors.mean(axis=0, dtype=np.float64)
        if len(own):
            alone = unit(own[:, : self.truncate_dim])[0].astype(np.float64)
            dropped = sum(thought.dropped is not None for thought in thoughts)
            mean = (len(vectors) * mean + dropped * alone) / (len(vectors) + dropped)
            weight = self.settings.weight(thoughts)
            mean = (mean + weight * alone) / (1 + weight)
        mean = mean.astype(np.float32)
        return vectors, unit(mean[None])[0] if self.normalize else mean


class PairBackend(Sent):
    """Any thinker with any encoder: a thought is embedded as `query + " " + thought`.

    The encoder checks its vectors (see `encoders.as_encoder`). A thinker with a `correction` that was
    trained beside it adds to the vector E(q) of a query alone what its state says, W h, unless `corrects` is
    off; what a thought says stands in E(q + t). Documents are the encoder's alone.
    """

    def __init__(self, thinker: Thinker, encoder: Encoder, *, corrects: bool = True) -> None:
        self.thinker = thinker
        self.encoder = encoder
        self._corrects = corrects
        self.default_settings: Mapping[str, Any] = getattr(thinker, "default_settings", {})
        if not getattr(thinker, "__dict__", {}).get("_unmade"):  # what has arrived is loaded when it is used
            _ = self.correction

    @cached_property
    def correction(self) -> Correction | None:
        """What the thinker adds to vectors of queries, where it was trained to."""
        found: Correction | None = getattr(self.thinker, "correction", None) if self._corrects else None
        if found is not None and found.encoder not in (None, self.space.weights):
            logger.warning(
                "The thinker has a matrix for the vectors of another encoder: those of this one are not "
                "corrected."
            )
            return None
        if found is not None and len(found.up) != self.space.dimension:
            raise SettingsError(
                f"The thinker corrects vectors of {len(found.up)} numbers and the encoder's have "
                f"{self.space.dimension}; expected the encoder that it was trained beside."
            )
        return found

    @property
    def space(self) -> VectorSpace:
        """The encoder's document space."""
        return self.encoder.space

    @property
    def precision(self) -> Precision:
        """The encoder's precision."""
        return self.encoder.precision

    @property
    def token_limit(self) -> TokenLimit | None:
        """How much of a document the encoder reads, where it says so."""
        return getattr(self.encoder, "token_limit", None)

    @property
    def thinker_identity(self) -> str | None:
        """The thinker's own name."""
        return self.thinker.identity

    @property
    def encoder_identity(self) -> str | None:
        """The encoder's space and precision, and what corrects its vectors."""
        own = f"pair:{self.space.to_dict()}:{self.precision.to_dict()}"
        if self.correction is None:
            return own
        who = self.thinker.identity
        return None if who is None else f"{own}:{who}:{self.correction.identity}"

    @property
    def uncorrected(self) -> PairBackend:
        """The same thinker with the encoder's own vectors."""
        return PairBackend(self.thinker, self.encoder, corrects=False)

    @property
    def awaits(self) -> bool:
        """Whether the thinker has a coroutine `athink`."""
        return hasattr(type(self.thinker), "athink")

    async def athink(self, query: Query, *, settings: ThoughtSettings, start: int) -> NewThoughts:
        """The thoughts about one query, of a thinker that is awaited."""
        rows = await self.thinker.athink([query], settings=settings, start=start)  # type: ignore[attr-defined]
        self._check(rows, 1, settings.n_thoughts - start)
        return NewThoughts(place=0, start=start, thoughts=rows[0])

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int, batch_size: int | None
    ) -> Iterator[NewThoughts]:
        """Ask the thinker, batch by batch."""
        size = batch_size or _AT_ONCE
        for first in range(0, len(queries), size):
            chunk = queries[first : first + size]
            with among(range(first, first + len(chunk))):
                rows = self.thinker.think(chunk, settings=settings, start=start)
            self._check(rows, len(chunk), settings.n_thoughts - start)
            for place, row in enumerate(rows, first):
                yield NewThoughts(place=place, start=start, thoughts=row)

    def _check(self, rows: Sequence[Sequence[Thought]], queries: int, expected: int) -> None:
        if len(rows) != queries or any(len(row) != expected for row in rows):
            raise ThinkerError(
                f"{type(self.thinker).__name__}.think returned {[len(row) for row in rows]} thoughts; "
                f"expected {expected} for each of {counted(queries, 'query', 'queries')}."
            )

    def embed_queries(
        self, pairs: Sequence[tuple[str, Thought | None]], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Embed each query with its thought behind it."""
        texts = [query if thought is None else f"{query} {thought.text}" for query, thought in pairs]
        size = batch_size or _AT_ONCE
        for first in range(0, len(texts), size):
            part = texts[first : first + size]
            rows = self.encoder.embed_queries(part, batch_size=size)
            alone = [place for place in range(len(part)) if pairs[first + place][1] is None]
            if self.correction is not None and alone:
                rows = unit(rows)
                found = self.thinker.corrections([part[place] for place in alone])  # type: ignore[attr-defined]
                for place, correction in found:
                    rows[alone[place]] += correction
            yield from enumerate(rows, first)

    def embed_documents(
        self, texts: Sequence[str], *, batch_size: int | None
    ) -> Iterator[tuple[int, Vector]]:
        """Embed the documents, longest first so that a batch holds texts of similar length."""
        size = batch_size or _AT_ONCE
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
        for first in range(0, len(order), size):
            places = order[first : first + size]
            rows = self.encoder.embed_documents([texts[i] for i in places], batch_size=size)
            yield from zip(places, rows, strict=True)


_AT_ONCE = 32  # what sentence-transformers takes when nothing is said

# Raised when a thinker is shown a history in another form, so that its thoughts are written anew.
_HISTORY_FORM = 1
# The same for passages.
_PASSAGES_FORM = 1
# Vectors are kept after so many: what an interruption can lose.
_KEEP_EVERY = 512


class QueryCache:
    """One pipeline's view of the thought cache; with `cache=False` every look-up misses.

    There are two keys, because the two live differently: a thought costs most and stays valid whatever
    embeds it; a vector belongs to one query with one thought in one encoder. The file is opened at the first
    look-up.
    """

    def __init__(self, backend: Backend, cache: bool | str | os.PathLike[str] | ThoughtCache) -> None:
        self._backend = backend
        # The folder that is meant now, whatever the working folder will be.
        self.option = cache if isinstance(cache, bool | ThoughtCache) else absolute(cache)
        self._store: ThoughtCache | None = None

    @property
    def store(self) -> ThoughtCache | None:
        """The cache itself, None when it is off."""
        if self.option is False:
            return None
        if self._store is None:
            given = None if self.option is True else self.option
            self._store = given if isinstance(given, ThoughtCache) else ThoughtCache(given)
        return self._store

    def thoughts(self, queries: Sequence[Query], settings: ThoughtSettings) -> list[list[Thought]]:
        """For each query the thoughts that need not be written.

        They are those that the caller brings, or the first ones, as many as are kept one after the other.
        What the caller brings is neither looked up nor kept; its vectors are, by its text.
        """
        known = {
            query: [Thought(text=text, finish="given") for text in query.thoughts or ()] for query in queries
        }
        store, left = self.store, [query for query in queries if to_write(query, settings)]
        who = self._backend.thinker_identity if left and store is not None else None
        if store is not None and who is not None:
            found = store.get_thoughts(
                [_thought_key(who, settings, query) for query in left], settings.n_thoughts
            )
            for query, cached in zip(left, found, strict=True):
                known[query] = [cached[i] for i in takewhile(cached.__contains__, range(settings.n_thoughts))]
        return [known[query] for query in queries]

    def free(self, query: Query, new: NewThoughts) -> Free:
        """The vectors that came with new thoughts."""
        vectors = zip(new.thoughts, new.vectors or (), strict=False)
        free = {self.vector_key(query.text, thought): vector for thought, vector in vectors}
        if new.fast is not None:
            free[self.vector_key(query.text, None)] = new.fast
        return free

    def keep(self, query: Query, new: NewThoughts, settings: ThoughtSettings) -> None:
        """Store new thoughts and the vectors that came with them."""
        store = self.store
        if store is None:
            return
        who, encoder = self._backend.thinker_identity, self._backend.encoder_identity
        if who is not None:
            key = _thought_key(who, settings, query)
            store.put_thoughts((key, new.start + i, thought) for i, thought in enumerate(new.thoughts))
        if encoder is not None:
            store.put_vectors(self.free(query, new).items())

    def vector_key(self, query: str, thought: Thought | None) -> bytes:
        """What the vector of a query with a thought, or without, is kept under."""
        text, ids = (None, None) if thought is None else (thought.text, list(thought.token_ids))
        encoder = self._backend.encoder_identity or ""
        return cache_key(kind="vector", encoder=encoder, query=query, thought=text, token_ids=ids)

    def stored(self, keys: Sequence[bytes]) -> Free:
        """The vectors under these keys that are there."""
        store, wanted = self.store, list(dict.fromkeys(keys))
        if store is None or self._backend.encoder_identity is None or not wanted:
            return {}
        cached = zip(wanted, store.get_vectors(wanted), strict=True)
        return {key: row for key, row in cached if row is not None}

    def passages(self, texts: Sequence[str], *, batch_size: int | None) -> list[Vector]:
        """Raw vectors of texts as documents, from the cache where it has them; each text is embedded once."""
        encoder = self._backend.encoder_identity or ""
        keys = [cache_key(kind="passage", encoder=encoder, text=text) for text in texts]
        return self._all(keys, texts, {}, self._backend.embed_documents, batch_size)

    def filled(
        self, pairs: Sequence[tuple[str, Thought | None]], free: Free, *, batch_size: int | None
    ) -> list[Vector]:
        """Raw vectors of all pairs: free ones, those in the cache, and the rest embedded once each."""
        keys = [self.vector_key(*pair) for pair in pairs]
        return self._all(keys, pairs, free, self._backend.embed_queries, batch_size)

    def _all(
        self, keys: Sequence[bytes], items: Sequence[Any], free: Free, embed: Any, batch_size: int | None
    ) -> list[Vector]:
        encoder, store = self._backend.encoder_identity, self.store
        rows = {key: free[key] for key in keys if key in free}
        rows |= self.stored([key for key in keys if key not in rows])
        by_key = dict(zip(keys, items, strict=True))
        missing = [key for key in by_key if key not in rows]
        for start in range(0, len(missing), _KEEP_EVERY):
            part = missing[start : start + _KEEP_EVERY]
            embedded = embed([by_key[key] for key in part], batch_size=batch_size)
            new = {part[place]: row for place, row in embedded}
            if store is not None and encoder is not None:
                store.put_vectors(new.items())
            rows |= new
        return [rows[key] for key in keys]


def _thought_key(who: str, settings: ThoughtSettings, query: Query) -> bytes:
    parts: dict[str, JSON] = {"who": who, "sampling": settings.sampling(), "query": query.text}
    if len(query.history):  # without one the key is what it was before there were any
        parts["history"] = [_HISTORY_FORM, [[each.role, each.content] for each in query.history]]
    if query.passages:
        parts["passages"] = [_PASSAGES_FORM, list(query.passages)]
    return cache_key(kind="thought", **parts)
