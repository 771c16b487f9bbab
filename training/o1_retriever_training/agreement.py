"""How far the members of a committee agree, counted row by row in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class Agreement:
    """Votes of many rows: who agreed with whom, and who was with the winner.

    Fleiss' kappa is about rows with the same number of candidates, as its categories are their places; of
    several such numbers the most frequent is reported. A row with one candidate is no choice and does not
    count.
    """

    rows: int = 0
    unanimous: int = 0
    wins: Counter[str] = field(default_factory=Counter)
    gains: dict[str, float] = field(default_factory=dict)
    better: Counter[str] = field(default_factory=Counter)
    _pairs: dict[int, list[float]] = field(default_factory=dict)
    _places: dict[int, Counter[int]] = field(default_factory=dict)

    def add(self, votes: Mapping[str, int], winner: int, candidates: int) -> None:
        """Count a row: each member's favourite among `candidates`, and the elected one."""
        if candidates < 2 or not votes:
            return
        self.rows += 1
        counts = Counter(votes.values())
        self.unanimous += len(counts) == 1
        self.wins.update(name for name, vote in votes.items() if vote == winner)
        members = len(votes)
        if members > 1:
            agreeing = sum(count * (count - 1) for count in counts.values()) / (members * (members - 1))
            known = self._pairs.setdefault(candidates, [0.0, 0.0])
            known[0] += agreeing
            known[1] += 1
            self._places.setdefault(candidates, Counter()).update(votes.values())

    def gain(self, name: str, thought: float, bare: float) -> None:
        """Count by how much a member prefers the elected thought to the bare query."""
        self.gains[name] = self.gains.get(name, 0.0) + thought - bare
        self.better[name] += thought > bare

    @property
    def kappa(self) -> float | None:
        """Fleiss' kappa; None with one member or without rows. 1.0 when all votes ever cast are the same."""
        if not self._pairs:
            return None
        candidates = max(self._pairs, key=lambda number: self._pairs[number][1])
        agreeing, rows = self._pairs[candidates]
        observed = agreeing / rows
        places = self._places[candidates]
        total = sum(places.values())
        expected = sum((count / total) ** 2 for count in places.values())
        return 1.0 if expected == 1.0 else (observed - expected) / (1 - expected)

    def to_dict(self, voted: int) -> dict[str, Any]:
        """The figures as JSON values; `voted` rows have a gain."""
        share = max(1, self.rows)
        return {
            "rows with a choice": self.rows,
            "unanimous": self.unanimous / share,
            "fleiss_kappa": self.kappa,
            "win_rate": {name: count / share for name, count in sorted(self.wins.items())},
            "mean_gain": {name: total / max(1, voted) for name, total in sorted(self.gains.items())},
            "better_than_query": {name: n / max(1, voted) for name, n in sorted(self.better.items())},
        }
