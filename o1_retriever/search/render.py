"""Results drawn for a terminal: thoughts, hits and costs as rich renderables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import dropwhile

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from o1_retriever.guard import Decision
from o1_retriever.index.hits import Hit
from o1_retriever.reporting import counted
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import Thought, Timings, repeats

# Control characters could repaint a terminal, and direction overrides reorder what it shows.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")


def result_view(result: SearchResult, *, full: bool = False) -> Group:
    """A whole result: query, thoughts, hits and costs. `full` shows passages whole, not three lines."""
    parts: list[RenderableType] = [Text(printable(result.query), style="bold")]
    if result.how.thinking == "auto":
        parts += [Text(decision_line(result.decision), style="dim")]
    if turns := len(result.embedding.history):
        parts += [Text(f"after {counted(turns, 'turn')} of conversation", style="dim")]
    if result.thoughts:
        parts += [Text(), Text("Thoughts", style="bold"), thoughts_view(result.thoughts)]
    parts += [Text(), Text("Hits", style="bold"), found_view(result, full=full)]
    parts += [Text(), costs_view(result.thoughts, result.embedding.timings, search_ms=result.search_ms)]
    return Group(*parts)


def found_view(result: SearchResult, *, full: bool = False) -> RenderableType:
    """The hits of a result, and how many passages are too unlikely to be relevant."""
    if not result.left_out:
        return hits_view(result.hits, full=full)
    left_out = Text(_left_out(result), style="dim")
    return Group(hits_view(result.hits, full=full), left_out) if result.hits else left_out


def _left_out(result: SearchResult) -> str:
    nearest = max(hit.probability or 0.0 for hit in result.left_out)
    verb = "is" if len(result.left_out) == 1 else "are"
    left = f"{counted(len(result.left_out), 'passage')} {verb} left out (probability up to {nearest:.2f}"
    found = "" if result.hits else "nothing relevant: "
    return f" {found}{left}, and min_relevance is {result.how.min_relevance:g})"


def decision_line(decision: Decision) -> str:
    """Whether a query was thought about, and why."""
    line = f"{'Thought' if decision.think else 'Not thought'} about: {decision.reason}"
    if decision.worth is None or decision.threshold is None:
        return f"{line}."
    return f"{line} (worth {decision.worth:.3f}, threshold {decision.threshold:.3f})."


def name_of(hit: Hit) -> str:
    """The title of a passage, else its place, else its id."""
    return _title(hit) or place(hit) or printable(hit.id)


def thoughts_view(thoughts: Sequence[Thought]) -> RenderableType:
    """Thoughts, numbered; one that could not be written is shown as failed, with its reason."""
    table = grid(marks=1)
    for number, thought in enumerate(thoughts, start=1):
        table.add_row(str(number), thought_line(thought))
    return table


def hits_view(hits: Sequence[Hit], *, full: bool = False, lines: int = 3) -> RenderableType:
    """Hits with rank, score, title or source, and the first `lines` lines of each passage (`full`: all)."""
    if not hits:
        return Text(" none: no passage matches", style="dim")
    table = grid(marks=2)
    for hit in hits:
        body = Text(_whole(hit.text)) if full else Clipped(Text(_body(hit)), lines)
        table.add_row(str(hit.rank), f"{hit.score:.3f}", Group(heading(hit), body))
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


class Clipped:
    """A text cut after some lines of whatever width there is."""

    def __init__(self, text: Text, lines: int) -> None:
        self.text = text
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(self.text.wrap(console, options.max_width))
        if len(lines) > self.lines:
            del lines[self.lines :]
            last, room = lines.pop().plain.rstrip(), options.max_width - len(" …")
            if cell_len(last) > room:
                last = set_cell_size(last, max(1, room)).rsplit(" ", 1)[0]
            lines.append(Text(f"{last} …"))
        yield from lines


def grid(*, marks: int) -> Table:
    """A table without borders: `marks` narrow columns for ranks and scores, and one for text."""
    table = Table.grid(padding=(0, 1), pad_edge=True)
    for place in range(marks):
        table.add_column(justify="right", no_wrap=True, style="cyan" if place == 0 else "dim")
    table.add_column(overflow="fold")
    return table


def thought_line(thought: Thought) -> Text:
    """A thought and why it ends where it does, or why it could not be written."""
    if thought.failed:
        return Text(f"failed: {printable(thought.error or 'no reason was given')}", style="red")
    text = Text(printable(thought.text))
    if thought.dropped is not None:
        text.stylize("dim strike")
        return text.append(f" (dropped: it {thought.dropped})", style="yellow")
    return text.append(cut_note(thought), style="dim")


def cut_note(thought: Thought) -> str:
    """Why a thought ends in the middle of a sentence, empty where it does not."""
    reasons = {"length": "cut", "budget": "its time was up"}
    if thought.finish not in reasons or thought.text.rstrip("\"'”’)").endswith((".", "!", "?")):
        return ""
    return f" … ({reasons[thought.finish]} after {counted(thought.completion_tokens, 'token')})"


def heading(hit: Hit) -> Text:
    """The name of a passage in bold, and where it comes from."""
    line = Text(name_of(hit), style="bold")
    if _title(hit) and (where := place(hit)):
        line.append(f"  {where}", style="not bold dim")
    return line


def _title(hit: Hit) -> str:
    return printable(str(hit.metadata.get("title", "")))


def place(hit: Hit) -> str:
    """Where a passage comes from: its file, page and line, as far as they are known."""
    parts = [printable(hit.source)] if hit.source else []
    parts += [f"{name} {hit.metadata[name]}" for name in ("page", "line") if name in hit.metadata]
    return ", ".join(parts)


def _body(hit: Hit) -> str:
    """The passage without the title, or the headings, that already stand above it."""
    title = _title(hit)
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
    dropped = sum(thought.dropped is not None for thought in every)
    if dropped:
        notes.append(f"{dropped} dropped")
    if tokens:
        notes.append(counted(tokens, "token"))
    again = len(repeats(every))
    if again:
        notes.append(f"{again} repeating another")
    if cached:
        notes.append("from cache" if cached == len(every) else f"{cached} from cache")
    return ", ".join(notes)
