"""The parts of a text: what stands under one heading, in one row or in one function."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

Scalar = str | int | float | bool
# What a document says about itself under one name.
Value = Scalar | list[Scalar]

# What this library writes into the metadata itself; a field of a file with that name gets a `_` behind it.
RESERVED = ("source", "root", "position", "page", "line", "title", "also_in")
# Between the headings of a path.
BELOW = " > "
_LARGEST = 2**63
_DEPTH = 4  # of fields in fields
# A character that is neither white space nor one of those without a width.
_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a file that is cut into passages on its own. `code` says that lines matter, not sentences."""

    text: str
    metadata: dict[str, Value] = field(default_factory=dict)
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A heading or other text, in the order of the file.

    `level` is None for text, 1 and more for a heading with its `title`, and 0 for the title of the whole.
    """

    text: str
    level: int | None = None
    title: str = ""


def sections(
    blocks: Iterable[Block], *, joint: str = "\n", metadata: Mapping[str, Value] | None = None
) -> Iterator[Section]:
    """Join each heading with what follows it. The title is the path of headings, outermost first.

    `metadata` is given to every section; a title there stands above all headings.
    """
    common = dict(metadata or {})
    path: list[tuple[int, str]] = []
    if isinstance(root := common.pop("title", None), str):
        path.append((0, root))
    texts: list[str] = []
    has_body = False
    for block in blocks:
        if block.level is not None:
            if has_body:
                yield _section(path, texts, joint, common)
                texts, has_body = [], False
            path = _under(path, block.level, block.title)
        has_body = has_body or (block.level is None and bool(block.text.strip()))
        if block.text:
            texts.append(block.text)
    if any(text.strip() for text in texts):
        yield _section(path, texts, joint, common)


def _under(path: list[tuple[int, str]], level: int, title: str) -> list[tuple[int, str]]:
    """The path of a heading. One that says what the title of the whole says takes its place."""
    outer = [step for step in path if step[0] < level]
    if title and len(outer) == 1 and outer[0][0] == 0 and title.casefold() in outer[0][1].casefold():
        outer = []
    return [*outer, (level, title)] if title else outer


def _section(
    path: list[tuple[int, str]], texts: list[str], joint: str, common: Mapping[str, Value]
) -> Section:
    title = BELOW.join(title for _, title in path)
    return Section(text=joint.join(texts), metadata={**({"title": title} if title else {}), **common})


def as_metadata(fields: Mapping[Any, Any]) -> dict[str, Value]:
    """The fields of a file as the index can keep them, under names that do not clash with this library's own.

    Names of fields within fields are joined by dots, dates are ISO; what has no plain form is left out.
    """
    return {name: value for name, value in _plain(fields, "", _DEPTH) if name}


def _plain(fields: Mapping[Any, Any], above: str, depth: int) -> Iterator[tuple[str, Value]]:
    for key, value in fields.items():
        name = f"{above}{valid(str(key)).lstrip('$#')}" if above else _field_name(valid(str(key)))
        if isinstance(value, Mapping) and depth:
            yield from _plain(value, f"{name}.", depth - 1)
        elif isinstance(value, list | tuple | set):
            if parts := [plain for each in value if (plain := _scalar(each)) not in (None, "")]:
                yield name, parts
        else:
            found = _scalar(value)
            if found is not None and found != "":
                yield name, found


def _field_name(name: str) -> str:
    key = name.lstrip("$#")
    return f"{key}_" if key in (*RESERVED, "chroma:document") else key


def _scalar(value: Any) -> Scalar | None:
    """The value as the index can keep it: whole numbers of 64 bits, finite numbers, strings; else None."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -_LARGEST <= value < _LARGEST else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value.isoformat() if isinstance(value, datetime | date | time) else None


def valid(text: str) -> str:
    """Text with plain line ends, without NUL and halves of surrogate pairs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", " ")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_visible(text: str) -> bool:
    """Whether there is anything to see in a text."""
    return _VISIBLE.search(text) is not None
