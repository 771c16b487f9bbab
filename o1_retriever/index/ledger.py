"""The documents of an index and their vectors in one SQLite file: the truth from which Chroma can be rebuilt.

Chroma writes its search graph (HNSW) in several files, one after the other: a process killed in between
leaves files that cannot be loaded, or that crash the loader, and vectors that stand nowhere else are lost.
A second process that has the graph open goes on with the old one and may write it over the new one. So what
is indexed is written here first, in a transaction; `State.dirty` says that Chroma may lack it; and every
access holds a lock between processes, shared for reading and exclusive for writing.

SQLite does not notice a bit that the disk has changed inside a value: each row and the state have a checksum,
and what does not agree with it is never given out.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from o1_retriever.documents import Document
from o1_retriever.errors import IndexNotFoundError, StoreError
from o1_retriever.index.fields import AT_ONCE, SCHEMA, Fields, Numbers
from o1_retriever.storage import is_busy, locked_fairly
from o1_retriever.thought import Vector
from o1_retriever.vectors import VectorSpace

T = TypeVar("T")

LEDGER_FILE = "documents.sqlite3"
LOCK_FILES = ("lock.sqlite3", "turn.sqlite3")
# A rebuild of the search graph holds the lock for minutes where there are millions of documents.
PATIENCE_S = 600.0
FORMAT = 3
_FORMAT_WITHOUT_FIELDS = 1
_APPLICATION = 0x6F317231  # "o1r1"
# Vectors in memory at a time.
_PAGE = 2000

_SCHEMA = (
    """
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    root TEXT NOT NULL,
    source TEXT NOT NULL,
    digest BLOB NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    vector BLOB NOT NULL,
    crc INTEGER NOT NULL DEFAULT 0,
    vector_sum INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX documents_by_file ON documents (root, source);
CREATE INDEX documents_by_text ON documents (digest);
"""
    + SCHEMA
)
# What the checksums of a document are of, and both with them.
_WRITTEN = "id, root, source, digest, text, metadata, vector"
_CHECKED = f"{_WRITTEN}, crc, vector_sum"
_NEW = ", ".join(f"{name} = excluded.{name}" for name in _CHECKED.split(", ")[1:])
_PUT = f"INSERT INTO documents ({_CHECKED}) VALUES (?{', ?' * 8}) ON CONFLICT (id) DO UPDATE SET {_NEW}"
# What SQLite says of a disk that is full, or that may not be read or written.
_OF_THE_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_CRC = "crc"  # of the state, beside its values


# Which index it is, the number of its graph and its generation: the same, and nothing has changed.
Version: TypeAlias = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an index is, and how far Chroma has followed.

    `space` and `precision` are those of the embedder that began it. `generation` grows with every change.
    `graph` is the number of Chroma's folder; `dirty` says that it has to be built anew. `sizes` are the bytes
    of the graph's files and `sums` their checksums: Chroma crashes on some that were cut or damaged, and in
    others it finds other documents. Very large files have none before the index was closed. `identity` tells
    the index from another one that was made later in the same folder.
    """

    space: dict[str, Any]
    precision: dict[str, Any]
    format: int = FORMAT
    generation: int = 0
    graph: int = 0
    dirty: bool = True
    sizes: dict[str, int] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def version(self) -> Version:
        """What is derived from the documents belongs to one version."""
        return self.identity, self.graph, self.generation

    def description(self) -> dict[str, str | int]:
        """What the Chroma collection says about itself to those who open it without this library."""
        return {
            "made_by": "o1-retriever",
            "format": self.format,
            "fingerprint": VectorSpace(**self.space).fingerprint,
            "space": json.dumps(self.space, sort_keys=True),
            "precision": json.dumps(self.precision, sort_keys=True),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedDocument:
    """A document with its vector (float32, not necessarily of length 1)."""

    document: Document
    vector: Vector


class Ledger:
    """Opens the file for one access at a time: `with ledger.session(write=True) as session: ...`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / LEDGER_FILE

    def exists(self) -> bool:
        """Whether there is a file; a file of length 0 is a creation that was cut short."""
        if self._has_content() and self.file.with_name(f"{LEDGER_FILE}-journal").exists():
            # One that was killed within its first transaction has content until SQLite takes that back.
            with self.session() as session:
                session.tables()
        return self._has_content()

    def _has_content(self) -> bool:
        return self.file.is_file() and self.file.stat().st_size > 0

    @contextmanager
    def session(self, *, write: bool = False) -> Iterator[Session]:
        """Hold the lock, shared with other readers or alone, and yield access to the file.

        Raises `StoreError` when the file is damaged or not ours, or when another process keeps the lock.
        """
        try:
            with self._locked(alone=write), closing(self._connect("rw")) as connection:
                yield Session(connection, self.file)
        except sqlite3.Error as error:
            raise self._vanished() or self._failure(error) from error

    def create(self, state: State) -> None:
        """Begin an empty ledger, unless there is one."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(alone=True), closing(self._connect("rwc")) as connection:
                Session(connection, self.file).create(state)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        except OSError as error:
            raise StoreError(
                f"An index cannot be made in {self.folder} ({error.strerror or error}).",
                hint="Choose another folder for it.",
            ) from error

    def opened(self) -> State:
        """The state, after a ledger that an earlier version wrote has been brought up to date."""
        with self.session() as session:
            if session.format() not in range(_FORMAT_WITHOUT_FIELDS, FORMAT):
                return session.state()
        with self.session(write=True) as session:
            session.bring_up_to_date()
            return session.state()

    def _locked(self, *, alone: bool) -> AbstractContextManager[None]:
        lock, turn = (self.folder / name for name in LOCK_FILES)
        return locked_fairly(lock, turn, alone=alone, patience=PATIENCE_S)

    def _connect(self, mode: str) -> sqlite3.Connection:
        address = f"{self.file.resolve().as_uri()}?mode={mode}"
        connection = sqlite3.connect(address, uri=True, timeout=PATIENCE_S, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _vanished(self) -> StoreError | None:
        """What to say where the file is no longer there; None where it is, or where nobody may look."""
        try:
            self.file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return IndexNotFoundError(
                f"The index at {self.folder} is gone: {self.file.name} has been moved or deleted.",
                hint="Open it where it is now, or type: o1-retriever index FOLDER",
            )
        except OSError:
            pass
        return None

    def _failure(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if is_busy(error):
            return StoreError(
                f"Another process has been using the index at {self.folder} for {PATIENCE_S:.0f} seconds.",
                hint="Wait until that process has finished, or end it.",
            )
        if code in _OF_THE_DISK:
            return StoreError(
                f"The index at {self.folder} cannot be read or written ({error}).",
                hint="Free some disk space, or check who may write to that folder; what was done is kept.",
            )
        return StoreError(
            f"The index at {self.folder} cannot be used: found {error}; expected an intact {LEDGER_FILE}.",
            hint="Delete that folder and index again: o1-retriever index FOLDER",
        )


class Session:
    """What can be read from and written to a ledger while its lock is held."""

    def __init__(self, connection: sqlite3.Connection, file: Path) -> None:
        self._connection = connection
        self._file = file
        self.fields = Fields(connection)

    def tables(self) -> int:
        """How many tables and indexes of tables there are."""
        return int(self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    def format(self) -> int:
        """The format that the file has. Raises `StoreError` for a file of another program."""
        return int(self._state()["format"])

    def state(self) -> State:
        """What the index is. Raises `StoreError` for a file of another program or version."""
        found = self._state()
        if found["format"] != FORMAT:
            raise StoreError(
                f"The index at {self._file.parent} has format {found['format']}; expected {FORMAT}.",
                hint="Index again with this version: o1-retriever index FOLDER --index NEW",
            )
        if found.pop(_CRC, None) != _crc_of_state(found):
            raise sqlite3.DatabaseError("a damaged state")
        return State(**found)

    def _state(self) -> dict[str, Any]:
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise StoreError(
                f"{self._file} is a database that o1-retriever did not write.",
                hint="Choose another folder for the index.",
            )
        try:
            found = {key: json.loads(value) for key, value in self._connection.execute("SELECT * FROM state")}
            return {"format": 0, **found}
        except (ValueError, TypeError) as error:
            raise sqlite3.DatabaseError(f"a damaged state ({error})") from error

    def write_state(self, state: State) -> None:
        """Replace the state."""
        values = asdict(state)
        values[_CRC] = _crc_of_state(values)
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        self._connection.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep all of what is written inside, or nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def create(self, state: State) -> None:
        """Make the tables, unless there are any."""
        with self.transaction():
            if not self.tables():
                self._make(_SCHEMA)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self.write_state(state)

    def _make(self, schema: str) -> None:
        for statement in schema.split(";"):
            self._connection.execute(statement)

    def bring_up_to_date(self) -> None:
        """Add what a ledger of an earlier format lacks, fields and checksums, unless another process has."""
        with self.transaction():
            found = self._state()
            if found["format"] == FORMAT:
                return
            if found["format"] == _FORMAT_WITHOUT_FIELDS:
                self._make(SCHEMA)
                self.fields.put(_read(self._connection.execute("SELECT number, metadata FROM documents")))
            for name in ("crc", "vector_sum"):
                self._make(f"ALTER TABLE documents ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
            rows = self._connection.execute(f"SELECT {_WRITTEN}, number FROM documents")
            put = "UPDATE documents SET crc = ?, vector_sum = ? WHERE number = ?"
            while page := list(islice(rows, _PAGE)):
                sums = [(*_checksums(values), number) for *values, number in page]
                self._connection.executemany(put, sums)
            self.write_state(State(**{**found, "format": FORMAT}))

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Add documents, or replace those of the same id at their place."""
        ids = [each.document.id for each in documents]
        self.fields.remove(_read(self._rows("number, metadata", ids)))
        self._connection.executemany(_PUT, map(_values, documents))
        self.fields.put(_read(self._rows("number, metadata", ids)))

    def remove(self, ids: Sequence[str]) -> int:
        """Delete documents; say how many there were."""
        self.fields.remove(_read(self._rows("number, metadata", ids)))
        statement = "DELETE FROM documents WHERE id = ?"
        return self._connection.executemany(statement, ((identity,) for identity in ids)).rowcount

    def _rows(
        self, columns: str, values: Sequence[Any], *, where: str = "id", more: str = ""
    ) -> Iterator[Any]:
        """Some columns of the documents whose id, or whatever `where` names, is one of the values.

        They come in the order of what `where` names where the values do.
        """
        for start in range(0, len(values), AT_ONCE):
            part = values[start : start + AT_ONCE]
            marks = ",".join("?" * len(part))
            # All of them: a cursor that is given up half-way would be closed after its connection.
            yield from self._connection.execute(
                f"SELECT {columns} FROM documents WHERE {where} IN ({marks}) {more} ORDER BY {where}", part
            ).fetchall()

    def known(self, ids: Sequence[str]) -> dict[str, tuple[bytes, str]]:
        """Digest of the text, and metadata as JSON, of those ids that are there."""
        return {key: (digest, metadata) for key, digest, metadata in self._rows("id, digest, metadata", ids)}

    def vectors_of_texts(self, digests: Sequence[bytes]) -> dict[bytes, Vector]:
        """The vectors of texts that are there already, under whatever id."""
        return _vectors(self._rows("digest, vector, vector_sum", digests, where="digest"))

    def documents(self, ids: Sequence[str]) -> dict[str, EmbeddedDocument]:
        """The documents of those ids that are there."""
        found = map(_embedded, self._rows(_CHECKED, ids))
        return {each.document.id: each for each in found}

    def vectors(self, ids: Sequence[str]) -> dict[str, Vector]:
        """The vectors of those ids that are there."""
        return _vectors(self._rows("id, vector, vector_sum", ids))

    def vector_pages(self, numbers: Numbers | None = None) -> Iterator[tuple[list[str], Vector]]:
        """The ids and vectors of these documents, or of all, some at a time; no page is empty."""
        columns = "id, vector, vector_sum"
        every = f"SELECT {columns} FROM documents"
        rows = self._connection.execute(every) if numbers is None else self._numbered(columns, numbers)
        while page := list(islice(rows, _PAGE)):
            ids, vectors, sums = zip(*page, strict=True)
            yield list(ids), _checked_vectors(ids, vectors, sums)

    def copies(self, ids: Sequence[str], *, limit: int) -> dict[str, list[str]]:
        """The first `limit` ids with the same text, for the ids of texts that are there more than once.

        Of several ids with one text, one has them.
        """
        digests: dict[bytes, str] = dict(self._rows("digest, id", ids))
        several = "GROUP BY digest HAVING count(*) > 1"
        often = self._rows("digest", list(digests), where="digest", more=several)
        query = "SELECT id FROM documents WHERE digest = ? ORDER BY id LIMIT ?"
        return {
            digests[digest]: [row[0] for row in self._connection.execute(query, (digest, limit))]
            for (digest,) in list(often)
        }

    def pages(self, size: int) -> Iterator[list[EmbeddedDocument]]:
        """All documents in the order of their addition, so many at a time."""
        rows = self._connection.execute(f"SELECT {_CHECKED} FROM documents ORDER BY number")
        while page := [*map(_embedded, islice(rows, size))]:
            yield page

    def ids_by_source(self, root: str) -> dict[str, list[str]]:
        """The ids of a folder's documents, by file."""
        found: dict[str, list[str]] = {}
        query = "SELECT source, id FROM documents WHERE root = ? ORDER BY source, number"
        for source, identity in self._connection.execute(query, (root,)):
            found.setdefault(source, []).append(identity)
        return found

    def ids(self, numbers: Numbers | None = None) -> list[str]:
        """The ids of these documents, or of all, in the order of their addition."""
        every = "SELECT id FROM documents ORDER BY number"
        rows = self._connection.execute(every) if numbers is None else self._numbered("id", numbers)
        return [identity for (identity,) in rows]

    def _numbered(self, columns: str, numbers: Numbers) -> Iterator[Any]:
        return self._rows(columns, numbers.tolist(), where="number")

    def among(self, ids: Sequence[str], numbers: Numbers) -> set[str]:
        """Those of the ids whose documents have one of the numbers, which are in ascending order."""
        found = dict(self._rows("number, id", ids))
        kept = np.intersect1d(np.fromiter(found, np.int64, len(found)), numbers, assume_unique=True)
        return {found[number] for number in kept.tolist()}

    def texts(self) -> tuple[list[str], list[str]]:
        """All ids in ascending order, and the text of each."""
        ids, texts = [], []
        query = "SELECT id, text, digest FROM documents ORDER BY id"
        for identity, text, digest in self._connection.execute(query):
            if digest_of(text) != digest:
                raise _not_as_written(identity)
            ids.append(identity)
            texts.append(text)
        return ids, texts

    def numbers(self) -> Numbers:
        """The numbers of all documents, in ascending order of their ids."""
        rows = self._connection.execute("SELECT number FROM documents ORDER BY id")
        return np.fromiter(chain.from_iterable(rows), np.int64)

    def count(self, *, at_most: int | None = None) -> int:
        """Number of documents, or `at_most` where there are more: counting takes time that grows with it."""
        counted = "documents" if at_most is None else f"(SELECT 1 FROM documents LIMIT {int(at_most)})"
        return int(self._connection.execute(f"SELECT count(*) FROM {counted}").fetchone()[0])

    def highest(self) -> int:
        """The highest number of a document: at least as many as there are, and known at once."""
        return int(self._connection.execute("SELECT max(number) FROM documents").fetchone()[0] or 0)

    def sources(self) -> dict[str, int]:
        """Number of files by folder that was indexed."""
        query = "SELECT root, count(DISTINCT source) FROM documents GROUP BY root ORDER BY root"
        return dict(self._connection.execute(query).fetchall())


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as it is kept."""
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True)


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _values(embedded: EmbeddedDocument) -> tuple[object, ...]:
    id, text, metadata = embedded.document.id, embedded.document.text, embedded.document.metadata
    root, source = (str(metadata.get(name, "")) for name in ("root", "source"))
    vector = embedded.vector.astype("<f4").tobytes()
    written = (id, root, source, digest_of(text), text, metadata_json(metadata), vector)
    return (*written, *_checksums(written))


def _checksums(written: Sequence[Any]) -> tuple[int, int]:
    """Of a row without its vector, and of its vector. Raises `sqlite3.DatabaseError` where that is none."""
    id, root, source, digest, text, metadata, vector = written
    if not isinstance(vector, bytes) or len(vector) % 4:
        raise _not_as_written(id)
    said = json.dumps([str(value) for value in (id, root, source, digest, text, metadata)])
    return zlib.crc32(said.encode()), int(np.frombuffer(vector, dtype="<u4").sum(dtype=np.uint64))


def _crc_of_state(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _not_as_written(identity: object) -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError(f"the document {identity!r:.60} is not as it was written")


def _embedded(values: Sequence[Any]) -> EmbeddedDocument:
    *written, crc, vector_sum = values
    identity, _, _, _, text, metadata, vector = written
    if _checksums(written) != (crc, vector_sum):
        raise _not_as_written(identity)
    document = Document(id=identity, text=text, metadata=json.loads(metadata))
    return EmbeddedDocument(document=document, vector=np.frombuffer(vector, dtype="<f4"))


def _checked_vectors(keys: Sequence[Any], vectors: Sequence[bytes], sums: Sequence[int]) -> Vector:
    """The vectors of a page as one array. Raises `sqlite3.DatabaseError` for one that was not written so."""
    try:
        if len({len(each) for each in vectors}) != 1:
            raise sqlite3.DatabaseError("vectors of several lengths")
        joined = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)
        wrong = joined.view("<u4").sum(axis=1, dtype=np.uint64) != np.array(sums, np.uint64)
    except (TypeError, ValueError, OverflowError) as error:
        raise sqlite3.DatabaseError(f"what is no vector ({error})") from error
    if wrong.any():
        raise _not_as_written(keys[int(np.argmax(wrong))])
    return joined


def _read(rows: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbers of documents with their metadata, read."""
    for number, metadata in rows:
        try:
            yield number, dict(json.loads(metadata))
        except (ValueError, TypeError) as error:
            raise sqlite3.DatabaseError(f"damaged metadata of document {number} ({error})") from error


def _vectors(rows: Iterable[tuple[T, bytes, int]]) -> dict[T, Vector]:
    found = list(rows)
    if not found:
        return {}
    keys, vectors, sums = zip(*found, strict=True)
    return dict(zip(keys, _checked_vectors(keys, vectors, sums), strict=True))
