"""Why a query finds what it finds: what each thought leads to, and what thinking moves.

Shown in a terminal, and in a notebook as HTML.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from o1_retriever.explain.render import (
    Clipped,
    costs_view,
    cut_note,
    decision_line,
    grid,
    heading,
    hits_view,
    milliseconds,
    name_of,
    place,
    printable,
    thought_line,
)
from o1_retriever.index.hits import Hit
from o1_retriever.reporting.html import element, text
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import Thought, Timings

# Ranks are known down to here, or to `k` where that is more.
RANKED = 100

Change = Literal["new", "gone", "up", "down", "same"]

# Each thought with its own first hits, none where the thought could not be had.
PerThought = tuple[tuple[Thought, tuple[Hit, ...]], ...]

# Of what each thought finds by itself, so much is shown.
_SHOWN_PER_THOUGHT = 3
_THOUGHTS, _HITS, _MOVES = "Thoughts, and what each finds by itself", "Hits", "What thinking moved"
_COLOURS: dict[Change, str] = {"new": "green", "gone": "red", "up": "green", "down": "red", "same": "dim"}

# Half-transparent, so that they go with the page's own text on light and on dark grounds. Notebooks that are
# not trusted drop style sheets, and some viewers all styles: the tables say everything without them.
_TINTS: dict[Change, str] = {
    "new": "rgba(46,160,67,.28)",
    "gone": "rgba(218,54,51,.28)",
    "up": "rgba(46,160,67,.14)",
    "down": "rgba(218,54,51,.14)",
    "same": "rgba(128,128,128,.14)",
}
_LEFT = "text-align:left;vertical-align:top;padding:.15em .6em .15em 0"
_RIGHT = "text-align:right;vertical-align:top;padding:.15em .6em .15em 0;white-space:nowrap"
_TABLE = "border-collapse:collapse;margin:.2em 0 .6em;color:inherit;background:transparent"
_DIM = "opacity:.7"
_TITLE = "margin:.9em 0 .1em;font-weight:bold"


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

    def cells(self) -> tuple[str, ...]:
        """Both ranks, a dash where one is too low to be known; the change, the passage and the thoughts."""
        before, after = ("–" if rank is None else str(rank) for rank in (self.before, self.after))
        return before, after, self.change, name_of(self.hit), ", ".join(map(str, self.thoughts))

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
    each thought with its own first hits (none where it could not be had), `without` the hits without
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
        console = Console(file=io.StringIO(), color_system=None, force_terminal=False, highlight=False)
        with console.capture() as shown:
            console.print(self)
        return "\n".join(line.rstrip() for line in shown.get().splitlines())

    def view(self, *, full: bool = False) -> Group:
        """What rich shows; `full` shows passages whole, not three lines of each."""
        parts: list[RenderableType] = [Text(printable(self.query), style="bold")]
        parts += [Text(decision_line(self.result.decision), style="dim")]
        if self.per_thought:
            parts += [Text(), Text(_THOUGHTS, style="bold"), _thoughts_view(self.per_thought)]
        parts += [Text(), Text(_HITS, style="bold"), hits_view(self.result.hits, full=full)]
        parts += [Text(), Text(_MOVES, style="bold"), Text(f" {self.verdict}")]
        if self.moved:
            parts += [_moves_view(self.moves)]
        return Group(*parts, Text(), *(Text(line, style="dim") for line in self._costs))

    def __rich__(self) -> Group:
        return self.view()

    def _repr_html_(self) -> str:
        """One element without scripts, in the page's own colours; every text in it is escaped."""
        parts = [
            element("div", element("strong", _text(self.query)), style="font-size:1.1em"),
            element("div", _text(decision_line(self.result.decision)), style=_DIM),
        ]
        if self.per_thought:
            parts += [element("div", _THOUGHTS, style=_TITLE), _thoughts_html(self.per_thought)]
        parts += [element("div", _HITS, style=_TITLE), _hits_html(self.result.hits)]
        parts += [element("div", _MOVES, style=_TITLE), element("div", _text(self.verdict))]
        if self.moved:
            parts += [_moves_html(self.moves)]
        parts += [element("div", _text(line), style=_DIM) for line in self._costs]
        return element("div", "".join(parts), style="max-width:60em;line-height:1.4;color:inherit")

    @property
    def _costs(self) -> tuple[str, str]:
        """What thinking and all searches cost; and what the query alone cost, and the whole explanation."""
        took = self.timings
        timings = Timings(think_ms=took.think_ms, embed_ms=took.embed_ms)
        return (
            costs_view(self.result.thoughts, timings, search_ms=took.search_ms).plain,
            f"without thinking: embed {milliseconds(took.without_ms)} · in all {milliseconds(took.total_ms)}",
        )


def _thoughts_view(per_thought: PerThought) -> RenderableType:
    table = grid(marks=1)
    for number, (thought, hits) in enumerate(per_thought, start=1):
        own = grid(marks=2)
        for hit in hits[:_SHOWN_PER_THOUGHT]:
            own.add_row(str(hit.rank), f"{hit.score:.3f}", Clipped(heading(hit), 1))
        table.add_row(str(number), Group(thought_line(thought), own) if hits else thought_line(thought))
    return table


def _moves_view(moves: Sequence[Move]) -> RenderableType:
    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="dim")
    table.add_column("without", justify="right", no_wrap=True)
    table.add_column("with", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("passage", overflow="fold")
    table.add_column("thoughts", no_wrap=True, style="dim")
    for move in moves:
        before, after, change, name, thoughts = move.cells()
        table.add_row(before, after, Text(change, style=_COLOURS[move.change]), Text(name), thoughts)
    return table


def _thoughts_html(per_thought: PerThought) -> str:
    rows = []
    for number, (thought, hits) in enumerate(per_thought, start=1):
        own = (
            element("li", f"{_text(name_of(hit))} {_dim(f'{hit.score:.3f}')}")
            for hit in hits[:_SHOWN_PER_THOUGHT]
        )
        listed = element("ol", "".join(own), style="margin:.2em 0 .2em 1.5em;padding:0") if hits else ""
        rows.append(_row([(str(number), _RIGHT), (f"{_thought(thought)}{listed}", _LEFT)]))
    return _table([], rows)


def _thought(thought: Thought) -> str:
    if thought.failed:
        reason = _text(thought.error or "no reason was given")
        return element("span", f"failed: {reason}", style=f"background:{_TINTS['gone']}")
    return f"{_text(thought.text)}{_dim(cut_note(thought))}"


def _hits_html(hits: Sequence[Hit]) -> str:
    if not hits:
        return element("div", "none: no passage matches", style=_DIM)
    rows = []
    for hit in hits:
        source = f" {_dim(_text(place(hit)))}" if place(hit) else ""
        summary = element("summary", f"{_text(name_of(hit))}{source}")
        passage = "<br>".join(_text(line) for line in hit.text.splitlines())
        details = element("details", f"{summary}{passage}")
        rows.append(_row([(str(hit.rank), _RIGHT), (f"{hit.score:.3f}", _RIGHT), (details, _LEFT)]))
    return _table(["rank", "score", "passage"], rows)


def _moves_html(moves: Sequence[Move]) -> str:
    rows = []
    for move in moves:
        tint = f"background:{_TINTS[move.change]};padding-left:.4em"
        styles = (_RIGHT, _RIGHT, f"{_LEFT};{tint}", f"{_LEFT};padding-left:.6em", _LEFT)
        rows.append(_row(zip(map(_text, move.cells()), styles, strict=True)))
    return _table(["without", "with", "", "passage", "found by thought"], rows)


def _table(heads: Sequence[str], rows: Iterable[str]) -> str:
    cells = "".join(element("th", head, style=f"{_LEFT};{_DIM};font-weight:normal") for head in heads)
    head = element("thead", element("tr", cells)) if heads else ""
    return element("table", head + element("tbody", "".join(rows)), style=_TABLE)


def _row(cells: Iterable[tuple[str, str]]) -> str:
    inner = "".join(element("td", content, style=style) for content, style in cells)
    return element("tr", inner, style="background:transparent")


def _dim(content: str) -> str:
    return element("span", content, style=_DIM)


def _text(value: str) -> str:
    return text(printable(value))
