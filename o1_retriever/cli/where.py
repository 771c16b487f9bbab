"""`--where key=value`: filters of a search from what is typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import typer

_LARGEST = 2**63


def parse_where(pairs: Sequence[str]) -> dict[str, Any] | None:
    """A filter that all pairs must match, None for no pairs.

    What is typed has no type: `page=3` matches the number and the text. Raises a usage error for what is no
    pair.
    """
    conditions = [_condition(pair) for pair in pairs]
    if len(conditions) > 1:
        return {"$and": conditions}
    return conditions[0] if conditions else None


def _condition(pair: str) -> dict[str, Any]:
    key, equals, value = (part.strip() for part in pair.partition("="))
    if not (key and equals) or key.startswith("$"):
        raise typer.BadParameter(f"--where is {pair!r}; expected key=value, for example source=notes.md")
    readings = [{key: reading} for reading in _readings(value)]
    return {"$or": readings} if len(readings) > 1 else readings[0]


def _readings(value: str) -> list[str | int | float | bool]:
    if value.lower() in ("true", "false"):
        return [value, value.lower() == "true"]
    found: list[str | int | float | bool] = [value]
    try:
        number = float(value)
    except ValueError:
        return found
    if not math.isfinite(number):
        return found
    if number.is_integer() and abs(number) < _LARGEST:
        found.append(int(number))
    return [*found, number]
