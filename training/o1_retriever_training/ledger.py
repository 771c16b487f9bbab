"""An output file that a kill at any moment cannot spoil: one line per finished row, and exact resumption.

Beside `out.jsonl` stand `out.jsonl.manifest.json` (what made it, and counts) and, while somebody writes,
`out.jsonl.lock`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from o1_retriever.errors import O1RetrieverError
from o1_retriever.reporting import counted
from o1_retriever.storage import acquire, is_busy, written_whole
from o1_retriever_training.rows import RowProblems, TrainingRow, key_of, read_rows

logger = logging.getLogger(__name__)

_FLUSH_EVERY_S = 1.0  # a power failure costs what the last second brought, a killed process nothing
_LINE = re.compile(rb'\{"key": "([0-9a-f]{16}).*\}\n', re.DOTALL)  # the key is at the beginning of a line
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL = "Free some space, then type the same command: it goes on where it was."
_TABLES = """
CREATE TABLE done (key INTEGER PRIMARY KEY, offset INTEGER NOT NULL, length INTEGER NOT NULL, place INTEGER);
CREATE TABLE seen (key INTEGER PRIMARY KEY);
"""


class LedgerError(O1RetrieverError):
    """An output cannot be begun, gone on with or written; what was written stays."""


class OtherRecipeError(LedgerError):
    """An output was begun with another recipe than the one that is to go on with it."""


class KeyIndex:
    """Keys of rows (16 hexadecimal digits): where their line is in the output, and their row in the input.

    It lives in a temporary database that SQLite keeps in memory while it is small, and is gone at the end.
    """

    def __init__(self) -> None:
        # The empty name is SQLite's temporary database on disk; threads take turns by the caller's care.
        self._data = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._data.execute("PRAGMA journal_mode = OFF")
        self._data.executescript(_TABLES)

    def close(self) -> None:
        """Give the temporary file back."""
        self._data.close()

    def add(self, key: str, offset: int, length: int) -> bool:
        """Note the line of a finished row; False when there was one already."""
        insert = "INSERT OR IGNORE INTO done VALUES (?, ?, ?, NULL)"
        return self._data.execute(insert, (_number(key), offset, length)).rowcount == 1

    def __contains__(self, key: str) -> bool:
        found = self._data.execute("SELECT 1 FROM done WHERE key = ?", (_number(key),))
        return found.fetchone() is not None

    def __len__(self) -> int:
        return int(self._data.execute("SELECT count(*) FROM done").fetchone()[0])

    def see(self, key: str) -> bool:
        """Whether a key of the input is met for the first time."""
        return self._data.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_number(key),)).rowcount == 1

    def place(self, key: str, number: int) -> None:
        """Note which row of the input a finished row belongs to."""
        self._data.execute("UPDATE done SET place = ? WHERE key = ?", (number, _number(key)))

    def spans(self, *, ordered: bool) -> Iterator[tuple[int, int]]:
        """(offset, length) of the lines, in the input's order or in that of the file.

        Rows that the input does not hold come last, in the order of the file.
        """
        order = "place IS NULL, place, offset" if ordered else "offset"
        yield from self._data.execute(f"SELECT offset, length FROM done ORDER BY {order}")

    def in_order(self) -> bool:
        """Whether the lines already stand in the order of the input."""
        pairs = zip(self.spans(ordered=True), self.spans(ordered=False), strict=True)
        return all(one == other for one, other in pairs)

    def strangers(self) -> int:
        """How many lines belong to no row of the input."""
        return int(self._data.execute("SELECT count(*) FROM done WHERE place IS NULL").fetchone()[0])


def _number(key: str) -> int:
    """SQLite's integers have a sign."""
    return int.from_bytes(bytes.fromhex(key), signed=True)


class Ledger:
    """The output of a stage, opened to go on with it: `with Ledger(path, stage=..., recipe=...) as ledger`.

    `recipe` is all that decides what a row of the output says; an output of another recipe is refused.
    Raises `LedgerError` then, when another process writes the same file, when the file is damaged, and
    when a row cannot be written; what was written before stays, and the file ends with a whole line.
    """

    def __init__(self, path: str | Path, *, stage: str, recipe: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.manifest_path = self.path.with_name(f"{self.path.name}.manifest.json")
        self.manifest: dict[str, Any] = {"stage": stage, "recipe": json.loads(json.dumps(recipe))}
        self.index = KeyIndex()
        self.known: dict[str, Any] = {}  # the manifest as it was found
        self._lock: sqlite3.Connection | None = None
        self._file: IO[bytes] | None = None
        self._end = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> Ledger:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquired()
            self._check_manifest()
            self._file = self.path.open("ab", buffering=0)
            self._end = self._read_index()
            length, _ = finished = tuple(self.known.get("content") or (0, 0))
            if _content(self.path, length) != finished:  # rows of a longer input may have been added since
                logger.warning("%s is no longer as it was when it was finished.", self.path)
            return self
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise _refused(self.path, error) from error
            raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def __len__(self) -> int:
        return len(self.index)

    def append(self, key: str, line: str) -> None:
        """Write a finished row, whole or not at all; one that is there already is left alone."""
        data = line.encode()
        if not self.index.add(key, self._end, len(data)):
            return
        self._write(data)
        if time.monotonic() - self._flushed > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Have the system put on disk what was written."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def finish(self, counts: Mapping[str, Any], *, finished: bool = True) -> None:
        """Write the manifest; when all is done, put the lines into the order of the input first."""
        try:
            self.flush()
            if finished:
                strangers = self.index.strangers()
                if strangers:
                    logger.warning(
                        "Not in the input any more, and kept at the end of %s: %s",
                        self.path,
                        counted(strangers, "row"),
                    )
                if not self.index.in_order():
                    self._replace(self._lines(ordered=True))
            self.manifest |= {"finished": finished, "rows": len(self), "counts": dict(counts)}
            if finished:
                self.manifest["content"] = _content(self.path, self._end)
            write_whole(self.manifest_path, json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise _refused(self.path, error) from error

    def forget(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """Take out the rows for which `keep` is false, so that they count as not done; how many those were.

        They go to the end of `<output>.retry` first, whose lines hold what is known about them.
        """
        try:
            return self._forget(keep)
        except OSError as error:
            raise _refused(self.path, error) from error

    def _forget(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        aside = self.path.with_name(f"{self.path.name}.retry")
        with aside.open("ab") as other:
            dropped = 0
            for line in self._lines():
                if not keep(_parsed(self.path, line)):
                    other.write(line)
                    dropped += 1
            other.flush()
            os.fsync(other.fileno())
        if dropped:
            self._replace(line for line in self._lines() if keep(_parsed(self.path, line)))
        return dropped

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is written, row by row."""
        return (_parsed(self.path, line) for line in self._lines())

    def close(self) -> None:
        """Let others write; called at the end of the `with` block."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self.flush()
            self._file.close()
            self._file = None
        self.index.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _acquired(self) -> sqlite3.Connection:
        try:
            return acquire(self.path.with_name(f"{self.path.name}.lock"))
        except sqlite3.OperationalError as error:
            if is_busy(error):
                raise LedgerError(
                    f"Another process is writing {self.path}.", hint="Wait for it, or choose another --out."
                ) from None
            raise LedgerError(f"{self.path} cannot be written ({error}).", hint=_FULL) from error

    def _check_manifest(self) -> None:
        if not self.manifest_path.is_file():
            if self.path.is_file() and self.path.stat().st_size:
                raise LedgerError(
                    f"{self.path} exists and was not written by this command (it has no manifest).",
                    hint="Choose another --out, or move that file away.",
                )
            write_whole(self.manifest_path, json.dumps({**self.manifest, "finished": False}) + "\n")
            return
        try:
            self.known = dict(json.loads(self.manifest_path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise LedgerError(
                f"{self.manifest_path} is damaged ({error}).", hint="Choose another --out."
            ) from None
        old, new = self.known.get("recipe") or {}, self.manifest["recipe"]
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        other = [f"{name} was {old.get(name)!r:.120}, is {new.get(name)!r:.120}" for name in names]
        if (stage := self.known.get("stage")) != self.manifest["stage"]:
            other = [f"it is of the stage {stage!r}, not {self.manifest['stage']!r}"]
        if other:
            raise OtherRecipeError(
                f"{self.path} was begun with another recipe: {'; '.join(other)}.",
                hint="Type the old options to go on with it, or another --out to begin anew.",
            )

    def _read_index(self) -> int:
        """Index the lines, and cut off a last one that was not written to its end; the file's length."""
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                found = _LINE.fullmatch(line)
                if found is None:
                    if lines.read(1):
                        raise LedgerError(
                            f"{self.path}, line {number}, is none that this command has written.",
                            hint="Remove that line, or choose another --out.",
                        )
                    logger.warning("%s: the last line was not finished and is cut off.", self.path)
                    os.truncate(self.path, end)
                    break
                self.index.add(found[1].decode(), end, len(line))
                end += len(line)
        return end

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "the ledger is not open"
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._end)
            raise _refused(self.path, error) from error
        self._end += len(data)

    def _lines(self, *, ordered: bool = False) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for offset, length in self.index.spans(ordered=ordered):
                file.seek(offset)
                yield file.read(length)

    def _replace(self, lines: Iterator[bytes]) -> None:
        """Exchange the file for one with these lines, in one step, and index it again."""
        assert self._file is not None, "the ledger is not open"
        new = self.path.with_name(f"{self.path.name}.new")
        with new.open("wb") as target:
            target.writelines(lines)
            target.flush()
            os.fsync(target.fileno())
        self._file.close()
        new.replace(self.path)
        self._file = self.path.open("ab", buffering=0)
        self.index.close()
        self.index = KeyIndex()
        self._end = self._read_index()


class Input:
    """Reads a source and leaves out what is repeated in it; `rows` counts what is left."""

    def __init__(self, source: str | Path, ledger: Ledger, problems: RowProblems) -> None:
        self.source = source
        self.rows = 0
        self._ledger = ledger
        self._problems = problems

    def fresh(self, kept: Callable[[], None]) -> Iterator[tuple[int, TrainingRow]]:
        """(number, row) of every row that is not done; `kept` is called for one that is.

        The ledger is told where in the input each row stands.
        """
        index = self._ledger.index
        for number, row in self.all():
            if row.identity in self._ledger:
                index.place(row.identity, number)
                kept()
            else:
                yield number, row

    def all(self) -> Iterator[tuple[int, TrainingRow]]:
        """(number from 0, row) of every row, each once."""
        index = self._ledger.index
        for row in read_rows(self.source, self._problems):
            place = f"row {self.rows + len(self._problems) + 1}"
            if row.id is not None and not index.see(key_of(f"id {row.id}")):
                self._problems.add("repeated id", place, f"{row.id!r:.60} was there before")
            elif not index.see(row.identity):
                self._problems.add("repeated row", place, f"{row.query!r:.60} was there before")
            else:
                yield self.rows, row
                self.rows += 1


def written_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an output. Raises `LedgerError` for a line that the disk has damaged."""
    with path.open("rb") as lines:
        for line in lines:
            yield _parsed(path, line)


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise LedgerError(
            f"{path} has a damaged line, {line[:40]!r} ({error}).",
            hint="Remove that line, and type the same command again: its row is made again.",
        ) from None


def _content(path: Path, length: int) -> tuple[int, int]:
    """How many of the first `length` bytes there are, and their checksum."""
    seen = found = 0
    with path.open("rb") as opened:
        while part := opened.read(min(1 << 22, length - seen)):
            seen, found = seen + len(part), zlib.crc32(part, found)
    return seen, found


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or all of the new."""
    with writing_whole(path) as target:
        target.write(text)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[IO[str]]:
    """A file that takes the place of `path` when it is written. Raises `LedgerError` on a full disk."""
    try:
        with written_whole(path) as target:
            yield target
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> LedgerError:
    return LedgerError(f"{error.filename or path} cannot be written ({error.strerror or error}).", hint=_FULL)
