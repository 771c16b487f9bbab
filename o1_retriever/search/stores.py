"""Searching a framework's vector store with a query and its thoughts, as a `Retriever` searches our index."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from o1_retriever.errors import SettingsError
from o1_retriever.guard import LOOKED_AT, Decision
from o1_retriever.ranking.ranking import best_of
from o1_retriever.search.relevance import not_calibrated
from o1_retriever.search.result import SearchOptions, SearchSettings, mean_vector
from o1_retriever.thought import QueryEmbedding, Thinking, Vector
from o1_retriever.vectors import searching

Item = TypeVar("Item")

# What a store finds, best first, with its scores: None where the store gives none.
Found = Sequence[tuple[Item, float | None]]


@dataclass(frozen=True, kw_only=True)
class Embedded(Generic[Item]):
    """A query, or several that are searched with together, with its thoughts.

    `decision` says why it was thought about or not, where the search decided it. `found` is what the search
    finds, where it is known already.
    """

    embeddings: Sequence[QueryEmbedding]
    decision: Decision | None = None
    found: Found[Item] | None = None


@dataclass(frozen=True, kw_only=True)
class StoreSearch(Generic[Item]):
    """One search of a vector store: what is thought, and which vectors are looked up.

    `embed` thinks about the query and embeds it; `nearest` looks each of the vectors (n, dimension) up, and
    gives as many rankings. `key` tells whether two items are the same. `store` is what errors call the store.
    `given` says that the query brings its thoughts, so that there is nothing to decide.
    """

    how: SearchSettings
    k: int
    store: str
    embed: Callable[[Thinking | None], Awaitable[Sequence[QueryEmbedding]]]
    nearest: Callable[[Vector, int], Awaitable[Sequence[Found[Item]]]]
    key: Callable[[Item], Hashable]
    given: bool = False

    async def think(self) -> Embedded[Item]:
        """Think about the query; with thinking="auto" after a look at what it finds by itself."""
        if self.how.thinking != "auto":
            return Embedded(embeddings=await self.embed(self.how.thinking))
        if self.given:
            return Embedded(embeddings=await self.embed(None))
        fast = await self.embed("never")
        ranking = await self.look_up(mean_vector(fast)[None], max(self.k, LOOKED_AT))
        decision = self.how.gate.decide([self._score(score) for _, score in ranking])
        if decision.think:
            return Embedded(embeddings=await self.embed("always"), decision=decision)
        return Embedded(embeddings=fast, decision=decision, found=ranking[: self.k])

    async def find(self, embedded: Embedded[Item]) -> Found[Item]:
        """The items nearest to the query and its thoughts, best first."""
        if embedded.found is not None:
            return embedded.found
        return await self.look_up(self.how.pooled(*embedded.embeddings), self.k)

    async def look_up(self, vectors: Vector, k: int) -> Found[Item]:
        """The `k` items nearest to any of the vectors (n, dimension): an item's score is its best.

        Raises `SettingsError` where rankings must be compared and the store gives no scores.
        """
        with searching(self.store, vectors.shape[1]):
            rankings = await self.nearest(vectors, k)
        if len(rankings) == 1:
            return rankings[0]
        items = {self.key(item): item for ranking in rankings for item, _ in ranking}
        scores = [[(self.key(item), self._score(score)) for item, score in ranking] for ranking in rankings]
        return [(items[key], score) for key, score in best_of(scores, k)]

    def _score(self, score: float | None) -> float:
        if score is None:
            raise SettingsError(
                f"{self.store} gives no scores for a search by vector; pooling='best' and thinking='auto' "
                "compare them.",
                hint="Use pooling='mean', and thinking='always' or 'never'.",
            )
        return score


def store_settings(options: SearchOptions, store: str, hint: str) -> SearchSettings:
    """How to search a vector store. Raises `SettingsError` for what it cannot do; `hint` says what can."""
    how = SearchSettings().with_changes(**options)
    if how.hybrid:
        raise SettingsError(
            f"hybrid=True was passed for a {store}, which has no ranking by words to fuse with.", hint=hint
        )
    if how.min_relevance is not None:
        raise not_calibrated(how.min_relevance, store)
    if how.rounds > 1:
        raise SettingsError(
            f"rounds={how.rounds} was passed for a {store}; only a search of our own index reads its hits.",
            hint="Type: Retriever(embedder, index, rounds=2)",
        )
    return how
