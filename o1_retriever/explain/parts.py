"""The parts of an explanation: what thinking moved, and how long it all took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from o1_retriever.index.hits import Hit
from o1_retriever.thought import Thought

# Ranks are known down to here, or to `k` where that is more.
RANKED = 100

Change = Literal["new", "gone", "up", "down", "same"]

# Each thought with its own first hits, none where the thought could not be had.
PerThought = Sequence[tuple[Thought, Sequence[Hit]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A passage's rank without thinking (`before`) and with it (`after`), from 1.

    None is a rank below the first hundred (the first `k`, where that is more). `change` is "new" or "gone"
    where only one of the two rankings has the passage among its first `k`. `thoughts` are the numbers, from
    1, of the thoughts that have it among their own first `k`.
    """

    hit: Hit
    before: int | None
    after: int | None
    change: Change
    thoughts: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The move as plain JSON values."""
        return {
            "id": self.hit.id,
            "before": self.before,
            "after": self.after,
            "change": self.change,
            "thoughts": list(self.thoughts),
        }


def moves(
    after: Sequence[Hit], before: Sequence[Hit], k: int, per_thought: Sequence[Sequence[Hit]] = ()
) -> tuple[Move, ...]:
    """What is among the first `k` of either ranking: by its rank in `after`, then what is gone.

    The rankings may go beyond `k`, so that ranks are known there. `per_thought` are the first hits of each
    thought.
    """
    ranks_after = {hit.id: hit.rank for hit in after}
    ranks_before = {hit.id: hit.rank for hit in before}
    ids = [{hit.id for hit in hits[:k]} for hits in per_thought]
    kept = {hit.id for hit in after[:k]}
    shown = [*after[:k], *(hit for hit in before[:k] if hit.id not in kept)]
    return tuple(
        Move(
            hit=hit,
            before=ranks_before.get(hit.id),
            after=ranks_after.get(hit.id),
            change=_change(ranks_before.get(hit.id), ranks_after.get(hit.id), k),
            thoughts=tuple(number for number, own in enumerate(ids, start=1) if hit.id in own),
        )
        for hit in shown
    )


def _change(before: int | None, after: int | None, k: int) -> Change:
    if before is None or before > k:
        return "new"
    if after is None or after > k:
        return "gone"
    return "same" if before == after else "up" if after < before else "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationTimings:
    """Wall-clock milliseconds: writing the thoughts, embedding the query with them, all the searches.

    `without_ms` is embedding the query alone.
    """

    think_ms: float = 0.0
    embed_ms: float = 0.0
    search_ms: float = 0.0
    without_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """All of them together."""
        return self.think_ms + self.embed_ms + self.search_ms + self.without_ms

    def to_dict(self) -> dict[str, float]:
        """The timings as plain JSON values."""
        return {name: round(getattr(self, name), 3) for name in (*self.__slots__, "total_ms")}
