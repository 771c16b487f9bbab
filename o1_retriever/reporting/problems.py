"""What is wrong with an input: each kind of problem with a count, the first places, and what was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from o1_retriever.errors import InputError
from o1_retriever.reporting.text import counted

SHOWN = 3  # first places of each kind


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem: how often it was met, the first places, and what was done about it."""

    kind: str
    count: int
    places: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        more = "; ..." if self.count > len(self.places) else ""
        return f"{self.kind}: {self.count} ({'; '.join(self.places)}{more}); {self.remedy}"


class Problems:
    """The problems of one source in the order in which they were first met; false while there are none.

    A subclass says which kinds there are and what is done about each (`remedies`), and what is raised where
    the reading is strict (`error`). With `strict`, that is the first problem; `raise_if_any` raises them all.
    """

    remedies: ClassVar[Mapping[str, str]] = {}
    error: ClassVar[type[InputError]] = InputError

    def __init__(self, source: str, *, strict: bool = False) -> None:
        self.source = source
        self.strict = strict
        self.counts: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def add(self, kind: str, place: str, what: str = "") -> None:
        """Note a problem of a known kind at a place such as "line 7". Raises when the reading is strict."""
        if kind not in self.remedies:
            raise ValueError(f"Unknown kind of problem {kind!r}; expected one of {sorted(self.remedies)}.")
        if self.strict:
            raise self.error(
                f"{self.source}, {place}: {kind}{f': {what}' if what else ''}.",
                hint="Repair it, or leave out --strict to go on without it.",
            )
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self._places.setdefault(kind, [])
        if len(places) < SHOWN:
            places.append(f"{place}: {what}" if what else place)

    def raise_if_any(self) -> None:
        """Raise an error with the whole report unless there are no problems."""
        if self.counts:
            raise self.error(
                str(self), hint="Repair the files, or read them without --strict to go on as the report says."
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of problems that were met."""
        return tuple(self.counts)

    def __iter__(self) -> Iterator[Problem]:
        return (
            Problem(kind, count, tuple(self._places[kind]), self.remedies[kind])
            for kind, count in self.counts.items()
        )

    def __len__(self) -> int:
        """How many problems there are, of all kinds."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.counts:
            return f"{self.source}: no problems."
        kinds = f"{counted(len(self.counts), 'kind')} of problems"
        return "\n".join([f"{self.source}: {kinds}", *(f"  {problem}" for problem in self)])
