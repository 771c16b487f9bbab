"""What an embedder keeps on disk: thoughts by who thought them, vectors by what was embedded.

Two keys, because the two live differently: a thought costs most and stays valid whatever embeds it; a vector
belongs to one query with one thought in one encoder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o1_retriever.backend import Backend, Thinking
from o1_retriever.query import Conversation
from o1_retriever.thought import Thought, ThoughtSettings, Vector

if TYPE_CHECKING:
    from o1_retriever.cache import ThoughtCache
    from o1_retriever.cache.store import JSON


# Raised when a thinker is shown a history in another form, so that its thoughts are written anew.
_HISTORY_FORM = 1
# Vectors are kept after so many: what an interruption can lose.
_KEEP_EVERY = 512


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

    def thoughts(
        self, asked: Sequence[tuple[str, Conversation]], settings: ThoughtSettings
    ) -> list[dict[int, Thought]]:
        """For each query after its history the thoughts 0 to k - 1 that are there, by index."""
        who = self._backend.thinker_identity
        store = self.store
        if store is None or who is None:
            return [{} for _ in asked]
        return store.get_thoughts([_thought_key(who, settings, *each) for each in asked], settings.k)

    def keep(self, asked: tuple[str, Conversation], new: Thinking, settings: ThoughtSettings) -> None:
        """Store new thoughts and the vectors that came with them."""
        store = self.store
        if store is None:
            return
        query, history = asked
        who, encoder = self._backend.thinker_identity, self._backend.encoder_identity
        if who is not None:
            key = _thought_key(who, settings, query, history)
            # Where the time ran out says nothing about the model: another day it would get further.
            store.put_thoughts(
                (key, new.start + i, thought)
                for i, thought in enumerate(new.thoughts)
                if thought.finish != "budget"
            )
        if encoder is not None:
            rows = list(zip(new.thoughts, new.vectors or (), strict=False))
            items = [(_vector_key(encoder, query, thought), row) for thought, row in rows]
            if new.fast is not None:
                items.append((_vector_key(encoder, query, None), new.fast))
            store.put_vectors(items)

    def filled(
        self,
        pairs: Sequence[tuple[str, Thought | None]],
        known: Sequence[Vector | None],
        *,
        batch_size: int | None,
    ) -> list[Vector]:
        """Raw vectors of all pairs: those known, those in the cache, and the rest embedded once each."""
        encoder, store = self._backend.encoder_identity, self.store
        keys = [_vector_key(encoder or "", query, thought) for query, thought in pairs]
        rows = {key: row for key, row in zip(keys, known, strict=True) if row is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in rows]
        if store is not None and encoder is not None and missing:
            found = zip(missing, store.get_vectors(missing), strict=True)
            rows.update((key, row) for key, row in found if row is not None)
            missing = [key for key in missing if key not in rows]
        if missing:
            by_key = dict(zip(keys, pairs, strict=True))
            new = self._embedded(missing, [by_key[key] for key in missing], batch_size)
            rows.update(new)
        return [rows[key] for key in keys]

    def _embedded(
        self, keys: Sequence[bytes], pairs: Sequence[tuple[str, Thought | None]], batch_size: int | None
    ) -> dict[bytes, Vector]:
        keep = self.store if self._backend.encoder_identity is not None else None
        done: dict[bytes, Vector] = {}
        for start in range(0, len(pairs), _KEEP_EVERY):
            part = pairs[start : start + _KEEP_EVERY]
            embedded = self._backend.embed_queries(part, batch_size=batch_size)
            new = {keys[start + i]: row for i, row in embedded}
            if keep is not None:
                keep.put_vectors(new.items())
            done.update(new)
        return done


def _thought_key(who: str, settings: ThoughtSettings, query: str, history: Conversation) -> bytes:
    from o1_retriever.cache import cache_key

    parts: dict[str, JSON] = {"who": who, "sampling": settings.sampling(), "query": query}
    if len(history):  # without one the key is what it was before there were any
        parts["history"] = [_HISTORY_FORM, [[each.role, each.content] for each in history]]
    return cache_key(kind="thought", **parts)


def _vector_key(encoder: str, query: str, thought: Thought | None) -> bytes:
    from o1_retriever.cache import cache_key

    text, ids = (None, None) if thought is None else (thought.text, list(thought.token_ids))
    return cache_key(kind="vector", encoder=encoder, query=query, thought=text, token_ids=ids)
