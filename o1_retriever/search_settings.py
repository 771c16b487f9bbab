"""How a retriever searches: with or without BM25, how thoughts are pooled, and when to think."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypedDict

from o1_retriever.adaptive import Gate
from o1_retriever.errors import SettingsError

Pooling = Literal["mean", "best"]
Thinking = Literal["always", "never", "auto"]

_CHOICES = {"pooling": ("mean", "best"), "thinking": ("always", "never", "auto", None)}


class SearchOptions(TypedDict, total=False):
    """The fields of `SearchSettings` as keyword arguments."""

    hybrid: bool
    pooling: Pooling
    thinking: Thinking | None
    depth: int
    gate: Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How to search. The defaults are the paper's: they think, and search once with the mean vector.

    `hybrid` fuses the ranking with that of BM25, which reads the thoughts too; `depth` documents of each
    ranking take part. `pooling="best"` searches once for each thought, in one batch: a document's score is
    its best. `thinking` None follows the `ThoughtSettings`; "auto" asks `gate`, which looks at what the
    query finds without thoughts. Raises `SettingsError`.
    """

    hybrid: bool = False
    pooling: Pooling = "mean"
    thinking: Thinking | None = None
    depth: int = 1000
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        if not isinstance(self.hybrid, bool):
            raise SettingsError(f"hybrid is {self.hybrid!r}; expected True or False.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                expected = ", ".join(map(repr, choices))
                raise SettingsError(f"{name} is {getattr(self, name)!r}; expected one of {expected}.")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise SettingsError(f"depth is {self.depth!r}; expected a whole number from 1.")
        if not isinstance(self.gate, Gate):
            raise SettingsError(f"gate is {self.gate!r:.60}; expected an o1_retriever.adaptive.Gate.")

    def with_changes(self, **changes: Any) -> SearchSettings:
        """A copy with some settings replaced. Raises `SettingsError` for names that it does not know."""
        unknown = sorted(set(changes) - set(self.__slots__))
        if unknown:
            raise SettingsError(
                f"Unknown search settings {unknown}; expected some of {list(self.__slots__)}."
            )
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)
