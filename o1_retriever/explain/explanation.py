"""Why a question found what it found: what each thought led to, and what thinking moved."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from o1_retriever.index.hits import Hit
from o1_retriever.search.result import SearchResult, hit_record, thought_record
from o1_retriever.thought import Thought

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Change", "Explanation", "ExplanationTimings", "Move", "moves"]

# Ranks are known down to here, or to `k` where that is more.
RANKED = 100

Change = Literal["new", "gone", "up", "down", "same"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationTimings:
    """Wall-clock milliseconds: writing the thoughts, embedding the question with them, all the searches.

    `without_ms` is embedding the question alone.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Explanation:
    """What was thought about a question, what each thought finds by itself, and what thinking moved.

    `result` is what `Retriever.search` returns, its `search_ms` being one ranking's share. `per_thought` has
    each thought with its own first hits (none where it could not be had), `without` the hits without
    thinking, both searched for as the result was. `moves` go by the rank with thinking; those gone come last.

    Shown by `print`, by rich in colour, and as HTML in a notebook.
    """

    result: SearchResult
    per_thought: tuple[tuple[Thought, tuple[Hit, ...]], ...]
    without: tuple[Hit, ...]
    moves: tuple[Move, ...]
    timings: ExplanationTimings

    @property
    def query(self) -> str:
        """The question."""
        return self.result.query

    @property
    def moved(self) -> tuple[Move, ...]:
        """The moves of what did not stay where it was."""
        return tuple(move for move in self.moves if move.change != "same")

    @property
    def verdict(self) -> str:
        """One sentence on what thinking did to the ranking."""
        if not self.result.thoughts:
            return "Nothing moved: the question was not thought about."
        if not self.result.embedding.thought_about:
            return "Nothing moved: no thought could be had."
        if not self.moves:
            return "Nothing moved: no passage matches."
        if not self.moved:
            return f"Nothing moved: the first {len(self.result)} are the same without thinking."
        names: tuple[Change, ...] = ("new", "gone", "up", "down", "same")
        counts = {name: sum(move.change == name for move in self.moves) for name in names}
        return f"{', '.join(f'{count} {name}' for name, count in counts.items() if count)}."

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain JSON values, without the vectors."""
        return {
            "query": self.query,
            "result": self.result.to_dict(),
            "per_thought": [
                {"thought": thought_record(thought), "hits": [hit_record(hit) for hit in hits]}
                for thought, hits in self.per_thought
            ],
            "without": [hit_record(hit) for hit in self.without],
            "moves": [move.to_dict() for move in self.moves],
            "timings": self.timings.to_dict(),
        }

    def __repr__(self) -> str:
        return (
            f"Explanation(query={self.query!r:.80}, thoughts={len(self.per_thought)}, "
            f"hits={len(self.result)}, moved={len(self.moved)})"
        )

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), color_system=None, force_terminal=False, highlight=False)
        with console.capture() as shown:
            console.print(self)
        return "\n".join(line.rstrip() for line in shown.get().splitlines())

    def __rich__(self) -> Group:
        from o1_retriever.explain.render import explanation_view

        return explanation_view(self)

    def _repr_html_(self) -> str:
        from o1_retriever.explain.html import as_html

        return as_html(self)


def moves(
    after: Sequence[Hit], before: Sequence[Hit], k: int, own: Sequence[Sequence[Hit]] = ()
) -> tuple[Move, ...]:
    """What is among the first `k` of either ranking: by its rank in `after`, then what is gone.

    The rankings may go beyond `k`, so that ranks are known there. `own` are the first hits of each thought.
    """
    ranks_after = {hit.id: hit.rank for hit in after}
    ranks_before = {hit.id: hit.rank for hit in before}
    ids = [{hit.id for hit in hits[:k]} for hits in own]
    kept = {hit.id for hit in after[:k]}
    shown = [*after[:k], *(hit for hit in before[:k] if hit.id not in kept)]
    return tuple(
        Move(
            hit=hit,
            before=ranks_before.get(hit.id),
            after=ranks_after.get(hit.id),
            change=_change(ranks_before.get(hit.id), ranks_after.get(hit.id), k),
            thoughts=tuple(number for number, found in enumerate(ids, start=1) if hit.id in found),
        )
        for hit in shown
    )


def _change(before: int | None, after: int | None, k: int) -> Change:
    if before is None or before > k:
        return "new"
    if after is None or after > k:
        return "gone"
    return "same" if before == after else "up" if after < before else "down"
