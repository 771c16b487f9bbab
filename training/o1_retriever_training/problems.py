"""What is wrong with a file of rows: each kind with a count and its first places."""

from __future__ import annotations

from o1_retriever_training.errors import DataError

SHOWN = 5

# Every kind of problem, and what is done about it unless the reading is strict.
KINDS = {
    "not text": "the line is left out",
    "not JSON": "the line is left out",
    "wrong fields": "the row is left out",
    "empty query": "the row is left out",
    "repeated row": "the first is kept",
    "repeated id": "the first is kept",
}


class Problems:
    """Counts what was left out of an input; with `strict`, the first problem is raised instead."""

    def __init__(self, source: str, *, strict: bool = False) -> None:
        self.source = source
        self.strict = strict
        self.counts: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, place: str, what: str) -> None:
        """Note a problem at a place such as "line 7". Raises `DataError` when the reading is strict."""
        if self.strict:
            raise DataError(
                f"{self.source}, {place}: {kind}: {what}.",
                hint="Repair it, or leave out --strict to go on without it.",
            )
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self.places.setdefault(kind, [])
        if len(places) < SHOWN:
            places.append(f"{place}: {what}")

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        said = []
        for kind, count in self.counts.items():
            more = "; ..." if count > len(self.places[kind]) else ""
            said.append(f"{kind}: {count} ({'; '.join(self.places[kind])}{more}); {KINDS[kind]}")
        return f"{self.source}: " + (". ".join(said) if said else "no problems")
