"""Random filters, random metadata, and what plain Python makes of both: the definition of docs/filters.md."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

FIELDS = ["a", "b", "c", "ü.x y"]
MISSING = object()

_NUMBERS = [
    0, 1, 2, 3, -7, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2.0, 2.5, 0.1, 0.30000000000000004, -0.0, 1e300,
    -1e300, 5e-324, float(2**53), float(2**63), 1e15 + 0.3,
]  # fmt: skip
_TEXTS = ["", "a", "b", "A", "ab", "2", "2.0", "True", "2024-05-01", "2024-05-01T10:00:00", "\0", "a\0b", "é",
          "É", "ß", "火", "\U0001f600", "\uffff", "'; DROP TABLE fields", "%", "_"]  # fmt: skip
SCALARS = [*_NUMBERS, *_TEXTS, True, False]
_ORDERED = [*_NUMBERS, *_TEXTS, float("inf"), float("-inf")]

_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
    "$in": lambda value, operands: value in list(operands),
    "$contains": lambda value, operand: operand in value,
    "$icontains": lambda value, operand: operand.lower() in value.lower(),
    "$any": lambda value, operands: any(each in value for each in operands if holds(value, each)),
    "$all": lambda value, operands: all(each in value for each in operands),
}
_NEGATED = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}


def holds(value: Any, each: Any) -> bool:
    """Whether Python can ask if the one is in the other at all: a number cannot be in a string."""
    return isinstance(value, list) or (isinstance(value, str) and isinstance(each, str))


def passes(where: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> bool:
    """Whether a document with this metadata passes the filter."""
    return all(_entry(key, value, metadata) for key, value in (where or {}).items())


def _entry(key: str, value: Any, metadata: Mapping[str, Any]) -> bool:
    if key == "$and":
        return all(passes(each, metadata) for each in value)
    if key == "$or":
        return any(passes(each, metadata) for each in value)
    if key == "$not":
        return not passes(value, metadata)
    return _field(value, metadata.get(key, MISSING))


def _field(wanted: Any, value: Any) -> bool:
    if not isinstance(wanted, Mapping):
        return _compare("$eq", value, wanted)
    return all(_operator(name, operand, value) for name, operand in wanted.items())


def _operator(name: str, operand: Any, value: Any) -> bool:
    if name == "$not":
        return not _field(operand, value)
    if name in _NEGATED:
        return not _compare(_NEGATED[name], value, operand)
    if name == "$exists":
        return (value is not MISSING) == operand
    if name == "$empty":
        return (value is MISSING or value == "" or value == []) == operand
    return _compare(name, value, operand)


def _compare(name: str, value: Any, operand: Any) -> bool:
    if value is MISSING:
        return False
    try:
        return bool(_COMPARED[name](value, operand))
    except (TypeError, AttributeError):
        return False


def random_metadata(seed: int, count: int) -> list[dict[str, Any]]:
    """Metadata of so many documents: fields that are missing, of all kinds of values, and lists of them."""
    draw = random.Random(seed)

    def value() -> Any:
        if draw.random() < 0.2:
            return [draw.choice(SCALARS) for _ in range(draw.randrange(4))]
        return draw.choice(SCALARS)

    return [{name: value() for name in FIELDS if draw.random() < 0.8} for _ in range(count)]


def _several(fewest: int) -> Callable[[random.Random], Any]:
    return lambda draw: [draw.choice(SCALARS) for _ in range(draw.randint(fewest, 4))]


_OPERANDS: dict[str, Callable[[random.Random], Any]] = {
    **dict.fromkeys(("$eq", "$ne", "$contains", "$not_contains"), lambda draw: draw.choice(SCALARS)),
    **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), lambda draw: draw.choice(_ORDERED)),
    **dict.fromkeys(("$in", "$nin", "$any"), _several(0)),
    "$all": _several(1),
    "$icontains": lambda draw: draw.choice(_TEXTS),
    **dict.fromkeys(("$exists", "$empty"), lambda draw: draw.random() < 0.5),
}


def random_filter(draw: random.Random, depth: int = 3) -> dict[str, Any]:
    """A filter of any operators, nested; the operands are what the metadata have, and some more."""
    fields = draw.sample([*FIELDS, "nobody has it"], draw.randrange(3))
    leaf = {name: _wanted(draw) for name in fields}
    if not depth or draw.random() < 0.5:
        return leaf
    parts = [random_filter(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    return draw.choice([{"$and": parts}, {"$or": parts}, {"$not": parts[0]}, {**leaf, "$or": parts}])


def _wanted(draw: random.Random) -> Any:
    if draw.random() < 0.3:
        return draw.choice(SCALARS)
    names = draw.sample(sorted(_OPERANDS), draw.randint(1, 3))
    some = {name: _OPERANDS[name](draw) for name in names}
    return {"$not": some} if draw.random() < 0.2 else some


def filters() -> st.SearchStrategy[dict[str, Any]]:
    """The same, for hypothesis to choose and to make smaller."""
    return st.randoms(use_true_random=False).map(random_filter)
