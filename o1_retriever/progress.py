"""A progress bar on long work: count, rate and time left, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(description: str, total: int | None, *, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar. `show` None: only where standard error is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda _count: None
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
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            # Over the whole run: a window of the last seconds is empty where one step takes longer.
            speed = bar.tasks[0].completed / max(1e-6, bar.tasks[0].elapsed or 0.0)
            bar.update(task, rate=f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")

        yield advance
