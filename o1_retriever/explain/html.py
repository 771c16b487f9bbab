"""An explanation as HTML for a notebook: one element without scripts, in the page's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from o1_retriever.explain.parts import Change, ExplanationTimings, Move, PerThought
from o1_retriever.explain.render import (
    SHOWN_PER_THOUGHT,
    cost_lines,
    cut_note,
    decision_line,
    move_ranks,
    numbers,
    place,
    printable,
    title_of,
)
from o1_retriever.index.hits import Hit
from o1_retriever.reporting.html import element, text
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import Thought

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


def as_html(
    result: SearchResult,
    per_thought: PerThought,
    moves: Sequence[Move],
    timings: ExplanationTimings,
    *,
    verdict: str,
) -> str:
    """The whole of an explanation; every text in it is escaped."""
    parts = [
        element("div", element("strong", _text(result.query)), style="font-size:1.1em"),
        element("div", _text(decision_line(result.decision)), style=_DIM),
    ]
    if per_thought:
        parts += [element("div", "Thoughts, and what each finds by itself", style=_TITLE)]
        parts += [_thoughts(per_thought)]
    parts += [element("div", "Hits", style=_TITLE), _hits(result.hits)]
    parts += [element("div", "What thinking moved", style=_TITLE), element("div", _text(verdict))]
    if any(move.change != "same" for move in moves):
        parts += [_moves(moves)]
    parts += [element("div", _text(line), style=_DIM) for line in cost_lines(result.thoughts, timings)]
    return element("div", "".join(parts), style="max-width:60em;line-height:1.4;color:inherit")


def _thoughts(per_thought: PerThought) -> str:
    rows = []
    for number, (thought, hits) in enumerate(per_thought, start=1):
        own = (
            element("li", f"{_text(title_of(hit))} {_dim(f'{hit.score:.3f}')}")
            for hit in hits[:SHOWN_PER_THOUGHT]
        )
        listed = element("ol", "".join(own), style="margin:.2em 0 .2em 1.5em;padding:0") if hits else ""
        rows.append(_row([(str(number), _RIGHT), (f"{_thought(thought)}{listed}", _LEFT)]))
    return _table([], rows)


def _thought(thought: Thought) -> str:
    if thought.failed:
        reason = _text(thought.error or "no reason was given")
        return element("span", f"failed: {reason}", style=f"background:{_TINTS['gone']}")
    return f"{_text(thought.text)}{_dim(cut_note(thought))}"


def _hits(hits: Sequence[Hit]) -> str:
    if not hits:
        return element("div", "none: no passage matches", style=_DIM)
    rows = []
    for hit in hits:
        source = f" {_dim(_text(place(hit)))}" if place(hit) else ""
        summary = element("summary", f"{_text(title_of(hit))}{source}")
        passage = element("details", f"{summary}{_lines(hit.text)}")
        rows.append(_row([(str(hit.rank), _RIGHT), (f"{hit.score:.3f}", _RIGHT), (passage, _LEFT)]))
    return _table(["rank", "score", "passage"], rows)


def _moves(moves: Sequence[Move]) -> str:
    rows = []
    for move in moves:
        before, after = move_ranks(move)
        tint = f"{_LEFT};background:{_TINTS[move.change]};padding-left:.4em"
        cells = [(before, _RIGHT), (after, _RIGHT), (move.change, tint)]
        cells += [(_text(title_of(move.hit)), f"{_LEFT};padding-left:.6em"), (numbers(move), _LEFT)]
        rows.append(_row(cells))
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


def _lines(passage: str) -> str:
    """A passage with its own lines."""
    return "<br>".join(_text(line) for line in passage.splitlines())


def _text(value: str) -> str:
    return text(printable(value))
