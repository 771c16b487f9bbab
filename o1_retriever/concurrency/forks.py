"""What a fork leaves to the child: locks that are free, and nothing that belongs to the parent's threads.

A forked child has one thread. Locks that another thread held stay locked, what another thread was computing
is never finished, and the threads of OpenMP, on which torch computes, are gone, while the library waits for
them: the first large product of a child would hang for ever. So a model's lock is held while a process forks,
whatever has locks or threads makes them anew in the child, and there torch computes with one thread.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any

from o1_retriever.errors import ModelError

_held: weakref.WeakSet[Any] = weakref.WeakSet()
_taken: list[threading.Lock] = []
_owners: weakref.WeakSet[Renewed] = weakref.WeakSet()
_computed = False


class Renewed:
    """The base of whatever has locks, threads or connections: `renew` makes them, here and in a child."""

    def __init__(self) -> None:
        self.renew()
        _owners.add(self)

    def renew(self) -> None:
        """Begin anew, with free locks, without threads, and without closing what is the parent's."""
        raise NotImplementedError


def held_while_forking(lock: threading.Lock) -> threading.Lock:
    """The lock, which from now on is taken before each fork: no child begins in the middle of what it guards.

    Whoever holds it must neither fork nor wait for another such lock.
    """
    _held.add(lock)
    return lock


def one_thread_in_children() -> None:
    """Say that torch has computed here, so that it must not count on its threads in a forked child."""
    global _computed
    _computed = True


def check_device(device: Any, process: int, model: str) -> None:
    """Raise `ModelError` where a model was loaded on a GPU by process `process`, of which this is a fork."""
    if device.type != "cpu" and process != os.getpid():
        raise ModelError(
            f"{model} was loaded on {device} before this process was forked; a GPU cannot be used on both "
            "sides of a fork.",
            hint="Load it in the child (gunicorn: without --preload), or start processes with "
            "multiprocessing.get_context('spawn').",
        )


def _before() -> None:
    for lock in list(_held):
        lock.acquire()
        _taken.append(lock)


def _release() -> None:
    while _taken:
        _taken.pop().release()


def _in_child() -> None:
    _release()
    for owner in list(_owners):
        owner.renew()
    if _computed:
        # Tokenizers do the same by themselves, with a warning.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch = sys.modules["torch"]
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)
