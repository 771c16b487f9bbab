"""What people read: counted nouns, tables, what is wrong with an input, HTML pages and progress bars.

A page stands alone: what comes in as text is escaped, and nothing is loaded from anywhere. A progress bar is
on standard error, and is wiped away when it is finished.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from o1_retriever.errors import InputError, require

if TYPE_CHECKING:
    from rich.progress import Progress


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 thought`, `2 thoughts`, `1,000 queries`; `plural` where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Collection[int] = (0,)
) -> str:
    """A Markdown table. Columns are numbers, to the right, but for those whose places are in `texts`."""
    rules = ["---" if place in texts else "---:" for place in range(len(heads))]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rules, *cells))


SHOWN = 3  # first places of each kind


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem: how often it was met, the first places, and what was done about it."""

    kind: str
    count: int
    places: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        more = "; ..." if self.count > len(self.places) else ""
        return f"{self.kind}: {self.count} ({'; '.join(self.places)}{more}); {self.remedy}"


class Problems:
    """The problems of one source in the order in which they were first met; false while there are none.

    A subclass says which kinds there are and what is done about each (`remedies`), and what is raised where
    the reading is strict (`error`). With `strict`, that is the first problem; `raise_if_any` raises them all.
    """

    remedies: ClassVar[Mapping[str, str]] = {}
    error: ClassVar[type[InputError]] = InputError

    def __init__(self, source: str, *, strict: bool = False) -> None:
        self.source = source
        self.strict = strict
        self.counts: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def add(self, kind: str, place: str, what: str = "") -> None:
        """Note a problem of a known kind at a place such as "line 7". Raises when the reading is strict."""
        if kind not in self.remedies:
            raise ValueError(f"Unknown kind of problem {kind!r}; expected one of {sorted(self.remedies)}.")
        if self.strict:
            raise self.error(
                f"{self.source}, {place}: {kind}{f': {what}' if what else ''}.",
                hint="Repair it, or leave out --strict to go on without it.",
            )
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self._places.setdefault(kind, [])
        if len(places) < SHOWN:
            places.append(f"{place}: {what}" if what else place)

    def raise_if_any(self) -> None:
        """Raise an error with the whole report unless there are no problems."""
        if self.counts:
            raise self.error(
                str(self), hint="Repair the files, or read them without --strict to go on as the report says."
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of problems that were met."""
        return tuple(self.counts)

    def __iter__(self) -> Iterator[Problem]:
        return (
            Problem(kind, count, tuple(self._places[kind]), self.remedies[kind])
            for kind, count in self.counts.items()
        )

    def __len__(self) -> int:
        """How many problems there are, of all kinds."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.counts:
            return f"{self.source}: no problems."
        kinds = f"{counted(len(self.counts), 'kind')} of problems"
        return "\n".join([f"{self.source}: {kinds}", *(f"  {problem}" for problem in self)])


# Base of every page; what a page adds comes after it.
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;"
    "text-align:left;vertical-align:top}svg{max-width:100%;height:auto}"
)


def escaped(value: object) -> str:
    """Any text as HTML that shows it and does nothing else."""
    return escape(str(value))


def element(name: str, content: str = "", /, **attributes: str) -> str:
    """`<name ...>content</name>`. The content is HTML, the attributes are text; empty ones are left out.

    An attribute whose name Python reserves takes an underscore at its end: `class_="row"`.
    """
    given = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items() if value)
    return f"<{name}{given}>{content}</{name}>"


def html_table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A table of texts."""
    head = element("thead", _row("th", heads)) if heads else ""
    return element("table", head + element("tbody", "\n".join(_row("td", row) for row in rows)))


def html_list(contents: Iterable[str]) -> str:
    """A list without numbers; the contents are HTML."""
    return element("ul", "".join(element("li", content) for content in contents))


def html_page(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """A whole page: `title` is text, `parts` are HTML, `style` is added to that of all pages."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f"<style>{_STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def drawn_svg(draw: Callable[[Any], None], width: float, height: float, *, extra: str) -> str:
    """The SVG element of what `draw` draws in a figure of matplotlib, which `extra` installs; in inches."""
    require("matplotlib", extra=extra, purpose="Drawing the plots of a report")
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same data give the same file.
    with mpl.rc_context({"svg.hashsalt": "o1-retriever", "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    drawn = target.getvalue()
    return drawn[drawn.index("<svg") :]


def _row(name: str, cells: Iterable[str]) -> str:
    return element("tr", "".join(element(name, escaped(cell)) for cell in cells))


_BESIDE = 24  # characters of a note that a narrow terminal has room for


class Advance(Protocol):
    """Moves a progress bar on by `count`; a `note` is shown beside the rate, a long one below it."""

    def __call__(self, count: int, note: str = "") -> None:
        """Move on."""
        ...


def is_shown(show: bool | None) -> bool:
    """Whether there is a bar: as `show` says, and where that is None, on a terminal."""
    return sys.stderr.isatty() if show is None else show


@contextmanager
def progress(description: str, total: int | None, *, show: bool | None) -> Iterator[Advance]:
    """Yield a function that advances the bar. `show` None: only where standard error is a terminal."""
    if not is_shown(show):
        yield lambda count, note="": None
        return
    with _bar() as bar:
        task = bar.add_task(description, total=total, rate="", note="", below="")

        def advance(count: int, note: str = "") -> None:
            bar.advance(task, count)
            # Over the whole run: a window of the last seconds is empty where one step takes longer.
            speed = bar.tasks[0].completed / max(1e-6, bar.tasks[0].elapsed or 0.0)
            rate = f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
            bar.update(task, rate=rate)
            if note:
                long = len(note) > _BESIDE
                bar.update(task, note="" if long else note, below=note if long else "")

        yield advance


def _bar() -> Progress:
    """The bar of rich, which is imported when there is one to be drawn: most programs draw none."""
    from rich.console import Console, RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Bar(Progress):
        # Beside the bar a long note would take the room of the count and of the time left.
        def get_renderables(self) -> Iterator[RenderableType]:
            yield from super().get_renderables()
            for task in self.tasks:
                if task.fields["below"]:
                    yield Text(f"  {task.fields['below']}", style="dim")

    console = Console(stderr=True)
    # In a log file, where nothing can be wiped away, the last state is kept.
    wiped = console.is_terminal or console.is_jupyter
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=wiped,
    )
