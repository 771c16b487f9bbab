"""The documents of an index and their vectors in one SQLite file: the truth from which Chroma can be rebuilt.

Chroma writes its search graph (HNSW) in several files, one after the other: a process killed in between
leaves files that cannot be loaded, or that crash the loader, and vectors that stand nowhere else are lost.
A second process that has the graph open goes on with the old one and may write it over the new one. So what
is indexed is written here first, in a transaction; `State.dirty` says that Chroma may lack it; and every
access holds a lock between processes, shared for reading and exclusive for writing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from o1_retriever.errors import StoreError
from o1_retriever.index.rows import Session, State
from o1_retriever.storage.lock import is_busy, locked_fairly

LEDGER_FILE = "documents.sqlite3"
LOCK_FILES = ("lock.sqlite3", "turn.sqlite3")
# A rebuild of the search graph holds the lock for minutes where there are millions of documents.
PATIENCE_S = 600.0


class Ledger:
    """Opens the file for one access at a time: `with ledger.session(write=True) as session: ...`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / LEDGER_FILE

    def exists(self) -> bool:
        """Whether there is a file; a file of length 0 is a creation that was cut short."""
        return self.file.is_file() and self.file.stat().st_size > 0

    @contextmanager
    def session(self, *, write: bool = False) -> Iterator[Session]:
        """Hold the lock, shared with other readers or alone, and yield access to the file.

        Raises `StoreError` when the file is damaged or not ours, or when another process keeps the lock.
        """
        try:
            with self._locked(alone=write), closing(self._connect("rw")) as connection:
                yield Session(connection, self.file)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def create(self, state: State) -> None:
        """Begin an empty ledger, unless there is one."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(alone=True), closing(self._connect("rwc")) as connection:
                Session(connection, self.file).create(state)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        except OSError as error:
            raise StoreError(
                f"An index cannot be made in {self.folder} ({error.strerror or error}).",
                hint="Choose another folder for it.",
            ) from error

    def _locked(self, *, alone: bool) -> AbstractContextManager[None]:
        lock, turn = (self.folder / name for name in LOCK_FILES)
        return locked_fairly(lock, turn, alone=alone, patience=PATIENCE_S)

    def _connect(self, mode: str) -> sqlite3.Connection:
        address = f"{self.file.resolve().as_uri()}?mode={mode}"
        connection = sqlite3.connect(address, uri=True, timeout=PATIENCE_S, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _failure(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if is_busy(error):
            return StoreError(
                f"Another process has been using the index at {self.folder} for {PATIENCE_S:.0f} seconds.",
                hint="Wait until that process has finished, or end it.",
            )
        if code in (
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
        ):
            return StoreError(
                f"The index at {self.folder} cannot be read or written ({error}).",
                hint="Free some disk space, or check who may write to that folder; what was done is kept.",
            )
        return StoreError(
            f"The index at {self.folder} cannot be used: found {error}; expected an intact {LEDGER_FILE}.",
            hint="Delete that folder and index again: o1-retriever index FOLDER",
        )
