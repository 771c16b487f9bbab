"""Why a query finds what it finds: what each thought leads to, and what thinking moves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from o1_retriever.explain.parts import Change, ExplanationTimings, Move
from o1_retriever.index.hits import Hit
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import Thought

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Explanation:
    """What was thought about a query, what each thought finds by itself, and what thinking moved.

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
        """The text of the query."""
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
                {"thought": thought.to_dict(), "hits": [hit.to_dict() for hit in hits]}
                for thought, hits in self.per_thought
            ],
            "without": [hit.to_dict() for hit in self.without],
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

    def view(self, *, full: bool = False) -> Group:
        """What rich shows; `full` shows passages whole, not three lines of each."""
        from o1_retriever.explain.render import explanation_view

        return explanation_view(
            self.result, self.per_thought, self.moves, self.timings, verdict=self.verdict, full=full
        )

    def __rich__(self) -> Group:
        return self.view()

    def _repr_html_(self) -> str:
        from o1_retriever.explain.html import as_html

        return as_html(self.result, self.per_thought, self.moves, self.timings, verdict=self.verdict)
