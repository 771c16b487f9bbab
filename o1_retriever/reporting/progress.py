"""A progress bar on long work: count, rate and time left, on standard error. A finished bar is wiped away."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

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
