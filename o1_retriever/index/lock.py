"""A lock between threads and processes: many hold it to read, or one to write, and everybody has a turn."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

LOCK_FILES = ("lock.sqlite3", "turn.sqlite3")
# A rebuild of the search graph holds the lock for minutes where there are millions of documents.
PATIENCE_S = 600.0
# SQLite itself sleeps up to 100 ms between attempts, in which another writer begins again and again.
_FIRST_SLEEP_S, _LONGEST_SLEEP_S = 0.001, 0.02


@contextmanager
def locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold the lock of `folder`. Raises `sqlite3.OperationalError` (busy) after `PATIENCE_S`.

    SQLite's locks work on every system, tell threads apart and end with the process. They are not fair:
    whoever is waiting holds the turn, so that a writer cannot begin again before a reader that came first.
    """
    deadline = time.monotonic() + PATIENCE_S
    lock, turn = (_open(folder / name) for name in LOCK_FILES)
    with closing(lock), closing(turn):
        _begin(turn, "BEGIN EXCLUSIVE", deadline)
        _begin(lock, "BEGIN EXCLUSIVE" if alone else "BEGIN", deadline)
        turn.execute("ROLLBACK")
        yield


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=0, isolation_level=None)


def _begin(lock: sqlite3.Connection, statement: str, deadline: float) -> None:
    sleep = _FIRST_SLEEP_S
    while True:
        try:
            lock.execute(statement)
            # A plain BEGIN locks nothing before it reads.
            lock.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            if lock.in_transaction:
                lock.execute("ROLLBACK")
        time.sleep(sleep)
        sleep = min(2 * sleep, _LONGEST_SLEEP_S)
