"""Two ways of one job, timed in turns, so that what else the machine does meets both."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

_REST_S = 0.5


def ratio(ours: Callable[[], object], other: Callable[[], object], *, pairs: int, said: str) -> float:
    """The other's time over ours, the median of some pairs, every pair starting with the other side.

    Both should have run once. `said` stands before each pair that is printed. A moment's rest is before each
    call: the threads of a library may go on looking for work for a while after the last.
    """
    ratios = []
    for number in range(pairs):
        first, second = (ours, other) if number % 2 else (other, ours)
        times = {}
        for side in (first, second):
            time.sleep(_REST_S)
            times[side] = seconds(side)
        ratios.append(times[other] / times[ours])
        print(f"{said}: {times[other]:.2f} s / {times[ours]:.2f} s = {ratios[-1]:.2f}", flush=True)
    return round(median(ratios), 2)


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
