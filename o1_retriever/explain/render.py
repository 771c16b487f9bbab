"""Results and explanations drawn for a terminal: thoughts, hits, moves and costs as rich renderables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import dropwhile

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from o1_retriever.explain.parts import Change, ExplanationTimings, Move, PerThought
from o1_retriever.guard import Decision
from o1_retriever.index.hits import Hit
from o1_retriever.reporting.text import counted
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import Thought, Timings

# Of what each thought finds by itself, so much is shown.
SHOWN_PER_THOUGHT = 3
_CHANGES: dict[Change, str] = {"new": "green", "gone": "red", "up": "green", "down": "red", "same": "dim"}

# Control characters could repaint a terminal, and direction overrides reorder what it shows.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")


def result_view(result: SearchResult, *, full: bool = False) -> Group:
    """A whole result: query, thoughts, hits and costs. `full` shows passages whole, not three lines."""
    parts: list[RenderableType] = [Text(printable(result.query), style="bold")]
    if turns := len(result.embedding.history):
        parts += [Text(f"after {counted(turns, 'turn')} of conversation", style="dim")]
    if result.thoughts:
        parts += [Text(), Text("Thoughts", style="bold"), thoughts_view(result.thoughts)]
    parts += [Text(), Text("Hits", style="bold"), hits_view(result.hits, full=full)]
    parts += [Text(), costs_view(result.thoughts, result.embedding.timings, search_ms=result.search_ms)]
    return Group(*parts)


def explanation_view(
    result: SearchResult,
    per_thought: PerThought,
    moves: Sequence[Move],
    timings: ExplanationTimings,
    *,
    verdict: str,
    full: bool = False,
) -> Group:
    """A whole explanation: query, thoughts with what each finds, hits, what moved, and costs."""
    parts: list[RenderableType] = [Text(printable(result.query), style="bold")]
    parts += [Text(printable(decision_line(result.decision)), style="dim")]
    if per_thought:
        parts += [Text(), Text("Thoughts, and what each finds by itself", style="bold")]
        parts += [_own_hits_view(per_thought)]
    parts += [Text(), Text("Hits", style="bold"), hits_view(result.hits, full=full)]
    parts += [Text(), Text("What thinking moved", style="bold"), Text(f" {verdict}")]
    if any(move.change != "same" for move in moves):
        parts += [_moves_view(moves)]
    lines = cost_lines(result.thoughts, timings)
    return Group(*parts, Text(), *(Text(line, style="dim") for line in lines))


def _own_hits_view(per_thought: PerThought) -> RenderableType:
    table = _grid(marks=1)
    for number, (thought, hits) in enumerate(per_thought, start=1):
        own = _grid(marks=2)
        for hit in hits[:SHOWN_PER_THOUGHT]:
            own.add_row(str(hit.rank), f"{hit.score:.3f}", _Clipped(_heading(hit), 1))
        table.add_row(str(number), Group(_thought(thought), own) if hits else _thought(thought))
    return table


def _moves_view(moves: Iterable[Move]) -> RenderableType:
    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="dim")
    table.add_column("without", justify="right", no_wrap=True)
    table.add_column("with", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("passage", overflow="fold")
    table.add_column("thoughts", no_wrap=True, style="dim")
    for move in moves:
        change = Text(move.change, style=_CHANGES[move.change])
        table.add_row(*move_ranks(move), change, Text(title_of(move.hit)), numbers(move))
    return table


def decision_line(decision: Decision) -> str:
    """Whether it was thought about, and why."""
    verb = "Thought about" if decision.think else "Not thought about"
    if decision.worth is None or decision.threshold is None:
        return f"{verb}: {decision.reason}."
    return f"{verb}: {decision.reason} (worth {decision.worth:.3f}, threshold {decision.threshold:.3f})."


def cost_lines(thoughts: Sequence[Thought], took: ExplanationTimings) -> tuple[str, str]:
    """What thinking cost and all the searches; and what the query alone cost, and the whole explanation."""
    timings = Timings(think_ms=took.think_ms, embed_ms=took.embed_ms)
    return (
        costs_view(thoughts, timings, search_ms=took.search_ms).plain,
        f"without thinking: embed {milliseconds(took.without_ms)} · in all {milliseconds(took.total_ms)}",
    )


def move_ranks(move: Move) -> tuple[str, str]:
    """The ranks without thinking and with it; a dash is a rank that is too low to be known."""
    before, after = (str(rank) if rank is not None else "–" for rank in (move.before, move.after))
    return before, after


def numbers(move: Move) -> str:
    """The thoughts that find it by themselves."""
    return ", ".join(map(str, move.thoughts))


def title_of(hit: Hit) -> str:
    """The title of a passage, else its place, else its id."""
    return printable(str(hit.metadata.get("title", ""))) or place(hit) or printable(hit.id)


def thoughts_view(thoughts: Sequence[Thought]) -> RenderableType:
    """Thoughts, numbered; one that could not be had is shown as failed, with its reason."""
    table = _grid(marks=1)
    for number, thought in enumerate(thoughts, start=1):
        table.add_row(str(number), _thought(thought))
    return table


def hits_view(hits: Sequence[Hit], *, full: bool = False, lines: int = 3) -> RenderableType:
    """Hits with rank, score, title or source, and the first `lines` lines of each passage (`full`: all)."""
    if not hits:
        return Text(" none: no passage matches", style="dim")
    table = _grid(marks=2)
    for hit in hits:
        body = Text(_whole(hit.text)) if full else _Clipped(Text(_body(hit)), lines)
        table.add_row(str(hit.rank), f"{hit.score:.3f}", Group(_heading(hit), body))
    return table


def costs_view(
    thoughts: Sequence[Thought], timings: Timings | None = None, *, search_ms: float | None = None
) -> Text:
    """One line of what it cost: thoughts, their tokens, and milliseconds of each stage that ran."""
    parts = [_count(thoughts)]
    if timings is not None:
        stages = (("think", timings.think_ms if thoughts else 0.0), ("embed", timings.embed_ms))
        parts += [f"{name} {milliseconds(value)}" for name, value in stages if value]
    if search_ms is not None:
        parts.append(f"search {milliseconds(search_ms)}")
    return Text(" · ".join(parts), style="dim")


def milliseconds(value: float) -> str:
    """A duration as people read it: `0.4 ms`, `12 ms`, `1.8 s`."""
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 9.95 else f"{value:.1f} ms"


def printable(text: str) -> str:
    """A text on one line, without anything that could control a terminal."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


class _Clipped:
    """A text cut after some lines of whatever width there is."""

    def __init__(self, text: Text, lines: int) -> None:
        self.text = text
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        wrapped = self.text.wrap(console, width)
        yield from wrapped[: self.lines - 1]
        if len(wrapped) <= self.lines:
            yield from wrapped[self.lines - 1 :]
            return
        last = Text(f"{wrapped[self.lines - 1].plain.rstrip()} …")
        if last.cell_len > width:
            last = wrapped[self.lines - 1]
            last.rstrip()
            last.truncate(max(1, width - 2))
            last = Text(f"{last.plain.rsplit(' ', 1)[0]} …")
        yield last


def _grid(*, marks: int) -> Table:
    table = Table.grid(padding=(0, 1), pad_edge=True)
    for place in range(marks):
        table.add_column(justify="right", no_wrap=True, style="cyan" if place == 0 else "dim")
    table.add_column(overflow="fold")
    return table


def _thought(thought: Thought) -> Text:
    if thought.failed:
        return Text(f"failed: {printable(thought.error or 'no reason was given')}", style="red")
    text = Text(printable(thought.text))
    return text.append(cut_note(thought), style="dim")


def cut_note(thought: Thought) -> str:
    """Why a thought ends where it ends, empty where the model itself stopped."""
    reasons = {"length": "cut", "budget": "its time was up"}
    if thought.finish not in reasons:
        return ""
    return f" … ({reasons[thought.finish]} after {counted(thought.completion_tokens, 'token')})"


def _heading(hit: Hit) -> Text:
    title, where = printable(str(hit.metadata.get("title", ""))), place(hit)
    heading = Text(title, style="bold")
    if where:
        heading.append(f"{'  ' if title else ''}{where}", style="not bold dim" if title else "bold")
    return heading if heading.plain else Text(printable(hit.id), style="bold")


def place(hit: Hit) -> str:
    """Where a passage comes from: its file, page and line, as far as they are known."""
    parts = [printable(hit.source)] if hit.source else []
    parts += [f"{name} {hit.metadata[name]}" for name in ("page", "line") if name in hit.metadata]
    return ", ".join(parts)


def _body(hit: Hit) -> str:
    """The passage without the title, or the headings, that already stand above it."""
    title = printable(str(hit.metadata.get("title", "")))
    headings = {"", *title.split(" > ")}
    lines = dropwhile(lambda line: printable(line).lstrip("# ") in headings, hit.text.splitlines())
    text = printable(" ".join(lines))
    rest = re.sub(r"^[.:]?\s+", "", text.removeprefix(title)) if title else text
    return rest or printable(hit.text)


def _whole(text: str) -> str:
    """A passage with its own lines, which code and lists need."""
    return "\n".join(_UNPRINTABLE.sub(" ", line).rstrip() for line in text.expandtabs(4).splitlines())


def _count(thoughts: Iterable[Thought]) -> str:
    every = list(thoughts)
    if not every:
        return "no thoughts"
    failed = sum(thought.failed for thought in every)
    tokens = sum(thought.completion_tokens for thought in every)
    cached = sum(thought.cached for thought in every)
    notes = [counted(len(every), "thought")]
    if failed:
        notes.append(f"{failed} failed")
    if tokens:
        notes.append(counted(tokens, "token"))
    if cached:
        notes.append("from cache" if cached == len(every) else f"{cached} from cache")
    return ", ".join(notes)
