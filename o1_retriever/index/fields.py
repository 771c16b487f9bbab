"""The metadata of all documents by field and value, to filter on: two tables beside that of the documents.

They say nothing that the documents do not, and are written in the same transaction. SQLite orders and
compares as Python does: numbers exactly, whatever their types, and strings by code points. True is 1.
Which documents match a filter is remembered until a document changes.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from o1_retriever.concurrency.processes import Renewed
from o1_retriever.documents.structure import Scalar
from o1_retriever.index.filters import Condition, Every, Filter, Not, Part, asked_for

logger = logging.getLogger(__name__)

# The numbers of documents in the ledger, in ascending order.
Numbers: TypeAlias = NDArray[np.int64]
# A value; one of those in a list; a list, with its length.
Kind = Literal["value", "element", "list"]

_SHOWN = 20  # names of fields in a warning
# Old builds of SQLite take 999 values in one statement.
AT_ONCE = 900

SCHEMA = """
CREATE TABLE fields (field INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, UNIQUE (name, kind));
CREATE TABLE field_values (
    field INTEGER NOT NULL,
    value NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (field, value, number)
) WITHOUT ROWID;
"""
# What is remembered: so many filters, and for all together the numbers of so many documents (16 MB).
_FILTERS, _NUMBERS = 128, 2_000_000
_PUT = "INSERT OR IGNORE INTO field_values VALUES (?, ?, ?)"
_REMOVE = "DELETE FROM field_values WHERE field = ? AND value = ? AND number = ?"
# Numbers are before strings in SQLite's order, and '' is the first string.
_RANGES = {
    ("gt", False): "value > ? AND value < ''",
    ("gte", False): "value >= ? AND value < ''",
    ("lt", False): "value < ?",
    ("lte", False): "value <= ?",
    ("gt", True): "value > ?",
    ("gte", True): "value >= ?",
    ("lt", True): "value >= '' AND value < ?",
    ("lte", True): "value >= '' AND value <= ?",
}


class Fields:
    """Reads and writes the two tables; the ledger's lock is held, and for writing a transaction is open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[str, Kind], int] = {}

    def put(self, documents: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Add documents, given as number and metadata."""
        self._connection.executemany(_PUT, self._rows(documents))

    def remove(self, documents: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Take out documents, given as when they were added."""
        self._connection.executemany(_REMOVE, self._rows(documents))

    def _rows(self, documents: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[tuple[int, Scalar, int]]:
        for number, metadata in documents:
            for name, kind, value in _entries(metadata):
                yield self._field(name, kind, make=True), value, number

    def _field(self, name: str, kind: Kind, *, make: bool = False) -> int:
        """The number of a field; 0 where no document has ever had it."""
        key = name, kind
        if not self._known.get(key):
            if make:
                self._connection.execute("INSERT OR IGNORE INTO fields (name, kind) VALUES (?, ?)", key)
            query = "SELECT field FROM fields WHERE name = ? AND kind = ?"
            self._known[key] = (self._connection.execute(query, key).fetchone() or (0,))[0]
        return self._known[key]

    def passing(self, condition: Condition) -> Numbers:
        """The documents that pass the test."""
        name, operands = condition.field, condition.operands
        if condition.test == "in":
            return self._equal(name, "value", operands)
        if condition.test == "exists":
            return union(self._all(name, "value"), self._all(name, "list"))
        if condition.test == "empty":
            return union(
                np.setdiff1d(self.every(), self._all(name, "value", "list"), assume_unique=True),
                self._equal(name, "value", ("",)),
                self._equal(name, "list", (0,)),
            )
        (operand,) = operands
        if condition.test == "contains":
            inside = self._holding(name, operand) if isinstance(operand, str) else _none()
            return union(self._equal(name, "element", operands), inside)
        if condition.test == "icontains":
            return self._holding(name, str(operand).lower(), lower=True)
        return self._where(name, "value", _RANGES[condition.test, isinstance(operand, str)], operands)

    def names(self) -> list[str]:
        """The fields that a document has, or once had."""
        return [
            name for (name,) in self._connection.execute("SELECT DISTINCT name FROM fields ORDER BY name")
        ]

    def every(self) -> Numbers:
        """All documents."""
        return _numbers(self._connection.execute("SELECT number FROM documents"))

    def _all(self, name: str, *kinds: Kind) -> Numbers:
        return union(*(self._where(name, kind, "true", ()) for kind in kinds))

    def _equal(self, name: str, kind: Kind, values: Sequence[Scalar]) -> Numbers:
        """The documents whose value is one of these, however many there are."""
        parts = [values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE)]
        return union(
            *(self._where(name, kind, f"value IN ({','.join('?' * len(part))})", part) for part in parts)
        )

    def _where(self, name: str, kind: Kind, test: str, values: Sequence[Scalar]) -> Numbers:
        query = f"SELECT number FROM field_values WHERE field = ? AND {test}"
        return _numbers(self._connection.execute(query, (self._field(name, kind), *values)))

    def _holding(self, name: str, part: str, *, lower: bool = False) -> Numbers:
        """The documents whose string has the part in it; every string of the field is looked at."""
        query = "SELECT value, number FROM field_values WHERE field = ? AND value >= ''"
        rows = self._connection.execute(query, (self._field(name, "value"),))
        return _numbers((number,) for value, number in rows if part in (value.lower() if lower else value))


def _entries(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Kind, Scalar]]:
    for name, value in metadata.items():
        if isinstance(value, list):
            yield name, "list", len(value)
            for element in value:
                yield name, "element", element
        else:
            yield name, "value", value


def _numbers(rows: Iterable[tuple[int]]) -> Numbers:
    return np.sort(np.fromiter(chain.from_iterable(rows), np.int64))


def _none() -> Numbers:
    return np.zeros(0, np.int64)


def union(*parts: Numbers) -> Numbers:
    """The documents of all parts."""
    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate(parts)) if parts else _none()


class MatchKeeper(Renewed):
    """Hands out the documents that match a filter now; safe for several threads, and after a fork."""

    def __init__(self) -> None:
        super().__init__()
        self._version: Hashable = None
        self._known: OrderedDict[Filter, Numbers] = OrderedDict()

    def renew(self) -> None:
        """A free lock; what is known stays."""
        self._lock = threading.Lock()

    def current(self, version: Hashable, fields: Fields, filter: Filter) -> Numbers:
        """The numbers of the documents that match at that version, in ascending order.

        The ledger's lock must be held.
        """
        with self._lock:
            if self._version != version:
                self._version = version
                self._known.clear()
            known = self._known.get(filter)
            if known is not None:
                self._known.move_to_end(filter)
                return known
        numbers = matching(fields, filter.part)
        if not len(numbers):
            _warn_of_unknown(fields, filter.part)
        with self._lock:
            if self._version == version:
                self._known[filter] = numbers
                while len(self._known) > _FILTERS or sum(map(len, self._known.values())) > _NUMBERS:
                    self._known.popitem(last=False)
        return numbers


def matching(fields: Fields, part: Part) -> Numbers:
    """The numbers of the documents that match, in ascending order."""
    if isinstance(part, Condition):
        return fields.passing(part)
    if isinstance(part, Not):
        return np.setdiff1d(fields.every(), matching(fields, part.part), assume_unique=True)
    if isinstance(part, Every):
        both = partial(np.intersect1d, assume_unique=True)
        found = [matching(fields, each) for each in part.parts]
        return reduce(both, sorted(found, key=len)) if found else fields.every()
    return union(*(matching(fields, each) for each in part.parts))


def _warn_of_unknown(fields: Fields, part: Part) -> None:
    """Say which fields of a filter that nothing passes no document has."""
    there = fields.names()
    unknown = sorted(asked_for(part) - {*there})
    if unknown and there:
        shown = ", ".join(there[:_SHOWN]) + (", ..." if len(there) > _SHOWN else "")
        logger.warning(
            "No document has a field %s, which the filter asks for. Fields are: %s.",
            " or ".join(map(repr, unknown)),
            shown,
        )
