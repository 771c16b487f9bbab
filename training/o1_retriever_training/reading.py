"""Rows from JSON lines (plain, gzip, Zstandard), Parquet, or a data set of the Hub, one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from o1_retriever.errors import O1RetrieverError
from o1_retriever.extras import require
from o1_retriever.progress import is_shown
from o1_retriever_training.errors import DataError
from o1_retriever_training.opening import DAMAGE, HINT, count_lines, lines_of, opened, unreadable
from o1_retriever_training.problems import Problems
from o1_retriever_training.rows import Row, parse_row

HUB = "hub:"


def read_rows(source: str | Path, problems: Problems) -> Iterator[Row]:
    """The usable rows of a source in order; what is not usable is noted in `problems` with its line.

    A source is the path of a file, or `hub:owner/name` with an optional `:split` (default: train). It is
    read as a stream, so that its size does not matter. Raises `DataError` for what cannot be read at all.
    """
    for place, value in read_values(source, problems):
        if isinstance(value, dict):
            query = value.get("query", value.get("text"))
            if isinstance(query, str) and not query.strip():
                problems.add("empty query", place, "expected some text")
                continue
        try:
            row = parse_row(value)
        except ValueError as error:
            problems.add("wrong fields", place, str(error))
            continue
        yield row


def count_rows(source: str | Path, *, show: bool | None) -> int | None:
    """How many rows a file has at most, for a progress bar; None where none is shown, or nobody knows."""
    name = str(source)
    if name.startswith(HUB) or not is_shown(show):
        return None
    return int(_parquet(name).metadata.num_rows) if name.endswith(".parquet") else count_lines(name)


def digest(source: str | Path) -> str:
    """16 hexadecimal digits that stand for a file's content, or for the name of a data set of the Hub."""
    found = hashlib.blake2b(digest_size=8)
    if str(source).startswith(HUB):
        found.update(str(source).encode())
        return found.hexdigest()
    try:
        with Path(source).open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}.", hint=HINT) from error
    return found.hexdigest()


def read_values(path: str | Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    """(place, JSON value) of everything in a source, for what has another shape than rows."""
    source = str(path)
    if source.startswith(HUB):
        yield from _hub_values(source)
    elif source.endswith(".parquet"):
        yield from _parquet_values(source)
    else:
        yield from _json_values(source, problems)


def _json_values(path: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with opened(path) as stream:
            for number, line in enumerate(lines_of(stream), start=1):
                place = f"line {number}"
                if not line.strip():
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    found = f"byte {line[error.start]:#04x} at offset {error.start} is not UTF-8"
                    problems.add("not text", place, found)
                    continue
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    problems.add("not JSON", place, str(error))
                    continue
                yield place, value
    except DAMAGE as error:
        raise unreadable(path, error, f"after line {number}") from error


def _parquet(path: str) -> Any:
    parquet = require("pyarrow.parquet", extra="train", purpose="Reading Parquet")
    try:
        return parquet.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; expected rows.", hint=HINT) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no Parquet file: {error}.", hint=HINT) from error


def _parquet_values(path: str) -> Iterator[tuple[str, Any]]:
    number = 0
    batches = _parquet(path).iter_batches(batch_size=1024)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:
            raise unreadable(path, error, f"after row {number}") from error
        if batch is None:
            return
        for value in batch.to_pylist():
            number += 1
            yield f"row {number}", _without_nulls(value)


def _hub_values(source: str) -> Iterator[tuple[str, Any]]:
    datasets = require("datasets", extra="train", purpose="Reading a data set of the Hub")
    name, _, split = source.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, value in enumerate(rows, start=1):
            yield f"row {number}", _without_nulls(dict(value))
    except O1RetrieverError:
        raise
    except Exception as error:  # the library raises what its many back ends raise
        raise DataError(
            f"{source} cannot be read: {type(error).__name__}: {error}.",
            hint="Check the name, and that this machine reaches the Hub.",
        ) from error


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """A table has a column for every row, and None where a JSON line would not have the field."""
    return {name: each for name, each in value.items() if each is not None}
