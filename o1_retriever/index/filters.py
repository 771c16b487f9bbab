"""What an index keeps and filters by: values of metadata, and one grammar of filters.

Values are strings, numbers of 64 bits, True and False. A filter is read once, where it comes in, and trusted
inside (docs/filters.md).
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import ge, gt, le, lt
from reprlib import Repr
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np

from o1_retriever.documents.document import Document, name_of
from o1_retriever.documents.structure import Scalar, Value
from o1_retriever.errors import FilterError, InputError
from o1_retriever.query import check_text

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


def batches(documents: Iterable[Any], size: Callable[[], int]) -> Iterator[list[Document]]:
    """Checked documents in portions of `size()`. A bad one raises `InputError` after those before it."""
    if isinstance(documents, str | bytes | Mapping | Document) or not isinstance(documents, Iterable):
        raise InputError(
            f"Found one {type(documents).__name__}; expected a list of documents.",
            hint="Pass [document] instead.",
        )
    batch: list[Document] = []
    admitted = _Admission()
    for position, given in enumerate(documents):
        try:
            batch.append(admitted(given, position))
        except InputError:
            if batch:
                yield batch
            raise
        if len(batch) >= size():
            yield batch
            batch = []
    if batch:
        yield batch


class _Admission:
    """Makes documents of what one call was given, each with an id that no other one of the call has."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._times: Counter[str] = Counter()

    def __call__(self, given: Any, position: int) -> Document:
        """The document, checked. Equal texts without an id are numbered; equal ids raise `InputError`."""
        document = checked(Document.of(given, place=position), position)
        if not isinstance(given, Document) and document.id == name_of(document.text):
            self._times[document.id] += 1
            if (times := self._times[document.id]) > 1:
                document = replace(document, id=f"{document.id}-{times}")
        first = self._places.setdefault(document.id, position)
        if first != position:
            raise InputError(
                f"document {position} has the id {document.id!r:.60} of document {first}; expected another.",
                hint="Give each an id of its own; added in a later call, it replaces the first.",
                position=position,
            )
        return document


def checked(document: Document, position: int) -> Document:
    """The document with plain values as metadata. Raises `InputError` for one that cannot be kept."""
    check_text(document.id, what="the id of document", position=position)
    check_text(document.text, what="document", position=position)
    if not isinstance(document.metadata, dict):
        raise InputError(
            f"The metadata of document {position} is {type(document.metadata).__name__}; expected a dict.",
            position=position,
        )
    try:
        return replace(document, metadata=kept_metadata(document.metadata))
    except ValueError as error:
        raise InputError(f"document {position} has the metadata {error}.", position=position) from None


Test = Literal["in", "gt", "gte", "lt", "lte", "contains", "icontains", "exists", "empty"]

# Deeper than anybody writes, and shallow enough for every recursion.
DEEPEST = 64
_HINT = (
    "Write where={'source': 'a.md'}, {'page': {'$gte': 2}} or {'$or': [..., ...]}; "
    "docs/filters.md has all operators."
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of one field. A document without the field, or with a value of another kind, does not pass.

    `operands` are the values of "in", of which one must be equal, and one value for most other tests.
    """

    field: str
    test: Test
    operands: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class Every:
    """All parts must match; without parts, everything does."""

    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Some:
    """One of the parts must match."""

    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Not:
    """The part must not match, for whatever reason."""

    part: Part


Part: TypeAlias = Condition | Every | Some | Not


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that has been checked. `as_filter` makes one; whoever takes a filter takes this too."""

    part: Part


Where: TypeAlias = Mapping[str, Any] | Filter | None


def as_filter(where: Where) -> Filter | None:
    """The filter that `where` means; None for None and for {}, which every document passes.

    Raises `FilterError`, which names the place in the filter, what was found and what was expected.
    """
    if where is None or isinstance(where, Filter):
        return where
    try:
        part = _filter(where, "", 0)
    except _RefusedError as error:
        raise FilterError(f"The filter {shown(where)} cannot be used: {error}.", hint=_HINT) from None
    return None if part == Every() else Filter(part)


def passes(part: Part, metadata: Mapping[str, Any]) -> bool:
    """Whether a document with this metadata passes, as `Fields` finds out of all documents at once."""
    if isinstance(part, Every):
        return all(passes(each, metadata) for each in part.parts)
    if isinstance(part, Some):
        return any(passes(each, metadata) for each in part.parts)
    if isinstance(part, Not):
        return not passes(part.part, metadata)
    value = metadata.get(part.field)
    if part.test == "exists":
        return value is not None
    if part.test == "empty":
        return value is None or value in ("", [])
    return value is not None and _holds(part, value)


def asked_for(part: Part) -> set[str]:
    """The fields that a part asks for."""
    if isinstance(part, Condition):
        return {part.field}
    if isinstance(part, Not):
        return asked_for(part.part)
    return {name for each in part.parts for name in asked_for(each)}


def _holds(condition: Condition, value: Any) -> bool:
    """Whether a value that is there passes a test that has operands."""
    if condition.test == "in":
        return not isinstance(value, list) and value in condition.operands
    (operand,) = condition.operands
    if condition.test == "contains":
        return (isinstance(value, list) and operand in value) or _in_text(operand, value)
    if condition.test == "icontains":
        return isinstance(value, str) and str(operand).lower() in value.lower()
    if isinstance(value, list) or isinstance(value, str) != isinstance(operand, str):
        return False
    return bool(_COMPARED[condition.test](value, operand))


_COMPARED = {"gt": gt, "gte": ge, "lt": lt, "lte": le}


def _in_text(operand: object, value: object) -> bool:
    return isinstance(value, str) and isinstance(operand, str) and operand in value


def weaker(part: Part, can: Callable[[Condition], bool]) -> Part | None:
    """A filter that all documents pass which pass `part`, made of such conditions alone as `can` allows.

    None where every document passes it. A store is asked with it that knows less than this grammar.
    """
    if isinstance(part, Condition):
        return part if can(part) else None
    if isinstance(part, Every):
        kept = [found for each in part.parts if (found := weaker(each, can)) is not None]
        return (kept[0] if len(kept) == 1 else Every(tuple(kept))) if kept else None
    if isinstance(part, Some):
        kept = [found for each in part.parts if (found := weaker(each, can)) is not None]
        # One of none, which nothing passes, is an error to some stores.
        return Some(tuple(kept)) if kept and len(kept) == len(part.parts) else None
    return None


class _RefusedError(Exception):
    """What is wrong, and where in the filter."""


def _refuse(place: str, what: str, expected: str) -> NoReturn:
    raise _RefusedError(f"{_at(place)}found {what}; expected {expected}")


def _at(place: str) -> str:
    return f"at {place.removeprefix('.')} " if place else ""


def _filter(where: object, place: str, depth: int) -> Part:
    """The conditions of all keys, all of which must match."""
    if not isinstance(where, Mapping):
        _refuse(place, found(where), "a dict of fields and what they must be")
    if depth > DEEPEST:
        _refuse("", f"a nesting of more than {DEEPEST} levels", "a flatter filter")
    return _every([_entry(key, value, place, depth) for key, value in where.items()])


def _entry(key: object, value: object, place: str, depth: int) -> Part:
    if not isinstance(key, str):
        _refuse(place, f"the key {found(key)}", "the name of a field")
    place = f"{place}.{key}"
    if key in ("$and", "$or"):
        parts = [
            _filter(each, f"{place}[{number}]", depth + 1)
            for number, each in enumerate(_list(value, place, "filters"))
        ]
        return _every(parts) if key == "$and" else Some(tuple(parts))
    if key == "$not":
        return Not(_filter(value, place, depth + 1))
    if key.startswith("$"):
        _refuse(place, f"the key {shown(key)}", "the name of a field, $and, $or or $not")
    name = str(_scalar(key, place))
    return _field(name, value, place, depth)


def _field(name: str, value: object, place: str, depth: int) -> Part:
    """What one field must be: equal to a value, or all of what a dict of operators says."""
    if not isinstance(value, Mapping):
        return Condition(name, "in", (_scalar(value, place),))
    if not value:
        _refuse(place, "an empty dict", "a value, or operators such as {'$gte': 2}")
    if depth > DEEPEST:
        _refuse("", f"a nesting of more than {DEEPEST} levels", "a flatter filter")
    parts: list[Part] = []
    for operator, operand in value.items():
        inside = f"{place}.{operator}"
        if operator == "$not":
            parts.append(Not(_field(name, operand, inside, depth + 1)))
        elif isinstance(operator, str) and operator in OPERATORS:
            parts.append(OPERATORS[operator](name, operand, inside))
        else:
            _refuse(place, f"the operator {shown(operator)}", f"one of {', '.join((*OPERATORS, '$not'))}")
    return _every(parts)


def _every(parts: Sequence[Part]) -> Part:
    """All parts together, without those that everything matches."""
    kept = tuple(part for part in parts if part != Every())
    return kept[0] if len(kept) == 1 else Every(kept)


def _list(value: object, place: str, of: str) -> list[Any]:
    """The members of a list, tuple, set, array or generator, of which there is at least one."""
    items = _members(value, place, of)
    if not items:
        _refuse(place, "an empty list", f"a list of {of}")
    return items


def _members(value: object, place: str, of: str) -> list[Any]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        try:
            return list(value)
        except TypeError:  # an array without dimensions
            pass
    _refuse(place, found(value), f"a list of {of}")


def _scalar(value: object, place: str) -> Scalar:
    try:
        return as_scalar(value)
    except ValueError as error:
        message = f"{_at(place)}{error}"
        if value is None:
            message += "; for documents without the field write {'$exists': False}"
        elif isinstance(value, list | tuple | set | frozenset):
            message += "; for one of several values write {'$in': [...]}"
        raise _RefusedError(message) from None


def _equal(name: str, operand: object, place: str) -> Part:
    return Condition(name, "in", (_scalar(operand, place),))


def _one_of(name: str, operand: object, place: str) -> Part:
    values = (_scalar(each, place) for each in _members(operand, place, "values"))
    return Condition(name, "in", tuple(dict.fromkeys(values)))


def _compared(test: Test, name: str, operand: object, place: str) -> Part:
    value = _scalar(operand, place)
    if isinstance(value, bool):
        _refuse(place, found(operand), "a number, a string or a date")
    return Condition(name, test, (value,))


def _contains(name: str, operand: object, place: str) -> Part:
    return Condition(name, "contains", (_scalar(operand, place),))


def _contains_text(name: str, operand: object, place: str) -> Part:
    value = _scalar(operand, place)
    if not isinstance(value, str):
        _refuse(place, found(operand), "a string")
    return Condition(name, "icontains", (value,))


def _any(name: str, operand: object, place: str) -> Part:
    return Some(tuple(_contains(name, each, place) for each in _members(operand, place, "values")))


def _all(name: str, operand: object, place: str) -> Part:
    return _every([_contains(name, each, place) for each in _list(operand, place, "values")])


def _is(test: Test, name: str, operand: object, place: str) -> Part:
    value = _scalar(operand, place)
    if not isinstance(value, bool):
        _refuse(place, found(operand), "True or False")
    return Condition(name, test) if value else Not(Condition(name, test))


def _negated(read: Callable[[str, Any, str], Part], name: str, operand: object, place: str) -> Part:
    return Not(read(name, operand, place))


OPERATORS: dict[str, Callable[[str, Any, str], Part]] = {
    "$eq": _equal,
    "$ne": partial(_negated, _equal),
    "$gt": partial(_compared, "gt"),
    "$gte": partial(_compared, "gte"),
    "$lt": partial(_compared, "lt"),
    "$lte": partial(_compared, "lte"),
    "$in": _one_of,
    "$nin": partial(_negated, _one_of),
    "$contains": _contains,
    "$not_contains": partial(_negated, _contains),
    "$icontains": _contains_text,
    "$any": _any,
    "$all": _all,
    "$exists": partial(_is, "exists"),
    "$empty": partial(_is, "empty"),
}
