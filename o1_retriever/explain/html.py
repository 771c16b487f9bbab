"""An explanation as HTML for a notebook: one element without scripts, in the page's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from o1_retriever.explain.parts import Change, ExplanationTimings, Move, PerThought
from o1_retriever.explain.render import (
    SHOWN_PER_THOUGHT,
    cost_lines,
    decision_line,
    move_ranks,
    numbers,
    place,
    printable,
    title_of,
)
from o1_retriever.index.hits import Hit
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
        _block(f"<strong>{_text(result.query)}</strong>", "font-size:1.1em"),
        _block(_text(decision_line(result.decision)), _DIM),
    ]
    if per_thought:
        parts += [_block("Thoughts, and what each finds by itself", _TITLE), _thoughts(per_thought)]
    parts += [_block("Hits", _TITLE), _hits(result.hits)]
    parts += [_block("What thinking moved", _TITLE), _block(_text(verdict))]
    if any(move.change != "same" for move in moves):
        parts += [_moves(moves)]
    parts += [_block(_text(line), _DIM) for line in cost_lines(result.thoughts, timings)]
    return f'<div style="max-width:60em;line-height:1.4;color:inherit">{"".join(parts)}</div>'


def _thoughts(per_thought: PerThought) -> str:
    rows = []
    for number, (thought, hits) in enumerate(per_thought, start=1):
        own = (
            f"<li>{_text(title_of(hit))} <span style='{_DIM}'>{hit.score:.3f}</span></li>"
            for hit in hits[:SHOWN_PER_THOUGHT]
        )
        listed = f'<ol style="margin:.2em 0 .2em 1.5em;padding:0">{"".join(own)}</ol>' if hits else ""
        rows.append(_row([(str(number), _RIGHT), (f"{_thought(thought)}{listed}", _LEFT)]))
    return _table([], rows)


def _thought(thought: Thought) -> str:
    if thought.failed:
        reason = thought.error or "no reason was given"
        return f'<span style="background:{_TINTS["gone"]}">failed: {_text(reason)}</span>'
    note = {
        "length": f" … (cut after {thought.completion_tokens} tokens)",
        "budget": f" … (its time was up after {thought.completion_tokens} tokens)",
    }.get(thought.finish, "")
    return f'{_text(thought.text)}<span style="{_DIM}">{note}</span>'


def _hits(hits: Sequence[Hit]) -> str:
    if not hits:
        return _block("none: no passage matches", _DIM)
    rows = []
    for hit in hits:
        where = place(hit)
        source = f' <span style="{_DIM}">{_text(where)}</span>' if where else ""
        passage = f"<details><summary>{_text(title_of(hit))}{source}</summary>{_lines(hit.text)}</details>"
        rows.append(_row([(str(hit.rank), _RIGHT), (f"{hit.score:.3f}", _RIGHT), (passage, _LEFT)]))
    return _table(["rank", "score", "passage"], rows)


def _moves(moves: Sequence[Move]) -> str:
    rows = []
    for move in moves:
        before, after = move_ranks(move)
        tint = f"{_LEFT};background:{_TINTS[move.change]};padding-left:.4em"
        cells = [(before, _RIGHT), (after, _RIGHT), (move.change, tint)]
        rows.append(
            _row([*cells, (_text(title_of(move.hit)), f"{_LEFT};padding-left:.6em"), (numbers(move), _LEFT)])
        )
    return _table(["without", "with", "", "passage", "found by thought"], rows)


def _table(heads: Sequence[str], rows: Iterable[str]) -> str:
    cells = "".join(f'<th style="{_LEFT};{_DIM};font-weight:normal">{head}</th>' for head in heads)
    head = f"<thead><tr>{cells}</tr></thead>" if heads else ""
    return f'<table style="{_TABLE}">{head}<tbody>{"".join(rows)}</tbody></table>'


def _row(cells: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f'<td style="{style}">{content}</td>' for content, style in cells)
    return f'<tr style="background:transparent">{inner}</tr>'


def _block(content: str, style: str = "") -> str:
    return f'<div style="{style}">{content}</div>' if style else f"<div>{content}</div>"


def _lines(text: str) -> str:
    """A passage with its own lines."""
    return "<br>".join(_text(line) for line in text.splitlines())


def _text(text: str) -> str:
    return escape(printable(text))
