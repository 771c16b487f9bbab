"""What an index keeps: documents with texts and values of metadata that can be stored and compared.

Such values are strings, numbers of 64 bits, True and False.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from reprlib import Repr
from typing import Any

import numpy as np

from o1_retriever.documents.document import Document, name_of
from o1_retriever.documents.structure import Scalar, Value
from o1_retriever.errors import InputError
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
