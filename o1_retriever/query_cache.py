"""What an embedder keeps on disk: thoughts by who thought them, vectors by what was embedded.

Two keys, because the two live differently: a thought costs most and stays valid whatever embeds it; a vector
belongs to one query with one thought in one encoder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o1_retriever.backend import Backend, Thinking
from o1_retriever.thought import Thought, ThoughtSettings, Vector

if TYPE_CHECKING:
    from o1_retriever.cache import ThoughtCache


class QueryCache:
    """One embedder's view of the thought cache; with `cache=False` every look-up misses.

    `cache` is True (the default folder), a folder, a `ThoughtCache`, or False. The file is opened at the
    first look-up.
    """

    def __init__(self, backend: Backend, cache: bool | str | os.PathLike[str] | ThoughtCache) -> None:
        self._backend = backend
        self._option = cache
        self._store: ThoughtCache | None = None

    @property
    def store(self) -> ThoughtCache | None:
        """The cache itself, None when it is off."""
        if self._option is False:
            return None
        if self._store is None:
            from o1_retriever.cache import ThoughtCache

            if isinstance(self._option, ThoughtCache):
                self._store = self._option
            else:
                self._store = ThoughtCache(None if self._option is True else self._option)
        return self._store

    def thoughts(self, queries: Sequence[str], settings: ThoughtSettings) -> list[dict[int, Thought]]:
        """For each query the thoughts 0 to k - 1 that are there, by index."""
        who = self._backend.thinker_identity
        store = self.store
        if store is None or who is None:
            return [{} for _ in queries]
        return store.get_thoughts([_thought_key(who, settings, query) for query in queries], settings.k)

    def keep(self, query: str, new: Thinking, settings: ThoughtSettings) -> None:
        """Store new thoughts and the vectors that came with them."""
        store = self.store
        if store is None:
            return
        who, encoder = self._backend.thinker_identity, self._backend.encoder_identity
        if who is not None:
            key = _thought_key(who, settings, query)
            store.put_thoughts((key, new.start + i, thought) for i, thought in enumerate(new.thoughts))
        if encoder is not None:
            rows = list(zip(new.thoughts, new.vectors or (), strict=False))
            items = [(_vector_key(encoder, query, thought), row) for thought, row in rows]
            if new.fast is not None:
                items.append((_vector_key(encoder, query, None), new.fast))
            store.put_vectors(items)

    def fill_vectors(
        self, pairs: Sequence[tuple[str, Thought | None]], rows: list[Vector | None], *, batch_size: int
    ) -> None:
        """Fill the rows that are None: from the cache, else by embedding, each distinct pair once."""
        encoder, store = self._backend.encoder_identity, self.store
        missing: dict[bytes, list[int]] = {}
        for place, (query, thought) in enumerate(pairs):
            if rows[place] is None:
                missing.setdefault(_vector_key(encoder or "", query, thought), []).append(place)
        if store is not None and encoder is not None and missing:
            keys = list(missing)
            for key, found in zip(keys, store.get_vectors(keys), strict=True):
                if found is not None:
                    for place in missing.pop(key):
                        rows[place] = found
        if not missing:
            return
        keys = list(missing)
        asked = [pairs[missing[key][0]] for key in keys]
        new: list[tuple[bytes, Vector]] = []
        for i, vector in self._backend.embed_queries(asked, batch_size=batch_size):
            for place in missing[keys[i]]:
                rows[place] = vector
            new.append((keys[i], vector))
        if store is not None and encoder is not None:
            store.put_vectors(new)


def _thought_key(who: str, settings: ThoughtSettings, query: str) -> bytes:
    from o1_retriever.cache import cache_key

    return cache_key(kind="thought", who=who, sampling=settings.sampling(), query=query)


def _vector_key(encoder: str, query: str, thought: Thought | None) -> bytes:
    from o1_retriever.cache import cache_key

    text, ids = (None, None) if thought is None else (thought.text, list(thought.token_ids))
    return cache_key(kind="vector", encoder=encoder, query=query, thought=text, token_ids=ids)
