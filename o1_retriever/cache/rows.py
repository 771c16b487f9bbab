"""The rows of the thought cache: what is stored of thoughts and vectors, and what goes when room is short.

Raw bytes only: text as UTF-8, token ids as little-endian int32, vectors as little-endian float32, and a
checksum over each row, because SQLite itself does not notice a flipped bit inside a value.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from o1_retriever.cache.sqlite import Damaged, Schema
from o1_retriever.errors import CacheError
from o1_retriever.thought import Finish, Thought, Vector

Table = Literal["thoughts", "vectors"]
TABLES: tuple[Table, ...] = ("thoughts", "vectors")

_COLUMNS: dict[Table, tuple[str, ...]] = {
    "thoughts": ("key", "idx", "finish", "prompt_tokens", "completion_tokens", "text", "token_ids"),
    "vectors": ("key", "data"),
}
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


@dataclass(frozen=True, slots=True)
class Row:
    """One row to insert: its place, what it is charged with, and its values as SQLite takes them."""

    id: int
    size: int
    values: tuple[Any, ...]


def row_id(key: bytes, index: int = 0) -> int:
    """The place of a row. A hash, so that new rows fill the holes that evicted ones leave all over the file,
    with the thoughts of one key side by side. Two keys in one place only replace each other."""
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2) + index


def thought_row(key: bytes, index: int, thought: Thought) -> Row:
    """A thought as a row. Raises `CacheError` for a token id that is not an int32."""
    text = thought.text.encode("utf-8", "surrogatepass")
    try:
        token_ids = struct.pack(f"<{len(thought.token_ids)}i", *thought.token_ids)
    except struct.error as error:
        raise CacheError(f"A thought's token ids do not fit 32 bits ({error}).") from None
    values = (key, index, thought.finish, thought.prompt_tokens, thought.completion_tokens, text, token_ids)
    return Row(row_id(key, index), _charge(len(text) + len(token_ids) + len(key)), values)


def vector_row(key: bytes, vector: Vector) -> Row:
    """A vector as a row. Raises `CacheError` for an array that is not one-dimensional."""
    data = np.asarray(vector, dtype="<f4")
    if data.ndim != 1:
        raise CacheError(f"A vector to keep has shape {data.shape}; expected (dimension,).")
    return Row(row_id(key), _charge(data.nbytes + len(key)), (key, data.tobytes()))


def _charge(payload: int) -> int:
    """Bytes of the file that a row takes at most, measured: half-empty pages, indices, an overflow page."""
    return payload + min(payload * 3 // 4, 2200) + 80


def select_thoughts(
    connection: sqlite3.Connection, ids: Sequence[int]
) -> list[tuple[int, bytes, int, Thought]]:
    """The thoughts that are in these places, each with its place, key and index."""
    return [
        (
            place,
            key,
            index,
            Thought(
                text=text.decode("utf-8", "surrogatepass"),
                token_ids=struct.unpack(f"<{len(token_ids) // 4}i", token_ids),
                finish=cast(Finish, finish),
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cached=True,
            ),
        )
        for place, (key, index, finish, prompt_tokens, completion_tokens, text, token_ids) in _select(
            connection, "thoughts", ids
        )
    ]


def select_vectors(connection: sqlite3.Connection, ids: Sequence[int]) -> list[tuple[int, bytes, Vector]]:
    """The vectors that are in these places, each with its place and key; the arrays may be read-only."""
    return [
        (place, key, np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False))
        for place, (key, data) in _select(connection, "vectors", ids)
    ]


def _select(
    connection: sqlite3.Connection, table: Table, ids: Sequence[int]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    columns = ", ".join(("id", "crc", *_COLUMNS[table]))
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        marks = ", ".join("?" * len(part))
        statement = f"SELECT {columns} FROM {table} WHERE id IN ({marks})"
        for place, crc, *values in connection.execute(statement, part).fetchall():
            if crc != _checksum(values):
                raise Damaged(f"a row of {table} has a wrong checksum")
            yield place, tuple(values)


def insert(connection: sqlite3.Connection, table: Table, rows: Iterable[Row], now: int) -> None:
    """Store the rows, each in place of what is there."""
    columns = ("id", "accessed", "size", "crc", *_COLUMNS[table])
    connection.executemany(
        f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        [(row.id, now, row.size, _checksum(row.values), *row.values) for row in rows],
    )


def touch(connection: sqlite3.Connection, times: dict[tuple[Table, int], int]) -> None:
    """Store when rows were last used."""
    for table in TABLES:
        connection.executemany(
            f"UPDATE {table} SET accessed = ?1 WHERE id = ?2 AND accessed < ?1",
            [(time, place) for (kind, place), time in times.items() if kind == table],
        )


def fits(row: Row, room: int) -> bool:
    """Whether the row would survive its own eviction."""
    return row.size <= room * _KEPT


def shrink(connection: sqlite3.Connection, room: int) -> None:
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
