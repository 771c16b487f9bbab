"""A row of training data, the same for every stage, with the field names of the released O1 Embedder data.

Rows and documents are read one at a time from JSON lines (plain, gzip, Zstandard), Parquet, or a data set of
the Hub, in UTF-8 or UTF-16, and a damaged file is named with its line.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, cast

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from o1_retriever.errors import InputError, require
from o1_retriever.query import check_text
from o1_retriever.reporting import Problems, counted, is_shown

# What stands in every line, even when it is empty: readers of the released data expect it.
_ALWAYS = ("query", "pos", "neg", "all_thought", "thought")


def _text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return check_text(value, what="text")
        except InputError as error:
            raise ValueError(error.message) from None
    return value


def _one_or_several(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _candidates(value: Any) -> Any:
    """Several texts; an empty one is how other tools write down a generation that failed."""
    value = _one_or_several(value)
    return [_or_none(each) for each in value] if isinstance(value, list) else value


def _or_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[list[Text], BeforeValidator(_one_or_several)]


class DataError(InputError):
    """A file of rows cannot be read, or holds rows that a strict reading refuses."""


class Failure(BaseModel):
    """A candidate that could not be written: its place in `all_thought`, and why."""

    candidate: int
    reason: str


class TrainingRow(BaseModel):
    """A query with its documents, and what the stages have added; fields of one's own are kept.

    `all_thought` holds the candidates in order, None where one could not be written (`failures` says why);
    `writers` names who wrote each. `thought` is the winner, None without a usable candidate. `model2scores`
    has each member's scores of the candidates, `bare_scores` its score of the query without a thought, and
    `votes` the candidate that it voted for. `tokens` are the prompt's and the completion's.
    """

    model_config = ConfigDict(extra="allow", validate_by_alias=True, validate_by_name=True)

    key: str | None = None
    id: Annotated[str | None, BeforeValidator(lambda value: str(value) if type(value) is int else value)] = (
        Field(default=None, validation_alias=AliasChoices("id", "_id"))
    )
    query: Text = Field(validation_alias=AliasChoices("query", "text"))
    pos: Texts = Field(default_factory=list)
    neg: Texts = Field(default_factory=list)
    pos_scores: list[float] | None = None
    neg_scores: list[float] | None = None
    prompt: str | None = None
    type: str | None = None
    all_thought: Annotated[list[Text | None], BeforeValidator(_candidates)] = Field(
        default_factory=list, validation_alias=AliasChoices("all_thought", "thoughts")
    )
    thought: Annotated[str | None, BeforeValidator(_or_none)] = None
    writers: list[str] = Field(default_factory=list)
    failures: list[Failure] = Field(default_factory=list)
    tokens: tuple[int, int] | None = None
    model2scores: dict[str, list[float | None]] = Field(default_factory=dict)
    bare_scores: dict[str, float | None] = Field(default_factory=dict)
    votes: dict[str, int | None] = Field(default_factory=dict)

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that stand for this row in every stage: what the input said about it."""
        return self.key or key_of(json.dumps([self.id, self.query, self.pos, self.prompt, self.type]))

    @property
    def usable(self) -> list[int]:
        """The places of the candidates that could be written."""
        return [place for place, thought in enumerate(self.all_thought) if thought is not None]

    def line(self) -> str:
        """The row as one JSON line, its key first, empty fields left out."""
        fields = self.model_dump(mode="json").items()
        kept = {name: value for name, value in fields if name in _ALWAYS or value not in (None, [], {})}
        return json.dumps({"key": self.identity, **kept}, ensure_ascii=False) + "\n"


def key_of(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def plain_text(text: str) -> str:
    """The words of a text in small letters, one space between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def parse_row(value: Any) -> TrainingRow:
    """A row from a JSON object. Raises `ValueError` with one line about the first field that is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"found a {type(value).__name__}; expected an object")
    try:
        return TrainingRow.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ValueError(f"the field {field!r} is missing; found {sorted(value)[:8]}") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"the field {field!r} is {first['input']!r:.60}: {reason}") from None


HUB = "hub:"
HINT = "Pass .jsonl, .jsonl.gz, .jsonl.zst, .parquet, or hub:OWNER/NAME[:SPLIT]."
_SUFFIXES = (".jsonl", ".json", ".ndjson")
# What reading a damaged file raises, by its compression and its encoding.
_DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, UnicodeDecodeError)
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16: line ends are no single bytes there
_BLOCK = 1 << 20


class RowProblems(Problems):
    """What was left out of a file of rows; with `strict`, the first problem is raised as a `DataError`."""

    error = DataError
    remedies: ClassVar[Mapping[str, str]] = {
        "not text": "the line is left out",
        "not JSON": "the line is left out",
        "wrong fields": "the row is left out",
        "empty query": "the row is left out",
        "repeated row": "the first is kept",
        "repeated id": "the first is kept",
    }


def read_rows(source: str | Path, problems: RowProblems | None = None) -> Iterator[TrainingRow]:
    """The usable rows of a source in order; what is not usable is noted in `problems` with its line.

    A source is the path of a file, or `hub:owner/name` with an optional `:split` (default: train). It is
    read as a stream, so that its size does not matter. Raises `DataError` for what cannot be read at all.
    """
    problems = RowProblems(str(source)) if problems is None else problems
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Documents in order, as title, space, text; `places` finds them by id."""

    texts: list[str]
    places: dict[str, int]


def read_corpus(path: str | Path) -> Corpus:
    """Documents of a BEIR corpus: `_id`, `title` and `text`, in any format that rows may have.

    Empty documents are left out. Raises `DataError` when there is none at all.
    """
    problems = RowProblems(str(path))
    texts: list[str] = []
    places: dict[str, int] = {}
    for place, value in read_values(path, problems):
        if not isinstance(value, dict) or not isinstance(value.get("text", value.get("query")), str):
            raise DataError(
                f"{path}, {place}: found {json.dumps(value)[:60]}; expected an object with a 'text'."
            )
        body = value.get("text", value.get("query"))
        text = " ".join(part for part in (value.get("title"), body) if part and part.strip()).strip()
        name = str(value.get("_id", value.get("id", place)))
        if text and name not in places:
            places[name] = len(texts)
            texts.append(text)
    if problems or not texts:
        raise DataError(f"The corpus has {counted(len(texts), 'document')} and cannot be used. {problems}")
    return Corpus(texts=texts, places=places)


def count_rows(source: str | Path, *, show: bool | None) -> int | None:
    """How many rows a file has at most, for a progress bar; None where none is shown, or nobody knows."""
    name = str(source)
    if name.startswith(HUB) or not is_shown(show):
        return None
    return int(_parquet(name).metadata.num_rows) if name.endswith(".parquet") else _count_lines(name)


def digest(source: str | Path) -> str:
    """16 hexadecimal digits that stand for a file's content, or for the name of a data set of the Hub."""
    if str(source).startswith(HUB):
        return key_of(str(source))
    try:
        with Path(source).open("rb") as file:
            # `file_digest` makes a hash by calling what it is given.
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}.", hint=HINT) from error


def read_values(path: str | Path, problems: RowProblems) -> Iterator[tuple[str, Any]]:
    """(place, JSON value) of everything in a source, for what has another shape than rows."""
    source = str(path)
    if source.startswith(HUB):
        yield from _hub_values(source)
    elif source.endswith(".parquet"):
        yield from _parquet_values(source)
    else:
        yield from _json_values(source, problems)


def _json_values(path: str, problems: RowProblems) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with _opened(path) as stream:
            for number, line in enumerate(_lines_of(stream), start=1):
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
    except _DAMAGE as error:
        raise _unreadable(path, error, f"after line {number}") from error


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
    try:
        for batch in batches:
            for value in batch.to_pylist():
                number += 1
                yield f"row {number}", _without_nulls(value)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, f"after row {number}") from error


def _hub_values(source: str) -> Iterator[tuple[str, Any]]:
    datasets = require("datasets", extra="train", purpose="Reading a data set of the Hub")
    name, _, split = source.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, value in enumerate(rows, start=1):
            yield f"row {number}", _without_nulls(dict(value))
    except Exception as error:  # the library raises what its many back ends raise
        raise DataError(
            f"{source} cannot be read: {type(error).__name__}: {error}.",
            hint="Check the name, and that this machine reaches the Hub.",
        ) from error


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """A table has a column for every row, and None where a JSON line would not have the field."""
    return {name: each for name, each in value.items() if each is not None}


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file, read as a stream. Raises `DataError` for another kind of file."""
    if not Path(path).is_file():
        raise DataError(f"There is no file {path}; expected rows.", hint=HINT)
    if path.endswith(".gz"):
        with gzip.open(path, "rb") as zipped:
            yield cast(IO[bytes], zipped)
    elif path.endswith(".zst"):
        # Arrow's reader goes on with the next frame, and takes a frame that is cut short for damage.
        arrow = require("pyarrow", extra="train", purpose="Reading .zst files")
        with arrow.input_stream(path, compression="zstd") as raw, io.BufferedReader(raw, _BLOCK) as stream:
            yield cast(IO[bytes], stream)
    elif path.endswith(_SUFFIXES):
        with Path(path).open("rb") as plain:
            yield plain
    else:
        raise DataError(f"The suffix of {path} is unknown.", hint=HINT)


def _lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines as they are; those of UTF-16, told by its mark, as UTF-8."""
    start = cast(Any, stream).peek(2)[:2]
    if start not in _WIDE:
        yield from stream
        return
    for line in io.TextIOWrapper(stream, encoding="utf-16", newline="\n"):
        yield line.encode("utf-8", "surrogatepass")


def _count_lines(path: str) -> int:
    """How many lines a file has. Raises `DataError` for one that is damaged."""
    found, last = 0, b"\n"
    try:
        with _opened(path) as stream:
            while block := stream.read(_BLOCK):
                found, last = found + block.count(b"\n"), block[-1:]
    except _DAMAGE as error:
        raise _unreadable(path, error, f"after line {found}") from error
    return found + (last != b"\n")


def _unreadable(path: str, error: Exception, where: str) -> DataError:
    """The error that says what is the matter with a file, and where."""
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(f"{path} cannot be read {where}: {reason}.", hint=HINT)
