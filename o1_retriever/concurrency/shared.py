"""Work that several callers want at the same time: the same is done once, what is alike in one batch.

And steps that are written once as coroutines, and also serve callers that have no event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import Any, Generic, ParamSpec, TypeVar

from o1_retriever.concurrency.processes import Renewed

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
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


# A thread that has nothing to do ends: it would keep the model in memory.
_IDLE_S = 2.0
# What coroutines ask for in one turn of their loop arrives within this time, and is one batch.
_QUIET_S, _LONGEST_QUIET_S = 0.001, 0.01
# A batch takes no more than this together: of what is left, others have their turn first.
_LARGEST = 512
# How long the end of the program waits for what is being computed.
_PATIENCE_AT_EXIT_S = 2.0


class Ticket(Generic[Item, Result]):
    """One item that a coroutine waits for; `size` is how much of a batch it takes."""

    def __init__(self, item: Item, size: int = 1) -> None:
        self.item, self.size = item, size
        self.future: Future[Result] = Future()

    @property
    def wanted(self) -> bool:
        """Whether the coroutine still waits."""
        return not self.future.cancelled()

    def settle(self, result: Result) -> None:
        """Hand the result over."""
        with suppress(InvalidStateError):  # cancelled since
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Raise the error in the coroutine, unless there is a result already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


Work = Callable[..., None]
WorkKey = tuple[Work, tuple[Hashable, ...]]


class Batches(Renewed):
    """Does work in a thread of its own, which is started when it is needed and ends when nothing is to do.

    `patient` waits a millisecond for others before a batch is begun.
    """

    def __init__(self, name: str, *, patient: bool = False) -> None:
        self.name = name
        self._patient = patient
        super().__init__()
        _EVERY.add(self)

    def renew(self) -> None:
        """Begin without a thread, and with nothing asked for."""
        self._changed = threading.Condition()
        self._waiting: deque[tuple[WorkKey, Ticket[Any, Any]]] = deque()
        self._doing: Sequence[Ticket[Any, Any]] = ()
        self._thread: threading.Thread | None = None
        self._ending = False

    async def ask(self, work: Work, *shared: Hashable, item: Any, size: int = 1, first: bool = False) -> Any:
        """The result that `work(tickets, *shared)` gives the item's ticket.

        Tickets with the same `work` and `shared` that wait at the same time are one call, up to a `size` of
        512 together; then what waits besides has its turn. `first` is for what ends a work that has had a
        turn: it goes before all that waits. An exception is that of the tickets without a
        result: of several, each is tried again by itself. A coroutine that is cancelled takes its ticket
        back: it is no longer `wanted`.
        """
        ticket: Ticket[Any, Any] = Ticket(item, size)
        with self._changed:
            add = self._waiting.appendleft if first else self._waiting.append
            add(((work, shared), ticket))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return await asyncio.wrap_future(ticket.future)

    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            (work, shared), self._doing = batch
            for told in _WATCHERS:
                told(self.name, len(self._doing))
            _do(work, shared, self._doing)
            self._doing = ()
            del batch, work, shared  # while nothing is to do, nothing is held

    def _next(self) -> tuple[WorkKey, list[Ticket[Any, Any]]] | None:
        """What to do next; None when the thread is to end."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._ending, _IDLE_S) or self._ending:
                self._thread = None
                return None
            if self._patient:
                self._listen()
            return self._taken()

    def _taken(self) -> tuple[WorkKey, list[Ticket[Any, Any]]]:
        """What is to be done with the first that waits; what has no room goes behind all others."""
        key, room = self._waiting[0][0], _LARGEST
        tickets: list[Ticket[Any, Any]] = []
        others: deque[tuple[WorkKey, Ticket[Any, Any]]] = deque()
        later = []
        for other, ticket in self._waiting:
            if other != key:
                others.append((other, ticket))
            elif ticket.wanted and tickets and ticket.size > room:
                later.append((other, ticket))
            elif ticket.wanted:
                tickets.append(ticket)
                room -= ticket.size
        self._waiting = others
        self._waiting.extend(later)
        return key, tickets

    def _listen(self) -> None:
        """Wait until nobody comes any more."""
        latest = time.monotonic() + _LONGEST_QUIET_S
        while time.monotonic() < latest:
            count = len(self._waiting)
            self._changed.wait(_QUIET_S)
            if len(self._waiting) == count:
                return

    def end(self) -> None:
        """Take everything back, and wait a little for the thread."""
        with self._changed:
            self._ending, thread = True, self._thread
            for ticket in [*self._doing, *(ticket for _, ticket in self._waiting)]:
                ticket.future.cancel()
            self._changed.notify()
        if thread is not None:
            thread.join(_PATIENCE_AT_EXIT_S)


def _do(work: Work, shared: tuple[Hashable, ...], tickets: Sequence[Ticket[Any, Any]]) -> None:
    try:
        if tickets:
            work(tickets, *shared)
            for ticket in tickets:
                ticket.fail(RuntimeError(f"{work.__qualname__} gave no result"))
    except Exception as error:
        left = [ticket for ticket in tickets if not ticket.future.done()]
        if len(tickets) == 1:
            tickets[0].fail(error)
        else:  # what one of them has done wrong is not the others' affair
            for ticket in left:
                _do(work, shared, [ticket])
    except BaseException as error:
        for ticket in tickets:
            ticket.fail(error)


_EVERY: weakref.WeakSet[Batches] = weakref.WeakSet()
# Told of every batch: the name of the thread, and how many items it takes at once.
Watcher = Callable[[str, int], None]
_WATCHERS: tuple[Watcher, ...] = ()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Have the batches of this process told to somebody meanwhile, in the threads that do the work."""
    global _WATCHERS
    _WATCHERS = (*_WATCHERS, watcher)
    try:
        yield
    finally:
        _WATCHERS = tuple(each for each in _WATCHERS if each is not watcher)


@atexit.register
def _at_exit() -> None:
    """A thread that is inside of a library when the interpreter ends would take the process down."""
    for batches in list(_EVERY):
        batches.end()


Given = ParamSpec("Given")


async def called(
    blocking: bool, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Result:
    """Call a function: here where `blocking`, or else in a thread, so that the event loop goes on."""
    if blocking:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def finished(steps: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine in which nothing waits, because all that it calls is `blocking`.

    So each search is written once, and its synchronous form needs no event loop.
    """
    try:
        steps.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    steps.close()
    raise RuntimeError("A blocking search has waited for something.")
