"""Which rows are done and where they stand, on disk where they are many, so that memory does not grow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

_TABLES = """
CREATE TABLE done (key INTEGER PRIMARY KEY, offset INTEGER NOT NULL, length INTEGER NOT NULL, place INTEGER);
CREATE TABLE seen (key INTEGER PRIMARY KEY);
"""


class KeyIndex:
    """Row keys (16 hexadecimal digits): where their line is in the output, and their row in the input.

    It lives in a temporary database that SQLite keeps in memory while it is small, and is gone at the end.
    """

    def __init__(self) -> None:
        # The empty name is SQLite's temporary database on disk; threads take turns by the caller's care.
        self._data = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._data.execute("PRAGMA journal_mode = OFF")
        self._data.executescript(_TABLES)

    def close(self) -> None:
        """Give the temporary file back."""
        self._data.close()

    def add(self, key: str, offset: int, length: int) -> bool:
        """Note the line of a finished row; False when there was one already."""
        values = (_number(key), offset, length)
        return self._changed("INSERT OR IGNORE INTO done VALUES (?, ?, ?, NULL)", values)

    def __contains__(self, key: str) -> bool:
        found = self._data.execute("SELECT 1 FROM done WHERE key = ?", (_number(key),))
        return found.fetchone() is not None

    def __len__(self) -> int:
        return int(self._data.execute("SELECT count(*) FROM done").fetchone()[0])

    def see(self, key: str) -> bool:
        """Whether a key of the input is met for the first time."""
        return self._changed("INSERT OR IGNORE INTO seen VALUES (?)", (_number(key),))

    def place(self, key: str, number: int) -> None:
        """Note which row of the input a finished row belongs to."""
        self._data.execute("UPDATE done SET place = ? WHERE key = ?", (number, _number(key)))

    def spans(self, *, ordered: bool) -> Iterator[tuple[int, int]]:
        """(offset, length) of the lines, in the input's order or in that of the file.

        Rows that the input does not hold come last, in the order of the file.
        """
        order = "place IS NULL, place, offset" if ordered else "offset"
        yield from self._data.execute(f"SELECT offset, length FROM done ORDER BY {order}")

    def in_order(self) -> bool:
        """Whether the lines already stand in the order of the input."""
        pairs = zip(self.spans(ordered=True), self.spans(ordered=False), strict=True)
        return all(one == other for one, other in pairs)

    def strangers(self) -> int:
        """How many lines belong to no row of the input."""
        return int(self._data.execute("SELECT count(*) FROM done WHERE place IS NULL").fetchone()[0])

    def _changed(self, statement: str, values: tuple[int, ...]) -> bool:
        return self._data.execute(statement, values).rowcount == 1


def _number(key: str) -> int:
    """SQLite's integers have a sign."""
    return int.from_bytes(bytes.fromhex(key), signed=True)
