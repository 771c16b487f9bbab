"""Values of metadata as an index keeps and compares them: strings, numbers of 64 bits, True and False."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

import numpy as np

from o1_retriever.documents.structure import Scalar, Value

_EXPECTED = "a string, a number of 64 bits, True, False or a date"
_NOT_THESE = {str: "a string without lone surrogates", float: "a number that is not NaN"}
_LARGEST = 2**63
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """A value as an error shows it, cut where it is long or deeply nested."""
    return _SHORT.repr(value)


def found(value: object) -> str:
    """A value with its type, as an error shows it."""
    return f"{shown(value)} ({type(value).__name__})"


def as_scalar(value: object) -> Scalar:
    """The plain value that is kept: of a numpy or decimal number, of a date (its ISO form), of a string.

    Raises `ValueError`, which says what was found and what was expected.
    """
    plain = _plain(value)
    if isinstance(plain, str) and can_be_encoded(plain):
        return plain
    if isinstance(plain, int) and -_LARGEST <= plain < _LARGEST:
        return plain
    if isinstance(plain, float) and not math.isnan(plain):
        return plain
    raise ValueError(f"found {found(value)}; expected {_NOT_THESE.get(type(plain), _EXPECTED)}")


def kept_metadata(metadata: Mapping[Any, Any]) -> dict[str, Value]:
    """Names and plain values, or lists of plain values, that a document keeps. Raises `ValueError`."""
    kept: dict[str, Value] = {}
    for name, value in metadata.items():
        try:
            several = isinstance(value, list | tuple)
            kept[_name(name)] = [_finite(each) for each in value] if several else _finite(value)
        except ValueError as error:
            raise ValueError(f"{shown(name)}: {error}") from None
    return kept


def _name(name: object) -> str:
    if isinstance(name, str) and name[:1] not in ("$", "#", "") and name != "chroma:document":
        return str(as_scalar(name))
    raise ValueError(f"found {found(name)}; expected a name that does not begin with '$' or '#'")


def _finite(value: object) -> Scalar:
    plain = as_scalar(value)
    if isinstance(plain, float) and math.isinf(plain):
        raise ValueError(f"found {found(value)}; expected a finite number")
    return plain


def _plain(value: Any) -> object:
    if isinstance(value, np.datetime64):
        value = _moment(value)
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, decimal.Decimal):
        return _number(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    # Subclasses, such as an IntEnum, would not be themselves after they have been kept.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return str.__str__(value) if kind is str else kind(value)
    return value


def _moment(value: np.datetime64) -> object:
    """A date, or a moment to the microsecond, the finest that Python has."""
    plain = value.item()
    return value.astype("datetime64[us]").item() if isinstance(plain, int) else plain


def _number(value: decimal.Decimal) -> object:
    """An int where it is whole and not too large, or else the nearest float: 0.1 becomes Python's 0.1."""
    if value.is_nan():
        return math.nan
    if value.is_finite() and abs(value) < _LARGEST and value == value.to_integral_value():
        return int(value)
    return float(value)


def can_be_encoded(text: str) -> bool:
    """Whether a text has no lone surrogates, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
