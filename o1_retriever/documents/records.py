"""Records of any number, cut into pieces that are read on their own: by one process after another, or by
many.

A source is a file of JSON lines or Parquet, a folder of such files, or `hub:NAME[:SPLIT]`, a data set that
the package `datasets` finds by its name or in a folder. A piece knows where it begins, so that nothing before
it is read, and no more than some hundred of its rows are in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from o1_retriever.documents.document import Document
from o1_retriever.documents.rows import section_of
from o1_retriever.documents.structure import valid
from o1_retriever.errors import DocumentError, require

HUB = "hub:"
LINES, TABLES = (".jsonl", ".ndjson"), (".parquet",)
_EXPECTED = "a .jsonl or .parquet file, a folder of them, or hub:NAME[:SPLIT]"
_ID_FIELDS = ("id", "_id")
_AT_ONCE = 500  # rows of a table in memory
_ENDS = 1 << 16  # bytes at both ends of a file by which it is recognised


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Where a record has its text and its id. None: in a usual place, or the number of its row for the id."""

    text: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """So many `rows` of a file or data set. `start` is a byte of JSON lines, and else a row of the file.

    `first` is the number of its first row among those of the whole source, from 0.
    """

    file: str
    start: int
    rows: int
    first: int


def cut(source: str, rows: int) -> list[Piece]:
    """The pieces of a source, each of at most so many rows of one file. Raises `DocumentError`."""
    pieces: list[Piece] = []
    first = 0
    for file in files(source):
        for start, count in _starts(file, rows):
            pieces.append(Piece(file=file, start=start, rows=count, first=first))
            first += count
    if not first:
        raise DocumentError(source, f"it has no rows; expected {_EXPECTED}.")
    return pieces


def files(source: str) -> list[str]:
    """The files of a source in order, by their whole paths; a data set stands for itself."""
    if source.startswith(HUB):
        return [source]
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*") if file.suffix in LINES + TABLES)
    else:
        found = [str(path)] if path.is_file() and path.suffix in LINES + TABLES else []
    if not found:
        what = "there is no such file or folder" if not path.exists() else "it cannot be read"
        packed = path.suffix in (".gz", ".zst", ".bz2", ".xz")
        raise DocumentError(
            source,
            f"{what}; expected {_EXPECTED}.",
            hint="Unpack it first: pieces of a packed file cannot be read on their own." if packed else None,
        )
    return found


def identity(source: str) -> str:
    """16 hexadecimal digits that change with a file: with its name, its length, its beginning or its end."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files(source):
        if file.startswith(HUB):
            digest.update(f"{file} {getattr(_data_set(file), '_fingerprint', '')}".encode())
            continue
        path = Path(file)
        with path.open("rb") as opened:
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode() + opened.read(_ENDS))
            opened.seek(max(0, size - _ENDS))
            digest.update(opened.read())
    return digest.hexdigest()


def documents(piece: Piece, fields: Fields) -> Iterator[tuple[int, Document | str]]:
    """The number of each row in the whole source, and its document or what is wrong with it.

    A row without an id is called by its number. A title goes before the text, as where folders are indexed.
    """
    for number, value in enumerate(_values(piece), start=piece.first):
        yield number, _document(value, number, fields)


def _document(value: Any, number: int, fields: Fields) -> Document | str:
    if isinstance(value, str):
        return value
    names = (fields.id,) if fields.id else _ID_FIELDS
    name = next((name for name in names if value.get(name) is not None), None)
    if fields.id and name is None:
        return f"without an id in {fields.id!r}"
    rest = {key: each for key, each in value.items() if key != name}
    section = section_of(rest, fields.text)
    if isinstance(section, str):
        return section
    if not section.text.strip():
        return "without a text"
    own = f"row-{number}" if name is None else valid(str(value[name]))
    return Document(id=own, text=section.text, metadata=section.metadata) if own else "without an id"


def _starts(file: str, rows: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a file begin, and how many rows each has."""
    if Path(file).suffix in LINES:
        yield from _line_starts(Path(file), rows)
        return
    total = len(_data_set(file)) if file.startswith(HUB) else _table(file).metadata.num_rows
    yield from ((start, min(rows, total - start)) for start in range(0, total, rows))


def _line_starts(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    start = offset = count = 0
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DocumentError(str(path), "it is in UTF-16; expected UTF-8.")
        file.seek(0)
        for line in file:
            offset, count = offset + len(line), count + 1
            if count == rows:
                yield start, count
                start, count = offset, 0
    if count:
        yield start, count


def _values(piece: Piece) -> Iterator[Any]:
    """What the rows hold: an object, or a string that says what is wrong with the row."""
    if piece.file.startswith(HUB):
        yield from _data_set(piece.file).select(range(piece.start, piece.start + piece.rows))
    elif Path(piece.file).suffix in LINES:
        with Path(piece.file).open("rb") as file:
            file.seek(piece.start)
            yield from map(_value, itertools.islice(file, piece.rows))
    else:
        yield from _table_values(piece)


def _value(line: bytes) -> Any:
    if not line.strip():
        return "without a text"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else "no object"


def _table_values(piece: Piece) -> Iterator[Any]:
    """The rows of a Parquet file, of which no row group before the piece is read."""
    table = _table(piece.file)
    before, wanted, end = 0, [], piece.start + piece.rows
    skipped: int | None = None
    for number in range(table.num_row_groups):
        count = table.metadata.row_group(number).num_rows
        if before + count > piece.start and before < end:
            skipped = piece.start - before if skipped is None else skipped
            wanted.append(number)
        before += count
    batches = table.iter_batches(batch_size=_AT_ONCE, row_groups=wanted)
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from itertools.islice(rows, skipped or 0, (skipped or 0) + piece.rows)


def _table(file: str) -> Any:
    package = require("pyarrow.parquet", extra="embed", purpose="Reading Parquet")
    try:
        return package.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise DocumentError(file, f"it cannot be read as Parquet ({error!s:.80}).") from error


@lru_cache(maxsize=4)
def _data_set(name: str) -> Any:
    """A data set, mapped into memory: no more of it is read than is asked for."""
    package = require("datasets", extra="embed", purpose=f"The data set {name!r}")
    called, _, split = name.removeprefix(HUB).partition(":")
    try:
        if (Path(called) / "state.json").is_file():
            return package.load_from_disk(called)
        return package.load_dataset(called, split=split or "train")
    except Exception as error:  # a loader has many of its own
        raise DocumentError(
            name,
            f"it cannot be loaded: {type(error).__name__}: {error!s:.120}",
            hint="Write hub:OWNER/NAME:SPLIT, or pass a .jsonl or .parquet file.",
        ) from error
