"""A query's way: thoughts from the cache or a thinker, then one raw vector for each thought."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from o1_retriever.backend import Backend
from o1_retriever.progress import progress
from o1_retriever.query_cache import QueryCache
from o1_retriever.thought import Thought, ThoughtSettings, Vector

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Thoughts:
    """Thoughts by query, and the raw vectors that thinking gave for free."""

    queries: Sequence[str]
    thoughts: list[list[Thought]]
    free: dict[tuple[int, tuple[int, ...], str], Vector] = field(default_factory=dict)


class Road:
    """Joins a backend and its cache; what the cache has is neither thought nor embedded again."""

    def __init__(self, backend: Backend, cache: QueryCache) -> None:
        self.backend = backend
        self.cache = cache

    def think(
        self, queries: Sequence[str], settings: ThoughtSettings, *, batch_size: int, show: bool | None
    ) -> Thoughts:
        """`settings.k` thoughts about each query; none where the settings say not to think."""
        result = Thoughts(queries=queries, thoughts=[[] for _ in queries])
        if not settings.thinks:
            return result
        missing: dict[int, list[int]] = {}
        for place, found in enumerate(self.cache.thoughts(queries, settings)):
            start = next((i for i in range(settings.k) if i not in found), settings.k)
            result.thoughts[place] = [found[i] for i in range(start)]
            if start < settings.k:
                missing.setdefault(start, []).append(place)
        total = sum(map(len, missing.values()))
        with progress("Thinking", total, show=show if total else False) as advance:
            for start, places in missing.items():
                asked = [queries[place] for place in places]
                for new in self.backend.think(
                    asked, settings.k, settings=settings, start=start, batch_size=batch_size
                ):
                    place = places[new.place]
                    result.thoughts[place].extend(new.thoughts)
                    # Kept at once: an interrupted batch loses only the queries that were under way.
                    self.cache.keep(queries[place], new, settings)
                    for thought, vector in zip(new.thoughts, new.vectors or (), strict=False):
                        result.free[place, thought.token_ids, thought.text] = vector
                    advance(1)
        return result

    def vectors(self, thinking: Thoughts, *, batch_size: int) -> list[Vector]:
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
            None if thought is None else thinking.free.get((place, thought.token_ids, thought.text))
            for place, (_, thought) in zip(owners, pairs, strict=True)
        ]
        grouped: list[list[Vector]] = [[] for _ in thinking.queries]
        filled = self.cache.filled(pairs, rows, batch_size=batch_size)
        for owner, row in zip(owners, filled, strict=True):
            grouped[owner].append(row)
        return [np.stack(group) for group in grouped]
