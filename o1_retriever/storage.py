"""What all files that we write share: files that appear whole, and locks between threads and processes.

A lock works on every system and ends with the process that holds it. It is an empty SQLite file: SQLite's own
locks tell threads apart and are not inherited by a fork. The file is never opened in another way: closing it
would drop all locks that this process holds on it (POSIX).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, whose locks are always there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` at the end of the block, once it is on disk.

    Nothing is changed, and nothing is left behind, where the block or the disk fails.
    """
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write, which takes the place of `path` at the end of the block, once it is on
    disk.

    It is a name that no other process of any machine takes. As in `written_whole`, it is all or nothing.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.{uuid.uuid4().hex[:8]}.new")
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


# SQLite itself sleeps up to 100 ms between attempts, in which another writer begins again and again.
_FIRST_SLEEP_S, _LONGEST_SLEEP_S = 0.001, 0.02


def acquire(file: Path, *, patience: float = 0.0, shared: bool = False) -> sqlite3.Connection:
    """Take the lock of `file`, alone or shared with other readers; closing the connection gives it back.

    Raises `sqlite3.OperationalError` with the code SQLITE_BUSY after `patience` seconds, and with another
    code where the file cannot be made or used, or where its file system gives no locks.
    """
    with contextlib.suppress(OSError):
        # Whatever a damaged disk or another program has left in the file: SQLite would refuse it.
        if file.stat().st_size:
            os.truncate(file, 0)
    lock = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        _begin(lock, file, "BEGIN" if shared else "BEGIN EXCLUSIVE", time.monotonic() + patience)
    except BaseException:
        lock.close()
        raise
    return lock


@contextmanager
def locked(file: Path, *, patience: float) -> Iterator[None]:
    """Hold the lock of `file` alone. Raises as `acquire` does."""
    with closing(acquire(file, patience=patience)):
        yield


@contextmanager
def locked_fairly(file: Path, turn: Path, *, alone: bool, patience: float) -> Iterator[None]:
    """Hold the lock of `file`, alone or with other readers. Raises as `acquire` does.

    The locks are not fair by themselves: whoever waits holds the lock of `turn`, so that a writer cannot
    begin again before a reader that came first.
    """
    deadline = time.monotonic() + patience
    with closing(acquire(turn, patience=patience)) as waiting:
        lock = acquire(file, patience=deadline - time.monotonic(), shared=not alone)
        with closing(lock):
            waiting.execute("ROLLBACK")
            yield


def is_busy(error: Exception) -> bool:
    """Whether an error says that somebody else holds the lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


# What a system says that has no locks for a file: on NFS without its daemon, on some shared folders.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def _check_locks(folder: Path) -> None:
    """Raise `sqlite3.OperationalError` where the file system has no locks: SQLite calls that busy, too.

    A file of its own is locked: closing one that SQLite has open would drop this process's locks on it.
    """
    if fcntl is None:
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as reason:
        if reason.errno in _NO_LOCKS:
            error = sqlite3.OperationalError(f"the file system of {folder} gives no locks: {reason.strerror}")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_LOCK
            raise error from reason


def _begin(lock: sqlite3.Connection, file: Path, statement: str, deadline: float) -> None:
    sleep, looked = _FIRST_SLEEP_S, False
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
        if not looked:
            _check_locks(file.parent)
            looked = True
        time.sleep(sleep)
        sleep = min(2 * sleep, _LONGEST_SLEEP_S)
