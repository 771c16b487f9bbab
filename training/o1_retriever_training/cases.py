"""What a member of a committee sees of a row, and what it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a member sees of a row: its bare query, what stands for each usable candidate, the positive."""

    query: str
    candidates: tuple[str, ...]
    positive: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A member's scores of a case's candidates, and of the bare query in their place."""

    scores: tuple[float, ...]
    bare: float
