"""Files of rows: JSON, JSON lines and tables. Each row is a section of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any

from o1_retriever.documents.source import LONGEST_LINE, Source, decode
from o1_retriever.documents.structure import Section, Value, as_metadata, valid

# Where the text of an object stands, in the order in which it is looked for.
TEXT_FIELDS = ("text", "contents", "page_content", "content", "body")
_SHOWN = 5  # bad lines that are named one by one


def read_json_lines(source: Source) -> Iterator[Section]:
    """A section for each line that is an object with a text; the others are noted with their numbers."""
    bad: dict[str, list[int]] = {}
    good = False
    for number, text in _text_lines(source):
        if not text.strip():
            continue
        try:
            section = section_of(json.loads(text), source.options.text_field)
        except (ValueError, RecursionError):
            bad.setdefault("not JSON", []).append(number)
            continue
        if isinstance(section, str):
            bad.setdefault(section, []).append(number)
        else:
            good = True
            if section.text.strip():
                yield Section(text=section.text, metadata={"line": number, **section.metadata})
    notes = [f"{_places(numbers)} {what}" for what, numbers in bad.items()]
    if notes and not good:
        raise source.error(
            f"no line can be used: {'; '.join(notes)}; expected objects with a text, one a line.",
            hint="Name the field with the text: --text-field NAME",
        )
    for note in notes:
        source.note(f"{note}; left out.")


def _places(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    if len(numbers) == 1:
        return f"line {shown} is"
    return f"lines {shown}{f' and {len(numbers) - _SHOWN:,} more' if len(numbers) > _SHOWN else ''} are"


def _text_lines(source: Source) -> Iterator[tuple[int, str]]:
    """The lines as text. A file in UTF-16 is read whole, for its lines do not end in one byte."""
    lines = source.lines()
    for number, line in lines:
        if number == 1 and (line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:100]):
            yield from enumerate(source.text().split("\n"), start=1)
            return
        decoded = decode(line)
        if decoded.note:
            source.note(decoded.note)
        yield number, decoded.text


def section_of(value: Any, text_field: str | None = None) -> Section | str:
    """An object as a section, or what is wrong with it; the text is in `text_field` (None: `TEXT_FIELDS`)."""
    if not isinstance(value, dict):
        return "no object"
    names = (text_field,) if text_field else TEXT_FIELDS
    name = next((name for name in names if isinstance(value.get(name), str)), None)
    if name is None:
        return f"without a text in {' or '.join(repr(name) for name in names[:2])}"
    title = value.get("title")
    inner = value.get("metadata")
    fields = {**(inner if isinstance(inner, dict) else {}), **value}
    own = {
        name,
        *(["title"] if isinstance(title, str) else []),
        *(["metadata"] if isinstance(inner, dict) else []),
    }
    rest = {key: each for key, each in fields.items() if key not in own}
    metadata = as_metadata(rest)
    parts = [valid(value[name])]
    if isinstance(title, str) and title.strip():
        title = " ".join(valid(title).split())
        metadata["title"] = title
        parts.insert(0, title)
    return Section(text="\n".join(parts) if any(part.strip() for part in parts) else "", metadata=metadata)


def read_json(source: Source) -> Iterator[Section]:
    """Objects with a text as in JSON lines; anything else as lines of `path: value`, an item a section."""
    text = source.text()
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except ValueError as error:
        rows = [line for line in text.split("\n") if line.strip()]
        if len(rows) > 1 and all(_is_json(row) for row in rows[:2]):
            source.note("it holds JSON lines; expected one value. Its lines were read.")
            yield from read_json_lines(source)
            return
        source.note(f"it is not JSON ({error!s:.80}) and was read as text.")
        yield Section(text=text, code=True)
        return
    except RecursionError:
        raise source.error("it is nested too deep; expected JSON of some hundred levels.") from None
    for place, (name, item) in enumerate(_items(value)):
        found = section_of(item, source.options.text_field)
        section = found if isinstance(found, Section) else Section(text="\n".join(_flat(item)))
        if section.text.strip():
            named: dict[str, Value] = {"title": name} if name else {}
            yield Section(text=section.text, metadata={"item": place, **named, **section.metadata})


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """The objects of a list, or of the lists in an object, under their names; what is left is one more."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from (("", item) for item in value)
    elif isinstance(value, dict):
        lists = {key: each for key, each in value.items() if isinstance(each, list) and _all_objects(each)}
        if rest := {key: each for key, each in value.items() if key not in lists}:
            yield "", rest
        for key, each in lists.items():
            yield from ((key, item) for item in each)
    else:
        yield "", value


def _all_objects(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) for item in items)


def _flat(value: Any, name: str = "") -> Iterator[str]:
    """Lines of `path: value`; a list of plain values is one line."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for each in value:
            yield from _flat(each, name)
    else:
        values = value if isinstance(value, list) else [value]
        text = valid(", ".join(each if isinstance(each, str) else json.dumps(each) for each in values))
        if text and value is not None:
            yield f"{valid(name)}: {text}" if name else text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_table(source: Source) -> Iterator[Section]:
    """A section for each row of a table, with the names of its columns."""
    lines = (f"{text}\n" for _, text in _text_lines(source))
    first = next(lines, "")
    delimiter = "\t" if source.kind == ".tsv" else max(",;\t|", key=_outside_quotes(first).count)
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(chain([first] if first else [], lines), delimiter=delimiter)
    heads: list[str] | None = None
    used: set[int] = set()
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            source.note(f"{_places([reader.line_num])} no row of a table ({error!s:.60}); left out.")
            continue
        if row is None:
            yield from unused_heads(source, heads or [], used)
            return
        cells = [" ".join(cell.split()) for cell in row]
        if not any(cells):
            continue
        if heads is None:
            heads = cells if len(cells) > 1 and not any(_is_number(cell) for cell in cells) else []
            if heads:
                continue
        used.update(place for place, cell in enumerate(cells) if cell)
        yield row_section(heads, cells, reader.line_num)


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def row_section(heads: Sequence[str], cells: Sequence[str], number: int, *, title: str = "") -> Section:
    """A row as lines of `column: value`, its values between bars where the columns have no names."""
    named: dict[str, Value] = {"title": title} if title else {}
    if heads:
        columns = [*heads, *[""] * max(0, len(cells) - len(heads))]
        pairs = zip(columns, cells, strict=False)
        text = "\n".join(f"{head}: {cell}" if head else cell for head, cell in pairs if cell)
    else:
        text = " | ".join(cell for cell in cells if cell)
    return Section(text=text, metadata={"line": number, **named})


def unused_heads(
    source: Source, heads: Sequence[str], used: Collection[int], *, title: str = ""
) -> Iterator[Section]:
    """What no row says: a section of the names of the columns where there is no row, else a note of some."""
    left = [head for place, head in enumerate(heads) if head and place not in used]
    if left and not used:
        yield row_section([], left, 1, title=title)
    elif left:
        more = f" and {len(left) - _SHOWN:,} more" if len(left) > _SHOWN else ""
        source.note(f"columns without a value: {', '.join(left[:_SHOWN])}{more}.")
