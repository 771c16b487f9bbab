"""Requests in parallel, again after a failure, and never for longer than was allowed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Condition, Event, Thread
from typing import Generic, TypeVar

from o1_retriever.endpoint.problem import Problem
from o1_retriever.errors import SettingsError
from o1_retriever.thought import Thought

Job = TypeVar("Job")
Result = Thought | Problem

TICK = 0.1  # seconds between two looks at the clock; also how long Ctrl-C may take on Windows
GRACE = 0.5  # seconds a request may be late before its thread is given up
FEWEST_FAILURES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPolicy:
    """How to ask a server: at most `concurrency` requests at a time, each given `timeout` seconds.

    A request that may succeed later is sent again up to `retries` times, after `backoff`, 2 x, 4 x ...
    seconds (with jitter, at most `longest_wait`) or as long as the server asks for. One thought takes
    `deadline` seconds at most, everything included. When a server does not work for as many thoughts
    as there are requests at a time (at least 4), and has not answered for `deadline` seconds or at all,
    the rest of a call is not asked any more.

    Raises `SettingsError` for a value out of range.
    """

    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 3
    backoff: float = 0.5
    longest_wait: float = 30.0
    deadline: float = 120.0

    def __post_init__(self) -> None:
        _check("concurrency", self.concurrency, 1, 1024, whole=True)
        _check("retries", self.retries, 0, 100, whole=True)
        _check("timeout", self.timeout, 0.001, 86_400)
        _check("backoff", self.backoff, 0, 3600)
        _check("longest_wait", self.longest_wait, 0, 86_400)
        _check("deadline", self.deadline, 0.001, 604_800)

    def wait(self, tried: int, asked: float | None) -> float:
        """Seconds to wait after `tried` attempts, the server having asked for `asked` (None: for nothing)."""
        if asked is not None:
            return asked * random.uniform(1.0, 1.1)
        return min(self.longest_wait, self.backoff * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.0)


def _check(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise SettingsError(f"{name} is {value!r}; expected a number from {low:g} to {high:g}.")


def persist(attempt: Callable[[float], Result], policy: RequestPolicy, stop: Event) -> Result:
    """Try until there is a thought, or trying again is pointless; `attempt` is given its seconds."""
    ends = time.monotonic() + policy.deadline
    tried = 0
    while True:
        tried += 1
        result = attempt(max(0.001, min(policy.timeout, ends - time.monotonic())))
        if isinstance(result, Thought) or not result.retry:
            return result
        wait = policy.wait(tried, result.wait)
        if tried > policy.retries:
            return _gave_up(result, tried, "")
        if result.wait is not None and result.wait > policy.longest_wait:
            return _gave_up(result, tried, f"; it asks to wait {result.wait:g} s")
        if time.monotonic() + wait >= ends:
            return _gave_up(result, tried, f"; {policy.deadline:g} s were allowed")
        if stop.wait(wait):
            return result


def _gave_up(problem: Problem, tried: int, why: str) -> Problem:
    times = "once" if tried == 1 else f"{tried} times"
    return replace(problem, reason=f"{problem.reason} (tried {times}{why})")


def not_asked(ended: Problem | None) -> Problem:
    """What is recorded for a job that was left alone because another one had `ended` the work."""
    if ended is None:
        raise RuntimeError("A job was left without a result.")
    return replace(ended, reason=f"not asked after others had failed: {ended.reason}", cost=(0, 0))


class Crew(Generic[Job]):
    """Works through a list of jobs on a bounded number of threads, once.

    The threads are daemons, because a request that a server keeps alive byte by byte cannot be
    interrupted: it is given up after the deadline, its late result is ignored, and neither Ctrl-C nor
    the end of the program waits for it.
    """

    def __init__(
        self, jobs: Sequence[Job], work: Callable[[Job, Event], Result], policy: RequestPolicy
    ) -> None:
        self._jobs = jobs
        self._work = work
        self._policy = policy
        self._stop = Event()
        self._changed = Condition()
        self._results: dict[int, Result] = {}
        self._started: dict[int, float] = {}
        self._next = 0
        self._streak = 0
        self._answered = -math.inf
        self.ended: Problem | None = None  # why the rest of the jobs was not asked
        self._crash: Exception | None = None

    def run(self) -> list[Result]:
        """The results in the order of the jobs.

        They are all the same `Problem` when the server must be set up first. An exception of `work` is
        raised here.
        """
        try:
            self._hire(min(self._policy.concurrency, len(self._jobs)))
            with self._changed:
                while not self._finished():
                    self._changed.wait(TICK)
                    self._give_up_late()
        finally:
            self._stop.set()
        if self._crash is not None:
            raise self._crash
        done = [self._results.get(place) for place in range(len(self._jobs))]
        return [result or not_asked(self.ended) for result in done]

    def _hire(self, number: int) -> None:
        for _ in range(number):
            Thread(target=self._labour, name="o1-retriever-thinker", daemon=True).start()

    def _labour(self) -> None:
        while (place := self._take()) is not None:
            try:
                self._settle(place, self._work(self._jobs[place], self._stop))
            except Exception as error:  # belongs to the caller's thread, which raises it
                with self._changed:
                    self._crash = error
                    self._changed.notify_all()

    def _take(self) -> int | None:
        with self._changed:
            if self._stop.is_set() or self.ended or self._next >= len(self._jobs):
                return None
            place, self._next = self._next, self._next + 1
            self._started[place] = time.monotonic()
            return place

    def _settle(self, place: int, result: Result) -> None:
        with self._changed:
            if place not in self._results:
                self._started.pop(place)
                self._results[place] = result
                self._judge(result)
            self._changed.notify_all()

    def _judge(self, result: Result) -> None:
        """Decide whether the rest of the jobs is still worth asking."""
        if isinstance(result, Thought) or not (result.down or result.setup):
            self._streak, self._answered = 0, time.monotonic()
            return
        self._streak += 1
        patient = self._streak < max(FEWEST_FAILURES, self._policy.concurrency)
        silent = time.monotonic() - self._answered > self._policy.deadline
        never = self._answered == -math.inf
        if (result.setup and (never or not patient)) or (silent and not patient):
            self.ended = self.ended or result

    def _give_up_late(self) -> None:
        oldest = time.monotonic() - self._policy.deadline - GRACE
        late = [place for place, started in self._started.items() if started < oldest]
        reason = f"no complete answer within {self._policy.deadline:g} s"
        for place in late:
            self._settle(place, Problem(reason=reason, down=True))
        self._hire(min(len(late), len(self._jobs) - self._next))

    def _finished(self) -> bool:
        if self._crash is not None or (self.ended and self.ended.setup and self._answered == -math.inf):
            return True
        return not self._started and (self.ended is not None or self._next >= len(self._jobs))
