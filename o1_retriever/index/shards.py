"""Many documents with their vectors in Parquet files, which any number of machines make together.

A folder of shards begins with its plan (`plan.json`): the pieces of the source, the document space and the
number format. Each piece becomes one shard, which appears whole or not at all and is always the same, whoever
makes it. The manifest (`manifest.json`) is written last: what has one is complete.

The columns of a shard are `id`, `text` (unless left out), `text_hash` (16 bytes, BLAKE2b), `metadata` (JSON)
and `vector`. An int8 vector keeps the direction alone: its largest number is 127.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from o1_retriever.documents import records
from o1_retriever.documents.document import Document
from o1_retriever.documents.records import Fields, Piece
from o1_retriever.errors import FingerprintError, IndexNotFoundError, SettingsError, StoreError, require
from o1_retriever.index.hits import check_count
from o1_retriever.index.index import DocumentEmbedder, embed_documents
from o1_retriever.index.ledger import EmbeddedDocument, digest_of, metadata_json
from o1_retriever.reporting import progress
from o1_retriever.storage import acquire, is_busy, replacing, written_whole
from o1_retriever.thought import Vector
from o1_retriever.vectors import VectorSpace

logger = logging.getLogger(__name__)

Numbers = Literal["float32", "float16", "int8"]
FORMAT = 1
PLAN, MANIFEST, LOCK = "plan.json", "manifest.json", "lock.sqlite3"
_MARK = b"o1_retriever"
_LARGEST = 127  # of an int8
_BATCHES = 16  # of the encoder, embedded and written at once
_ROWS_READ = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """How documents become shards. `rows` are those of the source that go into one shard.

    `numbers` is the format of the vectors, `texts` whether the texts are kept, without which shards cannot be
    loaded into a store. `batch_size` is the embedder's. Raises `SettingsError`.
    """

    numbers: Numbers = "float32"
    rows: int = 20_000
    fields: Fields = field(default_factory=Fields)
    texts: bool = True
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_count("rows", self.rows)
        check_count("batch_size", self.batch_size)
        if self.numbers not in get_args(Numbers):
            raise SettingsError(
                f"The number format is {self.numbers!r}; expected one of {', '.join(get_args(Numbers))}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a folder of shards is to become: the pieces of a source, and how they are embedded."""

    source: str
    identity: str
    pieces: tuple[Piece, ...]
    options: ShardOptions
    space: dict[str, Any]
    precision: dict[str, Any]

    @classmethod
    def of(cls, source: str, embedder: DocumentEmbedder, options: ShardOptions) -> Plan:
        """The plan for a source. Raises `DocumentError` for one that cannot be read."""
        return cls(
            source=source,
            identity=records.identity(source),
            pieces=tuple(records.cut(source, options.rows)),
            options=options,
            space=embedder.space.to_dict(),
            precision=embedder.precision.to_dict(),
        )

    @property
    def rows(self) -> int:
        """How many rows the source has."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def digest(self) -> str:
        """What a shard of this plan is recognised by, wherever the source lies."""
        pieces = [(piece.start, piece.rows, piece.first) for piece in self.pieces]
        told = [FORMAT, self.identity, pieces, asdict(self.options), self.space, self.precision]
        return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {"format": FORMAT, "digest": self.digest, **asdict(self)}

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan of a folder that was begun. Raises `IndexNotFoundError` or `StoreError`."""
        found = _json(folder / PLAN)
        del found["digest"]
        options = found.pop("options")
        options["fields"] = Fields(**options["fields"])
        pieces = tuple(Piece(**piece) for piece in found.pop("pieces"))
        return cls(**found, pieces=pieces, options=ShardOptions(**options))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of a folder of shards. `content` stands for all ids, texts and vectors in it, in order.

    `left_out` counts the rows that are no documents, by what is wrong with them.
    """

    name: str
    documents: int
    content: str
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a complete folder of shards holds. `repeated_ids` are documents with the id of an earlier one."""

    fingerprint: str
    space: dict[str, Any]
    precision: dict[str, Any]
    numbers: Numbers
    texts: bool
    source: str
    plan: str
    documents: int
    repeated_ids: int
    left_out: dict[str, int]
    shards: tuple[Shard, ...]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder. Raises `IndexNotFoundError` where it is not complete, or `StoreError`."""
        found = _json(folder / MANIFEST)
        found["shards"] = tuple(Shard(**shard) for shard in found["shards"])
        return cls(**found)

    @property
    def content(self) -> str:
        """What stands for all of it: two folders with the same one hold the same documents and vectors."""
        told = [self.fingerprint, self.numbers, *(shard.content for shard in self.shards)]
        return hashlib.blake2b("\n".join(told).encode(), digest_size=8).hexdigest()


# Makes the shards of these numbers in a folder, and yields each when it is there.
Maker = Callable[[Plan, Path, Sequence[int]], Iterable[Shard]]


def embed_shards(
    source: str,
    folder: Path,
    embedder: DocumentEmbedder,
    *,
    options: ShardOptions | None = None,
    maker: Maker | None = None,
    show_progress_bar: bool | None = None,
) -> Manifest:
    """Embed all documents of a source into a folder of shards, and go on where an earlier call stopped.

    Memory does not grow with the source, but for 8 bytes a document at the end. `maker` is who makes the
    shards (None: this process, one after the other). Raises `DocumentError` for the source, and `StoreError`
    for a folder of another plan, one that another process is writing, and a full disk.
    """
    _parquet()
    plan = Plan.of(source, embedder, options or ShardOptions())
    with _alone(folder):
        _begin(folder, plan)
        done = {number: shard for number in range(len(plan.pieces)) if (shard := _made(folder, plan, number))}
        left = [number for number in range(len(plan.pieces)) if number not in done]
        if not left and (folder / MANIFEST).is_file():
            return Manifest.read(folder)
        with progress("Embedding", plan.rows, show=show_progress_bar) as advance:
            advance(plan.rows - sum(plan.pieces[number].rows for number in left))
            here = (make_shard(plan, folder, number, embedder) for number in left)
            for shard in maker(plan, folder, left) if maker and left else here:
                done[number_of(shard.name)] = shard
                advance(plan.pieces[number_of(shard.name)].rows)
        return _complete(folder, plan, [done[number] for number in sorted(done)])


def name_of(number: int) -> str:
    """The name of a shard."""
    return f"shard-{number:06d}.parquet"


def number_of(name: str) -> int:
    """The number of a shard."""
    return int(name.removeprefix("shard-").removesuffix(".parquet"))


def make_shard(plan: Plan, folder: Path, number: int, embedder: DocumentEmbedder) -> Shard:
    """Embed one piece of the source into its file; nothing is done where it is there already."""
    if made := _made(folder, plan, number):
        return made
    left_out: Counter[str] = Counter()
    content, documents, schema = _Content(), 0, _schema(plan)
    options = {"compression": "zstd", "write_page_checksum": True}
    name = name_of(number)
    with replacing(folder / name) as new, _parquet().ParquetWriter(new, schema, **options) as writer:
        for page in _pages(plan, number, left_out):
            embedded = embed_documents(embedder, page, {}, batch_size=plan.options.batch_size)
            batch = _batch(embedded, schema, plan.options)
            content.update(batch)
            writer.write_batch(batch)
            documents += len(page)
        told = dict(sorted(left_out.items()))
        shard = Shard(name=name, documents=documents, content=content.hexdigest(), left_out=told)
        writer.add_key_value_metadata({_MARK: json.dumps({"plan": plan.digest, **asdict(shard)})})
    return shard


def read_shard(file: Path) -> Iterator[list[EmbeddedDocument]]:
    """The documents of a shard with their vectors as float32, some at a time. Raises `StoreError`."""
    for batch in _batches(file):
        columns = batch.drop_columns(["vector"]).to_pydict()
        texts = columns.get("text") or [""] * batch.num_rows
        rows = zip(columns["id"], texts, columns["metadata"], vectors_of(batch), strict=True)
        yield [
            EmbeddedDocument(document=Document(id=id, text=text, metadata=json.loads(metadata)), vector=row)
            for id, text, metadata, row in rows
        ]


def vectors_of(batch: Any) -> Vector:
    """The vectors of a batch as float32 of shape (n, dimension)."""
    column = batch.column("vector")
    found = column.flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
    return np.asarray(found, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What checking a folder of shards has found."""

    manifest: Manifest
    documents: int
    problems: tuple[str, ...]


def check_shards(folder: Path, *, show_progress_bar: bool | None = None) -> Check:
    """Read every shard and compare it with the manifest: checksums, counts, texts, vectors and ids."""
    manifest = Manifest.read(folder)
    problems: list[str] = []
    ids: list[Any] = []
    with progress("Checking", len(manifest.shards), show=show_progress_bar) as advance:
        for shard in manifest.shards:
            try:
                ids.append(_checked(folder / shard.name, manifest, shard))
            except StoreError as error:
                problems.append(error.message)
            advance(1)
    strange = {file.name for file in folder.glob("*.parquet")} - {shard.name for shard in manifest.shards}
    problems += [f"{name} is not in the manifest" for name in strange]
    if not problems and (repeated := _repeated(ids)) != manifest.repeated_ids:
        problems.append(f"{repeated} ids are repeated; expected {manifest.repeated_ids}")
    return Check(manifest=manifest, documents=sum(map(len, ids)), problems=tuple(sorted(problems)))


def _checked(file: Path, manifest: Manifest, shard: Shard) -> Any:
    """The hashes of the ids of a shard that is as the manifest says. Raises `StoreError`."""
    content, ids = _Content(), np.zeros(0, np.uint64)
    for batch in _batches(file):
        content.update(batch)
        ids = np.append(ids, _id_hashes(batch))
        vectors = vectors_of(batch)
        if not (np.isfinite(vectors).all() and vectors.any(axis=1).all()):
            raise StoreError(f"{file.name} has vectors that are zero or not finite")
        if manifest.texts:
            hashes = map(digest_of, batch.column("text").to_pylist())
            if list(hashes) != batch.column("text_hash").to_pylist():
                raise StoreError(f"{file.name} has texts of other hashes")
    if len(ids) != shard.documents:
        raise StoreError(f"{file.name} has {len(ids)} documents; expected {shard.documents}")
    if content.hexdigest() != shard.content:
        raise StoreError(f"{file.name} has another content than the manifest says")
    return ids


def _begin(folder: Path, plan: Plan) -> None:
    if not (folder / PLAN).exists():
        if any(folder.glob("*.parquet")):
            told = f"{folder} holds Parquet files that are of no plan."
            raise StoreError(told, hint="Choose another folder.")
        with written_whole(folder / PLAN) as file:
            json.dump(plan.to_dict(), file, indent=1, ensure_ascii=False)
    found = Plan.read(folder)
    if found.digest == plan.digest:
        _sweep(folder)
        return
    if found.space != plan.space:
        theirs, ours = (VectorSpace(**space).fingerprint for space in (found.space, plan.space))
        raise FingerprintError(
            f"{folder} was begun with the document space {theirs}; this embedder's is {ours}.",
            hint="Use the same model, or embed into another folder.",
        )
    names = ("identity", "pieces", "options", "precision")
    other = [name for name in names if getattr(found, name) != getattr(plan, name)]
    raise StoreError(
        f"{folder} was begun with another plan (it differs in {', '.join(other)}); its source was "
        f"{found.source}.",
        hint="Type the same command again, or embed into another folder.",
    )


def _sweep(folder: Path) -> None:
    """Delete what kills have left, for nobody else writes here now."""
    for old in folder.glob("*.new"):
        old.unlink(missing_ok=True)


def _complete(folder: Path, plan: Plan, shards: Sequence[Shard]) -> Manifest:
    _sweep(folder)
    left_out = sum((Counter(shard.left_out) for shard in shards), Counter[str]())
    batches = (batch for shard in shards for batch in _batches(folder / shard.name, ["id"]))
    manifest = Manifest(
        fingerprint=VectorSpace(**plan.space).fingerprint,
        space=plan.space,
        precision=plan.precision,
        numbers=plan.options.numbers,
        texts=plan.options.texts,
        source=plan.source,
        plan=plan.digest,
        documents=sum(shard.documents for shard in shards),
        repeated_ids=_repeated([*map(_id_hashes, batches)]),
        left_out=dict(sorted(left_out.items())),
        shards=tuple(shards),
    )
    with written_whole(folder / MANIFEST) as file:
        json.dump({"format": FORMAT, **asdict(manifest)}, file, indent=1, ensure_ascii=False)
    return manifest


def _id_hashes(batch: Any) -> Any:
    """8 bytes for each id."""
    ids = batch.column("id").to_pylist()
    hashes = (hashlib.blake2b(id.encode(), digest_size=8).digest() for id in ids)
    return np.frombuffer(b"".join(hashes), np.uint64)


def _repeated(ids: Sequence[Any]) -> int:
    every = np.concatenate([*ids, np.zeros(0, np.uint64)])
    return int(len(every) - len(np.unique(every)))


def _pages(plan: Plan, number: int, left_out: Counter[str]) -> Iterator[list[Document]]:
    def documents() -> Iterator[Document]:
        for _, found in records.documents(plan.pieces[number], plan.options.fields):
            if isinstance(found, str):
                left_out[found] += 1
            else:
                yield found

    found = documents()
    while page := list(islice(found, _BATCHES * plan.options.batch_size)):
        yield page


def _schema(plan: Plan) -> Any:
    arrow = require("pyarrow", extra="embed", purpose="Shards of vectors")
    number = {"float32": arrow.float32(), "float16": arrow.float16(), "int8": arrow.int8()}
    columns = [
        ("id", arrow.string()),
        *([("text", arrow.string())] if plan.options.texts else []),
        ("text_hash", arrow.binary(16)),
        ("metadata", arrow.string()),
        ("vector", arrow.list_(number[plan.options.numbers], int(plan.space["dimension"]))),
    ]
    return arrow.schema([arrow.field(name, kind, nullable=False) for name, kind in columns])


def _batch(embedded: Sequence[EmbeddedDocument], schema: Any, options: ShardOptions) -> Any:
    import pyarrow as arrow

    documents = [each.document for each in embedded]
    numbers = as_numbers(np.stack([each.vector for each in embedded]), options.numbers)
    columns = {
        "id": [each.id for each in documents],
        "text": [each.text for each in documents],
        "text_hash": [digest_of(each.text) for each in documents],
        "metadata": [metadata_json(each.metadata) for each in documents],
    }
    arrays = [arrow.array(columns[name], schema.field(name).type) for name in schema.names[:-1]]
    flat = arrow.array(numbers.reshape(-1))
    vectors = arrow.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
    return arrow.record_batch([*arrays, vectors], schema=schema)


def as_numbers(vectors: Vector, numbers: Numbers) -> Any:
    """Vectors (n, dimension) in the number format of a shard."""
    if numbers != "int8":
        return vectors.astype(np.dtype(numbers))
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    return np.round(vectors / largest * _LARGEST).astype(np.int8)


class _Content:
    """Stands for all documents and vectors of a shard in order, however they come in batches."""

    def __init__(self) -> None:
        self._rows, self._vectors = (hashlib.blake2b(digest_size=8) for _ in range(2))

    def update(self, batch: Any) -> None:
        """Go on with a batch."""
        columns = (batch.column(name).to_pylist() for name in ("id", "text_hash", "metadata"))
        for id, text_hash, metadata in zip(*columns, strict=True):
            self._rows.update(f"{len(id)} {id} {len(metadata)} {metadata}".encode() + text_hash)
        self._vectors.update(batch.column("vector").flatten().to_numpy(zero_copy_only=False).tobytes())

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return self._rows.hexdigest() + self._vectors.hexdigest()


def _made(folder: Path, plan: Plan, number: int) -> Shard | None:
    """The shard of that number, where it is there and of this plan."""
    file = folder / name_of(number)
    if not file.is_file():
        return None
    try:
        found = json.loads((_parquet().read_metadata(file).metadata or {})[_MARK])
    except (OSError, ValueError, KeyError) as error:
        logger.warning("Embedding %s again, which cannot be read: %s.", file, error)
        return None
    return Shard(**found) if found.pop("plan") == plan.digest else None


def _batches(file: Path, columns: list[str] | None = None) -> Iterator[Any]:
    """The batches of a shard. Raises `StoreError` for a file that is missing or damaged."""
    try:
        with _parquet().ParquetFile(file, page_checksum_verification=True) as opened:
            yield from opened.iter_batches(batch_size=_ROWS_READ, columns=columns)
    except (OSError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error!s:.80})"
        raise StoreError(
            f"{file.name} {what}", hint="Delete it and type the same o1-retriever embed command again."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IndexNotFoundError(
            f"{path.parent} has no {path.name}: it is no complete folder of shards.",
            hint="Type: o1-retriever embed SOURCE DEST, which goes on where it stopped.",
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}).", hint="Embed into another folder.") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise StoreError(f"{path} is of another version; expected format {FORMAT}.")
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from writing the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(folder / LOCK)
    except (OSError, sqlite3.Error) as error:
        if is_busy(error):
            told = f"Another process is writing {folder}."
            raise StoreError(told, hint="Wait until it has finished.") from None
        raise StoreError(f"{folder} cannot be written ({error}).", hint="Choose another folder.") from error
    with closing(lock):
        try:
            yield
        except (ConnectionError, TimeoutError):  # of an embedder elsewhere
            raise
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be written ({error.strerror or error}).",
                hint="Free some disk space, then type the same command: it goes on where it was.",
            ) from error


def _parquet() -> Any:
    return require("pyarrow.parquet", extra="embed", purpose="Shards of vectors")
