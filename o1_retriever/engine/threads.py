"""Fewer threads while other processes want the same cores.

A parallel matrix product waits for its slowest thread. Where another process holds that thread's core, every
product waits for the scheduler, and two threads are many times slower than one. Threads that are pushed off
their core (involuntary context switches) tell of it.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any

import torch

from o1_retriever.concurrency.forks import Renewed

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Two threads on two quiet cores are pushed off some 40 times a second, beside a busy process 190 times.
_PUSHED_OFF_PER_S_AND_THREAD = 55.0
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

    def enter(self, threads: int) -> int:
        """How many threads there were before anybody stepped back; the caller sees `threads`."""
        with self._lock:
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

    Never more threads than torch had. On a GPU, or where the system counts no switches, nothing happens.
    """

    def __init__(self, device: Any) -> None:
        self._on = device.type == "cpu" and resource is not None
        self._before = 1
        self._crowded = 0

    def __enter__(self) -> SparingThreads:
        if self._on:
            self._before = _overlap.enter(torch.get_num_threads())
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
        """Notice whether threads were pushed off their cores since the last look."""
        global _crowded_until
        if not self._on or time.monotonic() - self._at < _LOOK_EVERY_S:
            return
        rate = (_pushed_off() - self._seen) / (time.monotonic() - self._at)
        threads = torch.get_num_threads()
        # One crowded look may be chance, or torch starting its threads.
        self._crowded = self._crowded + 1 if rate > _PUSHED_OFF_PER_S_AND_THREAD * threads else 0
        if self._crowded > 1:
            _crowded_until = time.monotonic() + _REMEMBER_S
            if threads > 1:
                logger.info("Other processes want the cores: %d threads instead of %d", threads // 2, threads)
                _overlap.reduce(threads // 2)
        elif threads < self._before and time.monotonic() >= _crowded_until:
            torch.set_num_threads(self._before)
        self._mark()

    def _mark(self) -> None:
        self._at, self._seen = time.monotonic(), _pushed_off()


def _pushed_off() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
