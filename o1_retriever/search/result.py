"""How a search is asked for, and what it finds, as Python objects and as plain records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypedDict, cast, overload

import numpy as np

from o1_retriever.errors import SettingsError
from o1_retriever.guard import Decision, Gate
from o1_retriever.index.hits import Hit
from o1_retriever.thought import QueryEmbedding, Thinking, Thought, Vector, check_number, repeats
from o1_retriever.vectors import unit

Pooling = Literal["mean", "best"]

_CHOICES = {"pooling": ("mean", "best"), "thinking": ("always", "auto", "never", None)}


class SearchOptions(TypedDict, total=False):
    """The fields of `SearchSettings` as keyword arguments."""

    hybrid: bool
    pooling: Pooling
    thinking: Thinking | None
    depth: int
    gate: Gate
    rounds: int
    rounds_read: int
    rounds_ms: float | None
    min_relevance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How to search. The defaults are the paper's: they think, and search once with the mean vector.

    `hybrid` fuses the ranking with that of BM25, which reads the thoughts too; `depth` documents of each
    ranking take part. `pooling="best"` searches once for each thought, in one batch: a document's score is
    its best. `thinking` None follows the `ThoughtSettings`; "auto" asks `gate`, which looks at what the
    query finds without thoughts.

    `rounds=2` thinks again after reading the first `rounds_read` hits, and searches with all thoughts; a
    round is the last one when it leaves the hits where they were or brings no new thought, and none begins
    later than `rounds_ms` milliseconds after the search (None: whenever). Thoughts that were given are not
    added to.

    `min_relevance` leaves out the hits that are relevant with a smaller probability, from 0 to 1, so that
    there may be none; it needs an index that was calibrated (docs/search.md). Raises `SettingsError`.
    """

    hybrid: bool = False
    pooling: Pooling = "mean"
    thinking: Thinking | None = None
    depth: int = 1000
    gate: Gate = field(default_factory=Gate)
    rounds: int = 1
    rounds_read: int = 3
    rounds_ms: float | None = None
    min_relevance: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.hybrid, bool):
            raise SettingsError(f"hybrid is {self.hybrid!r}; expected True or False.")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in choices:
                expected = ", ".join(map(repr, choices))
                raise SettingsError(f"{name} is {value!r:.60}; expected one of {expected}.")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise SettingsError(f"depth is {self.depth!r}; expected a whole number from 1.")
        check_number("rounds", self.rounds, 1, 10, whole=True)
        check_number("rounds_read", self.rounds_read, 1, 100, whole=True)
        if self.rounds_ms is not None:
            check_number("rounds_ms", self.rounds_ms, 0, 1e9)
        if self.min_relevance is not None:
            check_number("min_relevance", self.min_relevance, 0, 1)
        if not isinstance(self.gate, Gate):
            raise SettingsError(f"gate is {self.gate!r:.60}; expected an o1_retriever.guard.Gate.")

    def pooled(self, *embeddings: QueryEmbedding) -> Vector:
        """The vectors (n, dimension) to search with: those of all thoughts, or the mean of all alone."""
        if self.pooling == "best":
            return np.concatenate([each.vectors for each in embeddings])
        return mean_vector(embeddings)[None]

    def with_changes(self, **changes: Any) -> SearchSettings:
        """A copy with some settings replaced. Raises `SettingsError` for names that it does not know."""
        unknown = sorted(set(changes) - set(self.__slots__))
        if unknown:
            raise SettingsError(
                f"Unknown search settings {unknown}; expected some of {list(self.__slots__)}."
            )
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)


def mean_vector(embeddings: Sequence[QueryEmbedding]) -> Vector:
    """The vector of a query, or the direction between those of several."""
    if len(embeddings) == 1:
        return embeddings[0].vector
    mean: Vector = np.mean([each.vector for each in embeddings], axis=0, dtype=np.float32)
    return unit(mean)


def split_options(options: Mapping[str, Any]) -> tuple[SearchOptions, dict[str, Any]]:
    """The options that are fields of `SearchSettings` and not None, and all other options."""
    fields = SearchOptions.__annotations__
    how = {name: value for name, value in options.items() if name in fields and value is not None}
    others = {name: value for name, value in options.items() if name not in fields}
    return cast(SearchOptions, how), others


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult(Sequence[Hit]):
    """What a query finds, best hit first, and what was thought on the way: a sequence of its hits.

    A slice is a result of fewer hits with the same thoughts, and a result without hits is false. `search_ms`
    are the wall-clock milliseconds of the index, divided by the queries of one call; those of thinking and
    embedding are in `embedding.timings`. `how` are the settings of the search and `decision` says whether the
    query was to be thought about and why; `embedding.thought_about` whether it was. `rounds` is how often it
    was searched for with new thoughts. `left_out` are the hits that do not reach `min_relevance`.
    """

    embedding: QueryEmbedding
    hits: tuple[Hit, ...]
    search_ms: float = 0.0
    how: SearchSettings = field(default_factory=SearchSettings)
    decision: Decision = field(default_factory=lambda: Decision(think=True, reason="thinking='always'"))
    rounds: int = 1
    left_out: tuple[Hit, ...] = ()

    @property
    def query(self) -> str:
        """The text of the query."""
        return self.embedding.query

    @property
    def thoughts(self) -> tuple[Thought, ...]:
        """What was thought about it."""
        return self.embedding.thoughts

    @property
    def total_ms(self) -> float:
        """Thinking, embedding and searching together."""
        return self.embedding.timings.total_ms + self.search_ms

    @overload
    def __getitem__(self, place: int) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> SearchResult: ...

    def __getitem__(self, place: int | slice) -> Hit | SearchResult:
        if isinstance(place, slice):
            return replace(self, hits=self.hits[place])
        return self.hits[place]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values, without the vectors; `history` only where there was one."""
        timings = self.embedding.timings
        return {
            "query": self.query,
            **({"history": self.embedding.history.to_list()} if len(self.embedding.history) else {}),
            "thoughts": [thought.to_dict() for thought in self.thoughts],
            "prompt_tokens": self.embedding.prompt_tokens,
            "thought_tokens": self.embedding.thought_tokens,
            "repeats": len(repeats(self.thoughts)),
            "dropped": sum(thought.dropped is not None for thought in self.thoughts),
            "timings": {
                "think_ms": round(timings.think_ms, 3),
                "embed_ms": round(timings.embed_ms, 3),
                "search_ms": round(self.search_ms, 3),
            },
            "search": {
                "hybrid": self.how.hybrid,
                "pooling": self.how.pooling,
                "rounds": self.rounds,
                **self._cut(),
                **self.decision.to_dict(),
            },
            "hits": [hit.to_dict() for hit in self.hits],
        }

    def _cut(self) -> dict[str, Any]:
        """How many hits were left out, and how likely the best of them is; only where there is a cut-off."""
        if self.how.min_relevance is None:
            return {}
        nearest = max((hit.probability or 0.0 for hit in self.left_out), default=None)
        return {
            "min_relevance": self.how.min_relevance,
            "left_out": len(self.left_out),
            "left_out_probability": nearest,
        }
