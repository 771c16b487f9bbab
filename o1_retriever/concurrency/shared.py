"""Work that several callers want at the same time, done by the first of them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

from o1_retriever.concurrency.forks import Renewed

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SharedWork(Renewed, Generic[Key, Result]):
    """Work that several callers want at the same time, done by the first of them.

    A caller claims keys, settles its own ones and then waits for the others: because it settles all that is
    its own before it waits, two never wait for each other.
    """

    def renew(self) -> None:
        """Begin without claims: those of a parent process are settled there alone."""
        self._lock = threading.Lock()
        self._futures: dict[Key, Future[Result]] = {}

    @contextmanager
    def claim(self, keys: Iterable[Key]) -> Iterator[tuple[set[Key], dict[Key, Future[Result]]]]:
        """The keys that are the caller's to settle, and the futures of those that another caller computes.

        What is not settled when the context ends is given up: those who wait for it get a `LookupError`.
        """
        mine: dict[Key, Future[Result]] = {}
        theirs: dict[Key, Future[Result]] = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                if key in self._futures:
                    theirs[key] = self._futures[key]
                else:
                    mine[key] = self._futures[key] = Future()
        try:
            yield set(mine), theirs
        finally:
            with self._lock:
                for key, future in mine.items():
                    if not future.done():  # what was settled may be another caller's by now
                        self._futures.pop(key, None)
                        future.set_exception(LookupError("the caller that computed it gave up"))

    def settle(self, key: Key, result: Result) -> None:
        """Hand a result to all that wait for it."""
        with self._lock:
            future = self._futures.pop(key, None)
            if future is not None:
                future.set_result(result)
