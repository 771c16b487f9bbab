"""Thoughts and query vectors on disk, so that a question asked before runs no model."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from o1_retriever.cache import rows
from o1_retriever.cache.folder import absolute, default_cache_path
from o1_retriever.cache.sqlite import Database
from o1_retriever.errors import CacheError, SettingsError
from o1_retriever.storage.lock import is_busy
from o1_retriever.thought import Thought, Vector

__all__ = ["CacheInfo", "ThoughtCache", "cache_key", "default_cache_path"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"

MIN_BYTES = 1 << 16
_KEY_FORMAT = 1
_FILE = "thoughts.sqlite"
_NEVER_KEPT = frozenset({"failed", "budget"})
_FLUSH_EVERY = 1024  # access times
_IMPATIENT = 0.05  # seconds to wait for others once somebody was found to hold the file for long


def cache_key(**parts: JSON) -> bytes:
    """The key of whatever `parts` decide: 20 bytes, the same in every process and order of the parts.

    Raises `TypeError` for a value that JSON does not have and `ValueError` for NaN and infinity.
    """
    text = json.dumps([_KEY_FORMAT, parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=20).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What a cache holds.

    `bytes` is the room that the entries are charged with, which `max_bytes` bounds; `file_bytes` is what
    the database takes on disk now, with the log of recent writes.
    """

    path: Path
    thoughts: int
    vectors: int
    bytes: int
    file_bytes: int
    max_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {**asdict(self), "path": str(self.path)}


class ThoughtCache:
    """Thoughts and query vectors in a folder, shared by any number of threads and processes.

    `path` is the folder (None: `default_cache_path()`). A folder that is created gets mode 0700, and so
    does the default one; another that exists keeps its mode. The files in it are readable by their owner
    only. `max_bytes` bounds the database on disk: beyond it the least recently used tenth is dropped.
    `patience` is how many seconds to wait while another process writes.

    A cache that fails later, because it is locked, full or read-only, never fails a query: reads then find
    nothing, and writes are dropped with one warning. A damaged file is moved aside with one warning.

    Raises `CacheError` when the folder cannot be used, and when the cache is used after `close`.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = 1 << 30, patience: float = 5.0
    ) -> None:
        if not isinstance(max_bytes, int) or max_bytes < MIN_BYTES:
            raise SettingsError(f"max_bytes is {max_bytes!r}; expected a whole number from {MIN_BYTES}.")
        self._path = default_cache_path() if path is None else absolute(path)
        self._max_bytes = max_bytes
        self._patience = patience
        self._db = Database(self._path / _FILE, rows.SCHEMA, patience=patience)
        self._touched: dict[tuple[rows.Table, int], int] = {}
        self._latest = 0
        self._warned = self._closed = False
        self._open()
        _CACHES.add(self)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    def get_thoughts(self, keys: Sequence[bytes], k: int) -> list[dict[int, Thought]]:
        """For each key the thoughts with an index below `k` that are there, by index, with `cached=True`."""
        found: dict[bytes, dict[int, Thought]] = {key: {} for key in keys}
        ids = [rows.row_id(key, index) for key in found for index in range(k)]
        hits = []
        for place, key, index, thought in self._read(lambda db: rows.select_thoughts(db, ids)):
            # Another key is in the place of ours when their hashes collide.
            if key in found and place == rows.row_id(key, index):
                found[key][index] = thought
                hits.append(place)
        self._touch("thoughts", hits)
        return [dict(sorted(found[key].items())) for key in keys]

    def put_thoughts(self, items: Iterable[tuple[bytes, int, Thought]]) -> None:
        """Keep thoughts under (key, index), in place of what is there; failed ones are left out."""
        kept = [item for item in items if item[2].finish not in _NEVER_KEPT]
        self._insert("thoughts", [rows.thought_row(*item) for item in kept])

    def get_vectors(self, keys: Sequence[bytes]) -> list[Vector | None]:
        """For each key the vector, shape (dimension,), or None; the arrays are the caller's own."""
        ids = {rows.row_id(key): key for key in keys}
        found: dict[bytes, Vector] = {}
        for place, key, vector in self._read(lambda db: rows.select_vectors(db, list(ids))):
            if ids[place] == key:
                found[key] = vector
        self._touch("vectors", [rows.row_id(key) for key in found])
        return [found[key].copy() if key in found else None for key in keys]

    def put_vectors(self, items: Iterable[tuple[bytes, Vector]]) -> None:
        """Keep float32 vectors, shape (dimension,), under their keys, in place of what is there."""
        self._insert("vectors", [rows.vector_row(*item) for item in items])

    def info(self) -> CacheInfo:
        """What the cache holds. Raises `CacheError` if that cannot be read."""
        counts = ", ".join(f"(SELECT COUNT(*) FROM {table})" for table in rows.TABLES)
        thoughts, vectors, total = self._insist(
            lambda: self._db.run(lambda db: db.execute(f"SELECT {counts}, bytes FROM total").fetchone())
        )
        return CacheInfo(
            path=self._path,
            thoughts=thoughts,
            vectors=vectors,
            bytes=total,
            file_bytes=self._db.disk_bytes(),
            max_bytes=self._max_bytes,
        )

    def clear(self) -> None:
        """Forget everything and give the space back, also that of damaged files which were moved aside.

        Other processes can go on using the cache. Raises `CacheError` if it cannot be written.
        """
        self._insist(self._db.clear)
        with self._db.lock:
            self._touched = {}

    def flush(self) -> None:
        """Write the access times collected so far; also done with every write, at `close` and at exit."""
        self._check_open()
        self._write(None)

    def close(self) -> None:
        """Write what is outstanding and close the file. Closing again does nothing."""
        if not self._closed:
            self._write(None)
            self._closed = True
            self._db.release(wait=self._patience)

    def __enter__(self) -> ThoughtCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        try:
            self._db.run(lambda db: None)
        except (sqlite3.Error, OSError, ValueError) as error:
            if not is_busy(error):
                raise CacheError(
                    f"The cache folder {str(self._path)!r} cannot be used: {_reason(error)}.",
                    hint="Choose another folder (cache=..., O1_RETRIEVER_CACHE), or none with cache=False.",
                ) from error
            self._db.patience = _IMPATIENT

    def _insist(self, work: Callable[[], T]) -> T:
        self._check_open()
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            raise CacheError(
                f"The cache {self._path} cannot be used now: {_reason(error)}.",
                hint="Try again when no other program holds it.",
            ) from error

    def _read(self, work: Callable[[sqlite3.Connection], list[T]]) -> list[T]:
        self._check_open()
        try:
            return self._db.run(work)
        except (sqlite3.Error, OSError) as error:
            logger.debug("The cache %s cannot be read (%s): nothing is found in it.", self._path, error)
            self._note(error)
            return []

    def _insert(self, table: rows.Table, new: list[rows.Row]) -> None:
        self._check_open()
        new = [row for row in new if rows.fits(row, self._max_bytes)]
        if not new:
            return
        now = self._tick()

        def work(db: sqlite3.Connection) -> None:
            rows.insert(db, table, new, now)
            rows.shrink(db, self._max_bytes)

        self._write(work)

    def _write(
        self, work: Callable[[sqlite3.Connection], None] | None, *, patience: float | None = None
    ) -> None:
        """Write access times and do `work`, if any, in one transaction. Only lost work is worth a warning."""
        with self._db.lock:
            touched, self._touched = self._touched, {}
        if not touched and work is None:
            return

        def both(db: sqlite3.Connection) -> None:
            rows.touch(db, touched)
            if work is not None:
                work(db)

        try:
            self._db.write(both, patience=patience)
        except (sqlite3.Error, OSError) as error:
            self._note(error)
            if len(touched) < 16 * _FLUSH_EVERY:
                with self._db.lock:
                    self._touched = touched | self._touched
            first = work is not None and not self._warned
            self._warned = self._warned or first
            level = logging.WARNING if first else logging.DEBUG
            logger.log(level, "The cache %s cannot be written (%s): results are not kept.", self._path, error)
        else:
            self._db.patience = self._patience

    def _note(self, error: Exception) -> None:
        if is_busy(error):
            self._db.patience = min(_IMPATIENT, self._patience)

    def _touch(self, table: rows.Table, ids: list[int]) -> None:
        if not ids:
            return
        now = self._tick()
        with self._db.lock:
            self._touched.update(((table, place), now) for place in ids)
            full = len(self._touched) >= _FLUSH_EVERY
        if full:
            self._write(None, patience=0.0)

    def _tick(self) -> int:
        """Nanoseconds that always grow, also where the clock is coarse."""
        with self._db.lock:
            self._latest = max(time.time_ns(), self._latest + 1)
            return self._latest

    def _check_open(self) -> None:
        if self._closed:
            raise CacheError(f"The cache {self._path} is closed.", hint="Open it again: ThoughtCache(path).")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")


_CACHES: weakref.WeakSet[ThoughtCache] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    for cache in list(_CACHES):
        # Not closed: a daemon thread may still ask.
        if not cache._closed:
            cache._write(None, patience=_IMPATIENT)
            cache._db.release()
