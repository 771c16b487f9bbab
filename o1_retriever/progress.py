"""A progress bar on long work: count, rate and time left, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a progress bar on by `count`; a `note` is shown beside the rate until the next one."""

    def __call__(self, count: int, note: str = "") -> None:
        """Move on."""
        ...


def is_shown(show: bool | None) -> bool:
    """Whether there is a bar: as it was said, and where nothing was said (None), on a terminal."""
    return sys.stderr.isatty() if show is None else show


@contextmanager
def progress(description: str, total: int | None, *, show: bool | None) -> Iterator[Advance]:
    """Yield a function that advances the bar. `show` None: only where standard error is a terminal."""
    if not is_shown(show):
        yield _nowhere
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="", note="")

        def advance(count: int, note: str = "") -> None:
            bar.advance(task, count)
            # Over the whole run: a window of the last seconds is empty where one step takes longer.
            speed = bar.tasks[0].completed / max(1e-6, bar.tasks[0].elapsed or 0.0)
            rate = f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
            bar.update(task, rate=rate, note=note or bar.tasks[0].fields["note"])

        yield advance


def _nowhere(count: int, note: str = "") -> None:
    """Where there is no bar."""
