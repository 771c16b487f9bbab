"""Thoughts and query vectors on disk, so that a query that came before runs no model.

The tables hold raw bytes only: text as UTF-8, token ids as little-endian int32, vectors as little-endian
float32, and a checksum over each row, because SQLite itself does not notice a flipped bit inside a value.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import sqlite3
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from o1_retriever.cache.sqlite import Damaged, Database, Schema, absolute, default_cache_path
from o1_retriever.concurrency.processes import Shared, made_again
from o1_retriever.errors import CacheError, SettingsError
from o1_retriever.storage import is_busy
from o1_retriever.thought import Finish, Thought, Vector

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

Table = Literal["thoughts", "vectors"]
TABLES: tuple[Table, ...] = ("thoughts", "vectors")

_KEPT = 0.9  # the share of the room that an eviction leaves filled, so that not every write evicts
_CHUNK = 900  # below the number of variables that old versions of SQLite allow in a statement

SCHEMA = Schema(
    application_id=int.from_bytes(b"o1rc", "big"),
    create=(
        "CREATE TABLE thoughts (id INTEGER PRIMARY KEY, accessed INTEGER NOT NULL, size INTEGER NOT NULL, "
        "crc INTEGER NOT NULL, key BLOB NOT NULL, idx INTEGER NOT NULL, finish TEXT NOT NULL, "
        "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, text BLOB NOT NULL, "
        "token_ids BLOB NOT NULL)",
        "CREATE TABLE vectors (id INTEGER PRIMARY KEY, accessed INTEGER NOT NULL, size INTEGER NOT NULL, "
        "crc INTEGER NOT NULL, key BLOB NOT NULL, data BLOB NOT NULL)",
        "CREATE TABLE total (bytes INTEGER NOT NULL)",
        *(f"CREATE INDEX {table}_age ON {table} (accessed, size)" for table in TABLES),
        *(
            f"CREATE TRIGGER {table}_{event} AFTER {event} ON {table} "
            f"BEGIN UPDATE total SET bytes = bytes {change}; END"
            for table in TABLES
            for event, change in (("INSERT", "+ new.size"), ("DELETE", "- old.size"))
        ),
    ),
    fill=("INSERT INTO total VALUES (0)",),
)


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


class ThoughtCache(Shared):
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
        self._db = Database(self._path / _FILE, SCHEMA, patience=patience)
        self._touched: dict[tuple[Table, int], int] = {}
        self._latest = 0
        self._warned = self._closed = False
        self._open()
        _CACHES.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        place = {"path": self._path, "max_bytes": self._max_bytes, "patience": self._patience}
        return made_again, (type(self), place)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    def get_thoughts(self, keys: Sequence[bytes], k: int) -> list[dict[int, Thought]]:
        """For each key the thoughts with an index below `k` that are there, by index, with `cached=True`."""
        found: dict[bytes, dict[int, Thought]] = {key: {} for key in keys}
        hits = []
        ids = [row_id(key, index) for key in found for index in range(k)]
        for place, (key, index, *values) in self._read("thoughts", ids):
            # Another key is in the place of ours when their hashes collide.
            if key in found and place == row_id(key, index):
                found[key][index] = _thought(*values)
                hits.append(place)
        self._touch("thoughts", hits)
        return [dict(sorted(found[key].items())) for key in keys]

    def put_thoughts(self, items: Iterable[tuple[bytes, int, Thought]]) -> None:
        """Keep thoughts under (key, index), in place of what is there; failed ones are left out."""
        self._insert("thoughts", [_values(*item) for item in items if item[2].finish not in _NEVER_KEPT])

    def get_vectors(self, keys: Sequence[bytes]) -> list[Vector | None]:
        """For each key the vector, shape (dimension,), or None; the arrays are the caller's own."""
        ids = {row_id(key): key for key in keys}
        found: dict[bytes, bytes] = {}
        for place, (key, data) in self._read("vectors", list(ids)):
            if ids[place] == key:
                found[key] = data
        self._touch("vectors", [row_id(key) for key in found])
        return [
            np.frombuffer(found[key], dtype="<f4").astype(np.float32) if key in found else None
            for key in keys
        ]

    def put_vectors(self, items: Iterable[tuple[bytes, Vector]]) -> None:
        """Keep float32 vectors, shape (dimension,), under their keys, in place of what is there."""
        rows = []
        for key, vector in items:
            data = np.asarray(vector, dtype="<f4")
            if data.ndim != 1:
                raise CacheError(f"A vector to keep has shape {data.shape}; expected (dimension,).")
            rows.append((key, data.tobytes()))
        self._insert("vectors", rows)

    def info(self) -> CacheInfo:
        """What the cache holds. Raises `CacheError` if that cannot be read."""
        counts = ", ".join(f"(SELECT COUNT(*) FROM {table})" for table in TABLES)
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

    def __exit__(self, *raised: object) -> None:
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

    def _read(self, table: Table, ids: Sequence[int]) -> list[tuple[int, tuple[Any, ...]]]:
        """The rows that are in these places: each place with its values."""
        self._check_open()
        try:
            return self._db.run(lambda db: list(_select(db, table, ids)))
        except (sqlite3.Error, OSError) as error:
            logger.debug("The cache %s cannot be read (%s): nothing is found in it.", self._path, error)
            self._note(error)
            return []

    def _insert(self, table: Table, values: Iterable[tuple[Any, ...]]) -> None:
        """Store rows, each in place of what is there; one that would not survive its own eviction is not."""
        self._check_open()
        now = self._tick()
        rows = [
            (row_id(row[0], row[1] if table == "thoughts" else 0), now, size, _checksum(row), *row)
            for row in values
            if (size := _charge(row)) <= self._max_bytes * _KEPT
        ]
        if not rows:
            return
        marks = ", ".join("?" * len(rows[0]))

        def work(db: sqlite3.Connection) -> None:
            db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)
            _shrink(db, self._max_bytes)

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
            for table in TABLES:
                db.executemany(
                    f"UPDATE {table} SET accessed = ?1 WHERE id = ?2 AND accessed < ?1",
                    [(time, place) for (kind, place), time in touched.items() if kind == table],
                )
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

    def _touch(self, table: Table, ids: list[int]) -> None:
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


def row_id(key: bytes, index: int = 0) -> int:
    """The place of a row. A hash, so that new rows fill the holes that evicted ones leave all over the file,
    with the thoughts of one key side by side. Two keys in one place only replace each other."""
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2) + index


def _values(key: bytes, index: int, thought: Thought) -> tuple[Any, ...]:
    """A thought as a row of its table. Raises `CacheError` for a token id that is not an int32."""
    text = thought.text.encode("utf-8", "surrogatepass")
    try:
        token_ids = struct.pack(f"<{len(thought.token_ids)}i", *thought.token_ids)
    except struct.error as error:
        raise CacheError(f"A thought's token ids do not fit 32 bits ({error}).") from None
    return key, index, thought.finish, thought.prompt_tokens, thought.completion_tokens, text, token_ids


def _thought(
    finish: Finish, prompt_tokens: int, completion_tokens: int, text: bytes, token_ids: bytes
) -> Thought:
    return Thought(
        text=text.decode("utf-8", "surrogatepass"),
        token_ids=struct.unpack(f"<{len(token_ids) // 4}i", token_ids),
        finish=finish,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached=True,
    )


def _charge(values: Iterable[Any]) -> int:
    """Bytes of the file that a row takes at most, measured: half-empty pages, indices, an overflow page."""
    payload = sum(len(value) for value in values if isinstance(value, bytes))
    return payload + min(payload * 3 // 4, 2200) + 80


def _select(
    connection: sqlite3.Connection, table: Table, ids: Sequence[int]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        marks = ", ".join("?" * len(part))
        statement = f"SELECT * FROM {table} WHERE id IN ({marks})"
        for place, _accessed, _size, crc, *values in connection.execute(statement, part).fetchall():
            if crc != _checksum(values):
                raise Damaged(f"a row of {table} has a wrong checksum")
            yield place, tuple(values)


def _shrink(connection: sqlite3.Connection, room: int) -> None:
    """Delete the least recently used rows of both tables if more than `room` bytes are taken."""
    if _number(connection, "SELECT bytes FROM total") <= room:
        return
    # Rare enough to count anew: a total that damage or a bug had shifted ends here.
    total = _number(connection, f"SELECT {' + '.join(f'(SELECT TOTAL(size) FROM {t})' for t in TABLES)}")
    connection.execute("UPDATE total SET bytes = ?", (int(total),))
    if total > room:
        _delete_oldest(connection, total - room * _KEPT)
    page_size = _number(connection, "PRAGMA page_size")
    excess = _number(connection, "PRAGMA page_count") - room // page_size
    free = _number(connection, "PRAGMA freelist_count")
    # A large batch, or a larger room in the past: give the difference back, keep the rest for reuse.
    for _ in range(int(min(excess, free))):
        connection.execute("PRAGMA incremental_vacuum(1)")  # through this module, one page at a time


def _delete_oldest(connection: sqlite3.Connection, excess: float) -> None:
    doomed: dict[Table, list[tuple[int]]] = {table: [] for table in TABLES}
    arms = (f"SELECT '{table}', id, size, accessed FROM {table}" for table in TABLES)
    for table, place, size, _ in connection.execute(f"{' UNION ALL '.join(arms)} ORDER BY 4"):
        if excess <= 0:
            break
        doomed[table].append((place,))
        excess -= size
    for table, places in doomed.items():
        connection.executemany(f"DELETE FROM {table} WHERE id = ?", places)


def _number(connection: sqlite3.Connection, statement: str) -> float:
    row = connection.execute(statement).fetchone()
    if row is None or not isinstance(row[0], int | float):
        raise Damaged(f"no number in answer to {statement}")
    return row[0]


def _checksum(values: Iterable[Any]) -> int:
    crc = 0
    for value in values:
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
        crc = zlib.crc32(raw, crc ^ len(raw))
    return crc


_CACHES: weakref.WeakSet[ThoughtCache] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    for cache in list(_CACHES):
        # Not closed: a daemon thread may still ask.
        if not cache._closed:
            cache._write(None, patience=_IMPATIENT)
            cache._db.release()
