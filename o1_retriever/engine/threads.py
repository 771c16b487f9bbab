"""On how many threads torch computes: fewer while other processes want the cores, few for each batch of many.

A parallel matrix product waits for its slowest thread. Where another process holds that thread's core, every
product waits for the scheduler, and two threads are many times slower than one. How long threads that could
run have waited for a core tells of it; how often they were pushed off one does not: the system's own short
work does that on a quiet machine too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.reporting import counted

logger = logging.getLogger(__name__)

# Linux has a file for each thread: nanoseconds that it ran, nanoseconds that it waited for a core, and turns.
_THREADS = Path("/proc/self/task")
# Seconds in a second that all threads together wait.
_WAITED = 0.15
_LOOK_EVERY_S = 0.15
# How long a crowded machine is remembered before all threads are tried again.
_REMEMBER_S = 5.0
_crowded_until = 0.0


class _Overlap(Renewed):
    """What calls know of each other that are at work at once: a thread may begin with another's half."""

    def renew(self) -> None:
        """Begin with nobody at work."""
        self._lock = threading.Lock()
        self._inside = 0
        self._all = 1
        self._reduced: set[int] = set()

    def enter(self) -> int:
        """How many threads there were before anybody stepped back."""
        with self._lock:
            threads = torch.get_num_threads()
            self._inside += 1
            if self._inside == 1:
                self._all = threads
            return self._all if threads in self._reduced else threads

    def reduce(self, threads: int) -> None:
        """Step back to so many threads."""
        with self._lock:
            self._reduced.add(threads)
        torch.set_num_threads(threads)

    def leave(self) -> None:
        """The caller has its threads back."""
        with self._lock:
            self._inside = max(0, self._inside - 1)  # in a forked child, those of its parent do not count
            if not self._inside:
                self._reduced.clear()


_overlap = _Overlap()


class SparingThreads:
    """Within it, `look` halves torch's threads while the cores are wanted elsewhere; in the end all are back.

    Never more threads than torch had. On a GPU, or where the system does not tell (it is not Linux), nothing
    happens.
    """

    def __init__(self, device: Any) -> None:
        self._on = device.type == "cpu" and _waited() is not None
        self._before = 1
        self._crowded = 0

    def __enter__(self) -> SparingThreads:
        if self._on:
            self._before = _overlap.enter()
            if self._before > 1 and time.monotonic() < _crowded_until:
                _overlap.reduce(self._before // 2)
            self._mark()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._on:
            return
        if torch.get_num_threads() != self._before:
            torch.set_num_threads(self._before)
        _overlap.leave()

    def look(self) -> None:
        """Notice whether threads have waited for their cores since the last look."""
        global _crowded_until
        if not self._on or time.monotonic() - self._at < _LOOK_EVERY_S:
            return
        share = ((_waited() or 0.0) - self._seen) / (time.monotonic() - self._at)
        threads = torch.get_num_threads()
        # One crowded look may be chance, or torch starting its threads.
        self._crowded = self._crowded + 1 if share > _WAITED else 0
        if self._crowded > 1:
            _crowded_until = time.monotonic() + _REMEMBER_S
            if threads > 1:
                fewer = counted(threads // 2, "thread")
                logger.info("Other processes want the cores: %s instead of %d", fewer, threads)
                _overlap.reduce(threads // 2)
        elif threads < self._before and time.monotonic() >= _crowded_until:
            torch.set_num_threads(self._before)
        self._mark()

    def _mark(self) -> None:
        self._at, self._seen = time.monotonic(), _waited() or 0.0


Item = TypeVar("Item")
Result = TypeVar("Result")


class _Workers(Renewed):
    """Threads that share torch's threads among them. They are started when they are first needed."""

    def renew(self) -> None:
        """Begin without a thread."""
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._all = 0

    def pool(self, count: int, threads: int) -> ThreadPoolExecutor:
        """So many of them, with so many of torch's threads together."""
        with self._lock:
            if self._pool is None or self._all != threads:
                if self._pool is not None:
                    self._pool.shutdown(wait=False)
                share = threads // count
                self._pool, self._all = ThreadPoolExecutor(count, "o1-batch", _takes, (share,)), threads
                begun = threading.Barrier(count + 1)
                for _ in range(count):
                    self._pool.submit(begun.wait)
                begun.wait()
                # Threads that others start later begin with what was set last.
                torch.set_num_threads(threads)
            return self._pool


def _takes(share: int) -> None:
    torch.get_num_threads()  # the first time it is asked in a thread, torch sets the thread's number
    torch.set_num_threads(share)


# More at once wait for each other between torch's operations, where Python has one of them run.
_SIDES = 4


_workers = _Workers()


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`work` of each item, some at a time, which share torch's threads: one for each of up to four.

    So few threads or none wait for another at the end of each product, and what is no product is done on
    several cores too. A few items are worked on one after the other, each with all threads.
    """
    threads = torch.get_num_threads()
    sides = min(threads, _SIDES)
    if sides < 2 or len(items) < sides:
        return [work(item) for item in items]
    return list(_workers.pool(sides, threads).map(work, items))


def _waited() -> float | None:
    """Seconds that this process's threads have waited for a core; None where the system does not tell."""
    waited = None
    for file in _THREADS.glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread that has ended since
            waited = (waited or 0.0) + int(file.read_text().split()[1]) / 1e9
    return waited
