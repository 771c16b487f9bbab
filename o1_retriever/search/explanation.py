"""Why a query finds what it finds: what each thought leads to, and what thinking moves.

Drawn by rich, in a terminal and in a notebook as HTML. It is imported when something is drawn, because a
program that searches draws nothing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from o1_retriever.index.hits import Hit
from o1_retriever.reporting import counted
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import Thought, Timings

if TYPE_CHECKING:
    from rich.console import Group, RenderableType


# Ranks are known down to here, or to `k` where that is more.
RANKED = 100

Change = Literal["new", "gone", "up", "down", "same"]

# Each thought with its own first hits, none where the thought could not be written.
PerThought = tuple[tuple[Thought, tuple[Hit, ...]], ...]

# Of what each thought finds by itself, so much is shown.
_SHOWN_PER_THOUGHT = 3
_COLOURS: dict[Change, str] = {"new": "green", "gone": "red", "up": "green", "down": "red", "same": "dim"}

# Characters in a line of a notebook, and what stands around them.
_WIDTH, _PAGE = 110, '<pre style="white-space:pre-wrap;line-height:1.3;background:transparent">{code}</pre>'


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Explanation:
    """What was thought about a query, what each thought finds by itself, and what thinking moved.

    `result` is what `Retriever.search` returns, its `search_ms` being one ranking's share. `per_thought` has
    each thought with its own first hits (none where it could not be written), `without` the hits without
    thinking, both searched for as the result was. `moves` go by the rank with thinking; those gone come last.

    Shown by `print`, by rich in colour, and as HTML in a notebook.
    """

    result: SearchResult
    per_thought: PerThought
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
            dropped = any(thought.dropped for thought in self.result.thoughts)
            why = "every thought was dropped" if dropped else "no thought could be written"
            return f"Nothing moved: {why}."
        if not self.moves:
            return "Nothing moved: no passage matches."
        if not self.moved:
            hits = counted(len(self.result), "hit")
            return f"Nothing moved: without thinking the search finds the same {hits} in the same order."
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

        # In a notebook a console shows what it prints, wherever that goes.
        console = Console(
            file=io.StringIO(), color_system=None, force_terminal=False, force_jupyter=False, highlight=False
        )
        with console.capture() as shown:
            console.print(self)
        return "\n".join(line.rstrip() for line in shown.get().splitlines())

    def view(self, *, full: bool = False) -> Group:
        """What rich shows; `full` shows passages whole, not three lines of each."""
        from rich.console import Group
        from rich.text import Text

        from o1_retriever.search.render import costs_view, decision_line, found_view, milliseconds, printable

        parts: list[RenderableType] = [Text(printable(self.query), style="bold")]
        parts += [Text(decision_line(self.result.decision), style="dim")]
        if self.per_thought:
            title = Text("Thoughts, and what each finds by itself", style="bold")
            parts += [Text(), title, _thoughts_view(self.per_thought)]
        parts += [Text(), Text("Hits", style="bold"), found_view(self.result, full=full)]
        parts += [Text(), Text("What thinking moved", style="bold"), Text(f" {self.verdict}")]
        if self.moved:
            parts += [_moves_view(self.moves)]
        took = self.timings
        thinking = Timings(think_ms=took.think_ms, embed_ms=took.embed_ms)
        parts += [Text(), costs_view(self.result.thoughts, thinking, search_ms=took.search_ms)]
        without, whole = milliseconds(took.without_ms), milliseconds(took.total_ms)
        return Group(*parts, Text(f"without thinking: embed {without} · in all {whole}", style="dim"))

    def __rich__(self) -> Group:
        return self.view()

    def _repr_html_(self) -> str:
        """The same as in a terminal, in one element without scripts; every text in it is escaped."""
        from rich.console import Console

        console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False, highlight=False)
        console.print(self)
        return console.export_html(inline_styles=True, code_format=_PAGE)


def _thoughts_view(per_thought: PerThought) -> RenderableType:
    from rich.console import Group

    from o1_retriever.search.render import Clipped, grid, heading, thought_line

    table = grid(marks=1)
    for number, (thought, hits) in enumerate(per_thought, start=1):
        own = grid(marks=2)
        for hit in hits[:_SHOWN_PER_THOUGHT]:
            own.add_row(str(hit.rank), f"{hit.score:.3f}", Clipped(heading(hit), 1))
        table.add_row(str(number), Group(thought_line(thought), own) if hits else thought_line(thought))
    return table


def _moves_view(moves: Sequence[Move]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from o1_retriever.search.render import name_of

    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="dim")
    table.add_column("without", justify="right", no_wrap=True)
    table.add_column("with", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("passage", overflow="fold")
    table.add_column("thoughts", no_wrap=True, style="dim")
    for move in moves:
        before, after = ("–" if rank is None else str(rank) for rank in (move.before, move.after))
        change, name = Text(move.change, style=_COLOURS[move.change]), Text(name_of(move.hit))
        table.add_row(before, after, change, name, ", ".join(map(str, move.thoughts)))
    return table
