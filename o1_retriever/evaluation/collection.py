"""A retrieval collection in BEIR format: documents, queries, and judgments of a split.

The vectors of its documents are kept on disk: encoded block by block, and continued exactly where a killed
run stopped.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import CollectionError, InputError
from o1_retriever.index.index import DocumentEmbedder
from o1_retriever.query import check_text
from o1_retriever.reporting import Problems, counted, progress
from o1_retriever.storage import locked, written_whole
from o1_retriever.thought import Vector
from o1_retriever.vectors import check_dim, unit

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]

_BOM = codecs.BOM_UTF8
EXCLUDED = "excluded"
_HEADER = ("query-id", "corpus-id", "score")


class CollectionReport(Problems):
    """The problems of a collection; empty when it is sound."""

    # What is done about each when the collection is used all the same.
    remedies: ClassVar[Mapping[str, str]] = {
        "byte order mark": "ignored",
        "Windows line ends": "ignored",
        "not UTF-8": "the line is left out",
        "not JSON": "the line is left out",
        "wrong fields": "the line is left out",
        "duplicate document id": "the first is kept",
        "duplicate query id": "the first is kept",
        "empty document": "left out of the corpus",
        "empty query": "left out",
        "broken document": "a lone surrogate; left out of the corpus",
        "broken query": "a lone surrogate; left out",
        "no header": "the first line is read as a judgment",
        "wrong header": "the columns are read as query, document, score",
        "wrong columns": "the line is left out",
        "wrong score": "the line is left out",
        "duplicate judgment": "the first is kept",
        "judged document missing": "the judgment counts as never found",
        "judged query missing": "its judgments are left out",
        "query without relevant document": "it counts as 0",
        "wrong exclusion": "the line is left out",
    }
    error = CollectionError


class Corpus:
    """The documents of a `corpus.jsonl`; only ids and places in the file are held in memory.

    Making one reads the file once and adds what is wrong with it to `report`. `ids` are in the order of the
    file, each once; `digest` is the same for the same ids and texts in the same order.
    """

    def __init__(self, path: Path, report: CollectionReport) -> None:
        self.path = path
        self.ids: list[str] = []
        offsets: list[int] = []
        digest = hashlib.blake2b(digest_size=16)
        for identity, text, offset in _texts(path, report, "document", joined):
            self.ids.append(identity)
            offsets.append(offset)
            digest.update(json.dumps([identity, text]).encode())
        self.digest = digest.hexdigest()
        self._offsets: NDArray[np.int64] = np.asarray(offsets, dtype=np.int64)

    def texts(self, start: int, stop: int) -> list[str]:
        """The documents `start` to `stop - 1` as title, space, text, read from the file now.

        Raises `CollectionError` when the file is no longer what it was.
        """
        with self.path.open("rb") as file:
            texts = []
            for identity, offset in zip(self.ids[start:stop], self._offsets[start:stop], strict=True):
                file.seek(int(offset))
                row = _row(file.readline(), self.path.name, CollectionReport(""))
                if row is None or row["_id"] != identity:
                    raise CollectionError(
                        f"{self.path} has changed while it was read: {identity!r} is not there."
                    )
                texts.append(joined(row))
        return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What retrieval is measured on: a corpus, the judged queries of one split, and their judgments.

    `queries` maps id to text and `qrels` query id to document id to grade (0: judged not relevant).
    `excluded` has for some queries the documents that must not be found, as in BRIGHT: those that a question
    was made of. `report` says what was wrong with the files.
    """

    name: str
    split: str
    corpus: Corpus
    queries: Mapping[str, str]
    qrels: Qrels
    report: CollectionReport
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def with_queries(self, queries: Mapping[str, str], *, name: str | None = None) -> Collection:
        """The same documents and judgments under other wordings of (some of) the queries.

        Queries without judgments are left out. Raises `CollectionError` when none is left.
        """
        kept = {key: text for key, text in queries.items() if key in self.qrels}
        if not kept:
            given = counted(len(queries), "query", "queries")
            raise CollectionError(f"None of {given} is judged in {self.name}, split {self.split}.")
        qrels = {key: self.qrels[key] for key in kept}
        return replace(self, queries=kept, qrels=qrels, name=name or self.name)


def load_collection(
    folder: str | os.PathLike[str], *, split: str = "test", strict: bool = False
) -> Collection:
    """Read a folder with `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

    `excluded/<split>.tsv`, where it is there, has the documents that must not be found for a query. Queries
    that the split does not judge are left out. What is wrong with the files is in the collection's `report`;
    with `strict` it is raised. Raises `CollectionError` for missing files, and for a collection in which
    nothing can be measured.
    """
    root = Path(folder)
    paths = [root / "corpus.jsonl", root / "queries.jsonl", root / "qrels" / f"{split}.tsv"]
    if missing := [path for path in paths if not path.is_file()]:
        hint = "A folder in BEIR format has corpus.jsonl, queries.jsonl and qrels/<split>.tsv."
        if missing == paths[-1:] and splits_of(root):
            hint = f"Splits of this collection: {', '.join(splits_of(root))}."
        raise CollectionError(f"There is no file {missing[0]}.", hint=hint)
    report = CollectionReport(str(root))
    corpus = Corpus(paths[0], report)
    queries = read_queries(paths[1], report)
    qrels = check_qrels(read_qrels(paths[2], report), queries, frozenset(corpus.ids), report)
    excluded = read_excluded(root / EXCLUDED / f"{split}.tsv", report)
    if strict:
        report.raise_if_any()
    if not corpus.ids or not qrels:
        documents = counted(len(corpus.ids), "usable document")
        judged_queries = counted(len(qrels), "judged query", "judged queries")
        raise CollectionError(
            f"{root} has {documents} and {judged_queries} in the split {split!r}; "
            f"expected some of each.\n{report}"
        )
    judged = {key: queries[key] for key in qrels}
    return Collection(
        name=root.name,
        split=split,
        corpus=corpus,
        queries=judged,
        qrels=qrels,
        report=report,
        excluded=excluded,
    )


def splits_of(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the splits that a folder in BEIR format has judgments for."""
    return sorted(path.stem for path in (Path(folder) / "qrels").glob("*.tsv"))


def joined(row: Mapping[str, Any]) -> str:
    """A document as title, space, text; just the text where there is no title."""
    return f"{row.get('title') or ''} {row.get('text') or ''}".strip()


def _texts(
    path: Path, report: CollectionReport, noun: str, text_of: Callable[[dict[str, Any]], str]
) -> Iterator[tuple[str, str, int]]:
    """(id, text, offset in bytes) of every document or query that can be used, each id once."""
    known: set[str] = set()
    for where, offset, line in _lines(path, report):
        row = _row(line, where, report)
        if row is None:
            continue
        identity, text = row["_id"], text_of(row).strip()
        if identity in known:
            report.add(f"duplicate {noun} id", f"{identity!r:.60} in {where}")
            continue
        try:
            check_text(text, what="text")
        except InputError:
            report.add(f"broken {noun}" if text else f"empty {noun}", f"{identity!r:.60} in {where}")
            continue
        known.add(identity)
        yield identity, text, offset


def _lines(path: Path, report: CollectionReport) -> Iterator[tuple[str, int, bytes]]:
    """(place, offset in bytes, line) of every line that is not blank, without a byte order mark."""
    offset, windows = 0, False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line
            if number == 1 and line.startswith(_BOM):
                report.add("byte order mark", path.name)
                content = line.removeprefix(_BOM)
            if not windows and line.endswith(b"\r\n"):
                windows = True
                report.add("Windows line ends", path.name)
            if content.strip():
                yield f"{path.name}, line {number}", offset, content
            offset += len(line)


def _row(line: bytes, where: str, report: CollectionReport) -> dict[str, Any] | None:
    """The object with a string `_id`, or an `id` where there is none, that a line holds."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        report.add("not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON", where)
        return None
    if not isinstance(row, dict):
        report.add("wrong fields", f"{where} is a {type(row).__name__}")
        return None
    if row.get("_id") is None and "id" in row:
        row["_id"] = row.pop("id")
    if isinstance(row.get("_id"), int) and not isinstance(row["_id"], bool):
        row["_id"] = str(row["_id"])
    for name in ("_id", "text", "title"):
        value = row.get(name)
        sound = isinstance(value, str) and (value.strip() or name != "_id")
        if not sound and (value is not None or name == "_id"):
            report.add("wrong fields", f"{where} has {name} {value!r:.40}")
            return None
    return row


def read_queries(path: Path, report: CollectionReport) -> dict[str, str]:
    """Read the texts of the queries that can be used, by id, whatever split judges them."""
    texts = _texts(path, report, "query", lambda row: row.get("text") or "")
    return {key: text for key, text, _ in texts}


def read_qrels(path: Path, report: CollectionReport) -> dict[str, dict[str, int]]:
    """Read judgments by query: tab-separated query, document, score under BEIR's header.

    TREC's four columns (query, 0, document, score), with or without tabs, are understood too.
    """
    qrels: dict[str, dict[str, int]] = {}
    first = True
    for where, _, raw in _lines(path, report):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            report.add("not UTF-8", where)
            continue
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
        header = first and _is_header(columns, where, report)
        first = False
        if not header:
            _judge(qrels, columns, where, report)
    return qrels


def read_excluded(path: Path, report: CollectionReport) -> dict[str, frozenset[str]]:
    """Read which documents must not be found for a query: a header, then query, a tab, document.

    Nothing where there is no such file.
    """
    found: dict[str, set[str]] = {}
    for number, (where, _, raw) in enumerate(_lines(path, report) if path.is_file() else ()):
        columns = [column.strip() for column in raw.decode("utf-8", errors="replace").split("\t")]
        if number == 0 and tuple(columns) == _HEADER[:2]:
            continue
        if len(columns) != 2 or not all(columns):
            report.add("wrong exclusion", f"{where} has {counted(len(columns), 'column')}, expected 2")
            continue
        found.setdefault(columns[0], set()).add(columns[1])
    return {query: frozenset(documents) for query, documents in found.items()}


def check_qrels(
    qrels: Mapping[str, Mapping[str, int]],
    queries: Mapping[str, str],
    documents: frozenset[str],
    report: CollectionReport,
) -> dict[str, dict[str, int]]:
    """The judgments of known queries; what refers to nothing is reported.

    A judgment of a document that is not in the corpus stays, as in BEIR: it can never be found.
    """
    kept: dict[str, dict[str, int]] = {}
    for query, judged in qrels.items():
        if query not in queries:
            report.add("judged query missing", repr(query))
            continue
        for document in judged:
            if document not in documents:
                report.add("judged document missing", f"{document!r:.60} of query {query!r:.60}")
        if not any(grade > 0 for grade in judged.values()):
            report.add("query without relevant document", repr(query))
        kept[query] = dict(judged)
    return kept


def _is_header(columns: list[str], where: str, report: CollectionReport) -> bool:
    if tuple(columns) == _HEADER:
        return True
    if columns and _grade(columns[-1]) is not None:
        report.add("no header", f"{where} is {' '.join(columns)!r:.60}")
        return False
    report.add("wrong header", f"{where} is {' '.join(columns)!r:.60}; expected {' '.join(_HEADER)!r}")
    return True


def _judge(
    qrels: dict[str, dict[str, int]], columns: list[str], where: str, report: CollectionReport
) -> None:
    if len(columns) == 4:
        del columns[1]
    if len(columns) != 3 or not all(columns[:2]):
        report.add("wrong columns", f"{where} has {counted(len(columns), 'column')}, expected 3")
        return
    query, document, score = columns
    grade = _grade(score)
    if grade is None:
        report.add("wrong score", f"{where} has {score!r:.40}, expected a whole number")
    elif document in qrels.setdefault(query, {}):
        report.add("duplicate judgment", f"{document!r:.60} of query {query!r:.60} in {where}")
    else:
        qrels[query][document] = grade


def _grade(text: str) -> int | None:
    """A whole number, also when it is written as a float; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


logger = logging.getLogger(__name__)

# Documents per block. Blocks start at multiples of it whatever happened before, so that a document always
# shares its batch with the same others and has the same vector to the last bit.
BLOCK = 2048
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedCorpus:
    """The unit vectors of a corpus: a read-only memory map of float32 (documents, dimension).

    `seconds` is what encoding took in all, over every run that did a part of it.
    """

    matrix: Vector
    seconds: float

    @property
    def documents_per_second(self) -> float:
        """The rate of encoding."""
        return len(self.matrix) / self.seconds if self.seconds else 0.0


def encode_corpus(
    embedder: DocumentEmbedder,
    corpus: Corpus,
    folder: str | os.PathLike[str],
    *,
    truncate_dim: int | None = None,
) -> EncodedCorpus:
    """Encode a corpus into a file below `folder`, or take what is there from before.

    The file belongs to this corpus, document space and precision. It grows by blocks, each on
    disk before it counts: a run killed anywhere is continued by the next one, and the vectors are the same.
    `truncate_dim` is applied on reading, so that every dimension shares one file.
    """
    dimension = embedder.space.dimension
    check_dim(truncate_dim, dimension)
    count = len(corpus.ids)
    path = Path(folder) / _name(embedder, corpus)
    path.parent.mkdir(parents=True, exist_ok=True)
    # As long as it takes: another run may be encoding the same corpus.
    with locked(path.with_suffix(".lock"), patience=math.inf):
        seconds = _fill(embedder, corpus, path)
    matrix: Vector = np.memmap(path, dtype=np.float32, mode="r", shape=(count, dimension))
    if truncate_dim not in (None, dimension):
        matrix = unit(np.array(matrix[:, :truncate_dim], dtype=np.float32))
    return EncodedCorpus(matrix=matrix, seconds=seconds)


def _fill(embedder: DocumentEmbedder, corpus: Corpus, path: Path) -> float:
    dimension, count = embedder.space.dimension, len(corpus.ids)
    done, seconds = _progress_of(path, dimension)
    with path.open("r+b" if done else "wb") as file, progress("Encoding", count, show=None) as advance:
        # Whatever follows the last counted block was under way when the run was killed.
        file.truncate(done * dimension * 4)
        file.seek(0, os.SEEK_END)
        advance(done)
        for first in range(done, count, BLOCK):
            started = time.perf_counter()
            texts = corpus.texts(first, min(first + BLOCK, count))
            rows = embedder.encode_documents(texts, batch_size=_BATCH, show_progress_bar=False)
            file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
            seconds += time.perf_counter() - started
            with written_whole(path.with_suffix(".json")) as note:
                json.dump({"rows": first + len(texts), "seconds": seconds}, note)
            advance(len(texts))
    return seconds


def _name(embedder: DocumentEmbedder, corpus: Corpus) -> str:
    key = {
        "space": embedder.space.to_dict(),
        "precision": embedder.precision.to_dict(),
        "corpus": corpus.digest,
        "batch_size": _BATCH,
        "block": BLOCK,
    }
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16)
    return f"{digest.hexdigest()}.f32"


def _progress_of(path: Path, dimension: int) -> tuple[int, float]:
    """(rows that are on disk for certain, seconds they took)."""
    try:
        noted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        rows, seconds = int(noted["rows"]), float(noted["seconds"])
        if path.stat().st_size >= rows * dimension * 4:
            return rows, seconds
        logger.warning("%s is shorter than it was: the corpus is encoded anew", path)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): the corpus is encoded anew", path.with_suffix(".json"), error)
    return 0, 0.0
