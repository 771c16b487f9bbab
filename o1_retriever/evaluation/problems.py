"""What is wrong with a collection: each kind of problem with a count, the first places, and what was done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from o1_retriever.errors import CollectionError

SHOWN = 3

# Every kind of problem, and what is done about it when the collection is used all the same.
KINDS = {
    "byte order mark": "ignored",
    "Windows line ends": "ignored",
    "not UTF-8": "the line is left out",
    "not JSON": "the line is left out",
    "wrong fields": "the line is left out",
    "duplicate document id": "the first is kept",
    "duplicate query id": "the first is kept",
    "empty document": "left out of the corpus",
    "empty query": "left out",
    "broken document": "a lone surrogate; left out of the corpus",
    "broken query": "a lone surrogate; left out",
    "no header": "the first line is read as a judgment",
    "wrong header": "the columns are read as query, document, score",
    "wrong columns": "the line is left out",
    "wrong score": "the line is left out",
    "duplicate judgment": "the first is kept",
    "judged document missing": "the judgment counts as never found",
    "judged query missing": "its judgments are left out",
    "query without relevant document": "it counts as 0",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem: how often it was found, the first places, and what was done."""

    kind: str
    count: int
    places: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What is done about it unless the reading is strict."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.places) else ""
        return f"{self.kind}: {self.count} ({'; '.join(self.places)}{more}); {self.remedy}"


@dataclass(slots=True)
class CollectionReport:
    """The problems of a collection in the order in which they were first met; empty when it is sound."""

    source: str
    _found: dict[str, list[str]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, place: str) -> None:
        """Record a problem of one of the known kinds at a place (file and line, or an id)."""
        if kind not in KINDS:
            raise ValueError(f"Unknown kind of problem {kind!r}; expected one of {sorted(KINDS)}.")
        self._counts[kind] = self._counts.get(kind, 0) + 1
        places = self._found.setdefault(kind, [])
        if len(places) < SHOWN:
            places.append(place)

    def __iter__(self) -> Iterator[Problem]:
        return (Problem(kind, count, tuple(self._found[kind])) for kind, count in self._counts.items())

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of problems that were found."""
        return tuple(self._counts)

    def __str__(self) -> str:
        if not self._counts:
            return f"{self.source}: no problems."
        return "\n".join([f"{self.source}: {len(self)} kinds of problems", *(f"  {item}" for item in self)])

    def raise_if_any(self) -> None:
        """Raise `CollectionError` with the whole report unless the collection is sound."""
        if self._counts:
            raise CollectionError(
                str(self), hint="Repair the files, or read them without --strict to go on as the report says."
            )
