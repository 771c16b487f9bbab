"""A query's way: thoughts from the cache or a thinker, then one raw vector for each thought."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from o1_retriever.backend import Backend, Thinking
from o1_retriever.progress import progress
from o1_retriever.query import Conversation, histories_of, several
from o1_retriever.query_cache import QueryCache
from o1_retriever.thought import Thought, ThoughtSettings, Vector
from o1_retriever.under_way import UnderWay

logger = logging.getLogger(__name__)

_Asked = tuple[str, Conversation]  # a query and what was said before it


@dataclass(kw_only=True)
class Thoughts:
    """Thoughts by query, and the raw vectors that thinking gave for free."""

    queries: Sequence[str]
    thoughts: list[list[Thought]]
    free: dict[tuple[str, tuple[int, ...], str], Vector] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class _Written:
    """All thoughts about one query, with the vectors of the new ones."""

    thoughts: list[Thought]
    new: Thinking | None = None


class Road:
    """Joins a backend and its cache; what the cache has is neither thought nor embedded again.

    A query that is asked several times, by one caller or by several at once, is thought about once.
    """

    def __init__(self, backend: Backend, cache: QueryCache) -> None:
        self.backend = backend
        self.cache = cache
        self._under_way: UnderWay[_Written] = UnderWay()

    def think(
        self,
        queries: Sequence[str],
        settings: ThoughtSettings,
        *,
        batch_size: int | None,
        show: bool | None,
        histories: Sequence[Conversation] | None = None,
    ) -> Thoughts:
        """`settings.k` thoughts about each query after its history; none where the settings say so."""
        if not settings.thinks:
            return Thoughts(queries=queries, thoughts=[[] for _ in queries])
        asked = list(zip(queries, histories_of(histories, queries), strict=True))
        unique = list(dict.fromkeys(asked))
        known: dict[_Asked, list[Thought]] = {}
        for query, found in zip(unique, self.cache.thoughts(unique, settings), strict=True):
            start = next((i for i in range(settings.k) if i not in found), settings.k)
            known[query] = [found[i] for i in range(start)]
        done = {query: thoughts for query, thoughts in known.items() if len(thoughts) == settings.k}
        missing = {query: thoughts for query, thoughts in known.items() if query not in done}
        result = Thoughts(queries=queries, thoughts=[])
        # Closed when interrupted here too: other callers may wait for what was under way.
        writing = closing(self._written(missing, settings, batch_size))
        with writing as new, progress("Thinking", len(missing), show=show if missing else False) as advance:
            for query, written in new:
                done[query] = written.thoughts
                if written.new is not None:
                    for thought, vector in zip(written.new.thoughts, written.new.vectors or (), strict=False):
                        result.free[query[0], thought.token_ids, thought.text] = vector
                advance(1)
        result.thoughts = [list(done[query]) for query in asked]
        return result

    def _written(
        self, missing: dict[_Asked, list[Thought]], settings: ThoughtSettings, batch_size: int | None
    ) -> Generator[tuple[_Asked, _Written]]:
        """What is missing, each query written here or taken from a caller who is writing it already."""
        left = dict(missing)
        while left:
            keys = {(settings, query): query for query in left}
            with self._under_way.claim(keys) as (mine, theirs):
                own = {query: left.pop(query) for key, query in keys.items() if key in mine}
                for query, written in self._new(own, settings, batch_size):
                    self._under_way.settle((settings, query), written)
                    yield query, written
            for key, future in theirs.items():
                try:
                    yield keys[key], future.result()
                    del left[keys[key]]
                except LookupError:
                    logger.debug("Another caller gave up thinking about %.60r", keys[key][0])

    def _new(
        self, missing: dict[_Asked, list[Thought]], settings: ThoughtSettings, batch_size: int | None
    ) -> Iterator[tuple[_Asked, _Written]]:
        by_start: dict[int, list[_Asked]] = {}
        for query, thoughts in missing.items():
            by_start.setdefault(len(thoughts), []).append(query)
        for start, asked in by_start.items():
            queries, said = [query for query, _ in asked], several([history for _, history in asked])
            for new in self.backend.think(
                queries, settings.k, settings=settings, start=start, batch_size=batch_size, **said
            ):
                query = asked[new.place]
                # Kept at once: an interrupted batch loses only the queries that were under way.
                self.cache.keep(query, new, settings)
                yield query, _Written(thoughts=[*missing[query], *new.thoughts], new=new)

    def vectors(self, thinking: Thoughts, *, batch_size: int | None) -> list[Vector]:
        """Raw vectors (n, dimension) of each query: one per usable thought, or its fast vector alone."""
        pairs: list[tuple[str, Thought | None]] = []
        owners: list[int] = []
        for place, (query, thoughts) in enumerate(zip(thinking.queries, thinking.thoughts, strict=True)):
            usable: list[Thought | None] = [thought for thought in thoughts if not thought.failed]
            if thoughts and not usable:
                logger.warning("No thought could be had about %.60r: %s", query, thoughts[0].error)
            for thought in usable or [None]:
                pairs.append((query, thought))
                owners.append(place)
        rows: list[Vector | None] = [
            None if thought is None else thinking.free.get((query, thought.token_ids, thought.text))
            for query, thought in pairs
        ]
        grouped: list[list[Vector]] = [[] for _ in thinking.queries]
        filled = self.cache.filled(pairs, rows, batch_size=batch_size)
        for owner, row in zip(owners, filled, strict=True):
            grouped[owner].append(row)
        return [np.stack(group) for group in grouped]
