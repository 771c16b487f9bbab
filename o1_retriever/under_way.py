"""Work that several callers want at the same time, done by the first of them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class UnderWay(Generic[Result]):
    """Who computes what right now: a caller claims keys, settles its own ones and waits for the others.


    A caller settles all that is its own before it waits, so that two never wait for each other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[Hashable, Future[Result]] = {}

    @contextmanager
    def claim(self, keys: Iterable[Hashable]) -> Iterator[tuple[set[Any], dict[Any, Future[Result]]]]:
        """The keys that are the caller's to settle, and the futures of those that another caller computes.

        What is not settled when the context ends is given up: those who wait for it get a `LookupError`.
        """
        mine: set[Hashable] = set()
        theirs: dict[Hashable, Future[Result]] = {}
        with self._lock:
            for key in keys:
                if key in mine:
                    continue
                future = self._futures.get(key)
                if future is None:
                    self._futures[key] = Future()
                    mine.add(key)
                else:
                    theirs[key] = future
        try:
            yield mine, theirs
        finally:
            for key in mine:
                future = self._pop(key)
                if future is not None:
                    future.set_exception(LookupError("the caller that computed it gave up"))

    def settle(self, key: Hashable, result: Result) -> None:
        """Hand a result to all that wait for it."""
        future = self._pop(key)
        if future is not None:
            future.set_result(result)

    def _pop(self, key: Hashable) -> Future[Result] | None:
        with self._lock:
            return self._futures.pop(key, None)
