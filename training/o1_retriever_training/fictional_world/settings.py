"""How large the fictional world is, and what of it is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from o1_retriever.errors import SettingsError
from o1_retriever_training.fictional_world.relations import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """Numbers of entities, the held-out share of the two-hop facts, the expert's errors, the base's shape.

    `wrong` is the probability that a candidate thought names a wrong bridge; of a row's `candidates` one is
    right at least. `layers`, `width` and `heads` are those of the base model. All is drawn by `seed`.

    Raises `SettingsError` for a value out of range.
    """

    seed: int = 0
    people: int = 100
    companies: int = 40
    cities: int = 40
    countries: int = 10
    held_out: float = 0.2
    candidates: int = 3
    wrong: float = 0.5
    layers: int = 3
    width: int = 96
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("people", "companies", "countries", "candidates", "layers", "heads"):
            self._check(name, low=1 if name not in ("people", "companies") else 3, high=100_000)
        self._check("seed", low=0, high=2**63)
        self._check("cities", low=max(3, self.countries), high=100_000)
        for name in ("held_out", "wrong"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise SettingsError(f"Found {name}={value!r}; expected a share from 0 to below 1.")
        self._check("width", low=2 * self.heads, high=100_000)
        if self.width % (2 * self.heads):
            raise SettingsError(
                f"Found width={self.width} and heads={self.heads}; expected a multiple of twice the heads."
            )

    @property
    def numbers(self) -> Mapping[Kind, int]:
        """How many entities of each kind."""
        return {
            "person": self.people,
            "company": self.companies,
            "city": self.cities,
            "country": self.countries,
        }

    def _check(self, name: str, *, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise SettingsError(f"Found {name}={value!r}; expected a whole number from {low} to {high}.")
