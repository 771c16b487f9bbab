"""Numbers with their nouns, tables in Markdown, and what is wrong with an input.

Each kind of problem comes with a count, the first places, and what was done about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from o1_retriever.errors import InputError


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 thought`, `2 thoughts`, `1,000 queries`; `plural` where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Collection[int] = (0,)
) -> str:
    """A Markdown table. Columns are numbers, to the right, but for those whose places are in `texts`."""
    rules = ["---" if place in texts else "---:" for place in range(len(heads))]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rules, *cells))


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
