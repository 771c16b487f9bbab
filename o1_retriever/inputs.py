"""Checks on texts, made before any model runs so that a bad item costs nothing that was done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from o1_retriever.errors import InputError

# Texts read at a time: enough to put those of similar length together.
_BLOCK = 4096


def check_text(text: Any, *, what: str, position: int | None = None) -> str:
    """Return `text` if it can be embedded; raise `InputError` naming its position otherwise."""
    where = f"{what} {position}" if position is not None else f"The {what}"
    if not isinstance(text, str):
        found = "None" if text is None else f"{type(text).__name__} {text!r:.60}"
        raise InputError(f"{where} is {found}; expected a string.", position=position)
    if not text.strip():
        found = "empty" if not text else "only whitespace"
        raise InputError(f"{where} is {found}; expected some text.", position=position)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} has a lone surrogate at character {error.start}; expected valid Unicode.",
            hint="Decode the bytes it came from with the right encoding.",
            position=position,
        ) from None
    return text


def check_texts(texts: Sequence[str] | Iterable[str], *, what: str, first: int = 0) -> list[str]:
    """Return the texts as a list after checking each; a lone string is refused, not split into letters.

    `first` is the position of the first of them in what the user gave.
    """
    if isinstance(texts, str | bytes):
        raise InputError(
            f"Found one {type(texts).__name__}; expected a list of strings.", hint=f"Pass [{what}] instead."
        )
    try:
        items = list(texts)
    except TypeError:
        raise InputError(f"Found {type(texts).__name__}; expected a list of strings.") from None
    return [check_text(item, what=what, position=place) for place, item in enumerate(items, first)]


def text_blocks(texts: Iterable[str], *, what: str) -> Iterator[list[str]]:
    """The texts in checked blocks, each read when it is asked for."""
    if isinstance(texts, str | bytes):
        check_texts(texts, what=what)
    left, first = iter(texts), 0
    while block := check_texts(islice(left, _BLOCK), what=what, first=first):
        yield block
        first += len(block)
