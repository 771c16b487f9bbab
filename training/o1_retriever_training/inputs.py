"""The rows of an input that a stage has still to do, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from o1_retriever_training.ledger import Ledger
from o1_retriever_training.problems import Problems
from o1_retriever_training.reading import read_rows
from o1_retriever_training.rows import Row


class Input:
    """Reads a source and leaves out what is repeated in it; `rows` counts what is left."""

    def __init__(self, source: str | Path, ledger: Ledger, problems: Problems) -> None:
        self.source = source
        self.rows = 0
        self._ledger = ledger
        self._problems = problems

    def fresh(self, kept: Callable[[], None]) -> Iterator[tuple[int, Row]]:
        """(number, row) of every row that is not done; `kept` is called for one that is.

        The ledger is told where in the input each row stands.
        """
        index = self._ledger.index
        for number, row in self.all():
            if row.identity in self._ledger:
                index.place(row.identity, number)
                kept()
            else:
                yield number, row

    def all(self) -> Iterator[tuple[int, Row]]:
        """(number from 0, row) of every row, each once."""
        index = self._ledger.index
        for row in read_rows(self.source, self._problems):
            place = f"row {self.rows + len(self._problems) + 1}"
            if row.id is not None and not index.see(_id_key(row.id)):
                self._problems.add("repeated id", place, f"{row.id!r:.60} was there before")
            elif not index.see(row.identity):
                self._problems.add("repeated row", place, f"{row.query!r:.60} was there before")
            else:
                yield self.rows, row
                self.rows += 1


def _id_key(name: str) -> str:
    return hashlib.blake2b(f"id {name}".encode(), digest_size=8).hexdigest()
