"""The rows of a training run as numbers: built once from the files, then mapped by every process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from o1_retriever.engine.template import Template
from o1_retriever.progress import progress
from o1_retriever.reporting.text import counted
from o1_retriever_training.errors import DataError
from o1_retriever_training.joint.recipe import DataSection, Source
from o1_retriever_training.joint.teacher import (
    VectorWriter,
    corpus_texts,
    encoder_of,
    read_vectors,
    titled,
)
from o1_retriever_training.reading import RowProblems, count_rows, digest, read_rows
from o1_retriever_training.rows import TrainingRow
from o1_retriever_training.scorers import Target

_IDS, _TABLE = "ids.bin", "texts.npz"
_ROWS, _REPORT = "rows.npz", "report.json"
_FORMAT = 3
Numbers = NDArray[np.int64]
_MARKERS, _MARKERS_OF_THOUGHT = 2, 3  # around a text; before and behind a thought
_TAUGHT, _INDEX = "teacher.bin", "index.bin"  # vectors
_LISTS = ("thoughts", "positives", "negatives", "scores", "composed", "answers")


def text_key(text: str) -> int:
    """63 bits that stand for a text, never 0: two documents with the same key are the same document."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


class Texts:
    """Token ids by a text's number, mapped from disk; `keys` (texts,) has the `text_key` of each."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / _TABLE) as table:
            self._starts: NDArray[np.int64] = table["starts"]
            self.keys: NDArray[np.int64] = table["keys"]
        size = int(self._starts[-1])
        # An empty file cannot be mapped.
        self._ids: NDArray[np.uint32] = (
            np.memmap(folder / _IDS, dtype=np.uint32, mode="r", shape=(size,))
            if size
            else np.zeros(0, dtype=np.uint32)
        )

    def __len__(self) -> int:
        return len(self.keys)

    def ids(self, number: int) -> list[int]:
        """Token ids of a text, without markers."""
        start, end = self._starts[number], self._starts[number + 1]
        return [int(i) for i in self._ids[start:end]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every text, (texts,)."""
        return np.diff(self._starts)


class TextWriter:
    """Collects texts into a folder: `number(text)` gives each different one its place.

    `tokenise` takes a list of texts and gives their ids; a text is cut at `most` tokens, and `cut` counts
    those that were. Texts wait until there are enough of them to tokenise together.
    """

    def __init__(self, folder: Path, tokenise: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self._folder = folder
        self._tokenise = tokenise
        self._numbers: dict[tuple[int, int], int] = {}
        self._keys: list[int] = []
        self._lengths: list[int] = []
        self._waiting: list[tuple[str, int]] = []
        self._file: IO[bytes] | None = None
        self.cut: set[int] = set()

    def __enter__(self) -> TextWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / _IDS).open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is None:
            self._write()
            starts = np.concatenate([[0], np.cumsum(np.asarray(self._lengths, dtype=np.int64))])
            np.savez(
                self._folder / _TABLE, starts=starts.astype(np.int64), keys=np.asarray(self._keys, np.int64)
            )
        self._file.close()

    def number(self, text: str, *, most: int) -> int:
        """The place of a text that is cut at `most` tokens."""
        key = text_key(text)
        known = self._numbers.setdefault((key, most), len(self._keys))
        if known == len(self._keys):
            self._keys.append(key)
            self._waiting.append((text, most))
            if len(self._waiting) >= 2000:
                self._write()
        return known

    def flush(self) -> None:
        """Tokenise what waits, so that `cut` knows of it."""
        self._write()

    def _write(self) -> None:
        if not self._waiting or self._file is None:
            return
        first = len(self._lengths)
        rows = self._tokenise([text for text, _ in self._waiting])
        for place, (row, (_, most)) in enumerate(zip(rows, self._waiting, strict=True)):
            if len(row) > most:
                self.cut.add(first + place)
            kept = row[:most]
            self._lengths.append(len(kept))
            self._file.write(np.asarray(kept, dtype=np.uint32).tobytes())
        self._waiting = []


logger = logging.getLogger(__name__)


@dataclass(slots=True)
class DataReport:
    """What a run trains on: rows by source, what they lack, and what was too long and was cut."""

    rows: dict[str, int] = field(default_factory=dict)
    without_thought: int = 0
    without_positive: int = 0
    unusable: int = 0
    repeated: int = 0
    cut_queries: int = 0
    cut_thoughts: int = 0
    cut_documents: int = 0
    texts: int = 0
    tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(self.rows.values())
        said = [f"{counted(total, 'row')}, {counted(self.texts, 'text')}, {counted(self.tokens, 'token')}"]
        for count, noun, what in (
            (self.without_thought, "row", "without a thought (contrastive loss only)"),
            (self.without_positive, "row", "without a positive (generation loss only)"),
            (self.unusable, "row", "with neither thought nor positive left out"),
            (self.cut_queries, "query", "cut"),
            (self.cut_thoughts, "thought", "cut"),
            (self.cut_documents, "document", "cut"),
        ):
            if count:
                plural = "queries" if noun == "query" else None
                said.append(f"{counted(count, noun, plural)} {what}")
        return "; ".join([*said, *self.problems])


class TrainingRows:
    """Rows by number: a query, its thoughts, positives and negatives as numbers of `texts`.

    A row that is a plain document has that number in `document` and no query; both are -1 for none.
    `teacher` and `index` are vectors that are learned from, one a row of theirs, None without: `taught`
    (texts,) says which of the teacher's belongs to a text.
    `name` stands for files, tokenizer and limits, `source` (rows,) says which file each came from; `ids`
    (texts,) stand for the id that a row's `pos_ids` or `neg_ids` give a document, 0 where it has none: two
    texts with one id are the same document.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.texts = Texts(folder)
        with np.load(folder / _ROWS) as stored:
            arrays = {name: stored[name] for name in stored.files}
        self.query: Numbers = arrays["query"]
        self.document: Numbers = arrays["document"]
        self.source: Numbers = arrays["source"]
        self.taught: Numbers = arrays["taught"]
        taught, indexed = (int(count) for count in arrays["vectors"])
        self.teacher = read_vectors(folder / _TAUGHT, taught) if taught >= 0 else None
        self.index = read_vectors(folder / _INDEX, indexed) if indexed >= 0 else None
        self.ids: Numbers = arrays["ids"]
        self._lists = {name: (arrays[name], arrays[f"{name}_starts"]) for name in _LISTS}
        self.report = DataReport(**json.loads((folder / _REPORT).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self.query)

    def thoughts(self, row: int) -> Numbers:
        """The thoughts that may be trained on, the one to take first; none for a row without."""
        return self._of("thoughts", row)

    def positives(self, row: int) -> Numbers:
        """Its relevant documents."""
        return self._of("positives", row)

    def negatives(self, row: int) -> Numbers:
        """Its hard negatives."""
        return self._of("negatives", row)

    def scores(self, row: int) -> NDArray[np.float64]:
        """The teacher's scores of its positives and then of its negatives, nan where it gave none."""
        return self._of("scores", row).astype(np.float64)

    def composed(self, row: int) -> Numbers:
        """The teacher's vectors of the query followed by each of its thoughts."""
        return self._of("composed", row)

    def answers(self, row: int) -> Numbers:
        """Its positives as rows of the index."""
        return self._of("answers", row)

    @property
    def lengths(self) -> Numbers:
        """Tokens of each row's longest sequence, the documents of its query left out, (rows,)."""
        own = self.texts.lengths
        text = own[np.maximum(self.query, self.document)] + _MARKERS
        values, starts = self._lists["thoughts"]
        longest = [max((own[t] for t in values[a:b]), default=-1) for a, b in pairwise(starts)]
        thought = np.asarray(longest, np.int64)
        return np.where(thought < 0, text, text + thought + _MARKERS_OF_THOUGHT)

    def _of(self, name: str, row: int) -> Numbers:
        values, starts = self._lists[name]
        found: Numbers = values[starts[row] : starts[row + 1]]
        return found


def open_rows(
    data: DataSection, template: Template, work: Path, *, show: bool | None = None, teacher: Any = None
) -> TrainingRows:
    """The rows of a recipe, tokenised into `work` unless the same was done before.

    `teacher` is an encoder of the caller's that stands for the recipe's, which else is loaded by its name.
    Raises `DataError` when a source cannot be read, or when nothing in it can be trained on.
    """
    name = _signature(data, template)
    folder = work / name
    if not (folder / _REPORT).is_file():
        staged = work / f"{name}.{os.getpid()}.part"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            report = _Builder(data, template, staged, teacher).build(show)
            (staged / _REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            staged.rename(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    rows = TrainingRows(folder)
    if not len(rows):
        raise DataError(
            f"None of the rows of {', '.join(str(source.path) for source in data.train)} can be trained on: "
            f"{rows.report}.",
            hint="A row needs a query and a thought or a positive.",
        )
    return rows


def _signature(data: DataSection, template: Template) -> str:
    """Stands for all that decides the numbers: the files, the tokenizer and the limits."""
    words = sorted(template.tokenizer.get_vocab().items())
    content = [
        _FORMAT,
        [
            [digest(source.path), source.rows, source.thoughts, source.title, source.kind]
            for source in data.train
        ],
        data.teacher and data.teacher.encoder,
        data.index and [digest(data.index.corpus), data.index.encoder],
        [template.max_query_text, template.max_length, data.max_document_tokens],
        template.config.layout,
        hashlib.blake2b(json.dumps(words).encode()).hexdigest(),
        str(getattr(template.tokenizer, "backend_tokenizer", "") and _pieces(template)),
    ]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def _pieces(template: Template) -> list[list[int]]:
    # Two tokenizers of one vocabulary may cut text differently.
    return template.text_ids(["The quick brown Fox's  naïve jump, 1234!", "Größe <emb>\n\ttab"])


class _Builder:
    """One pass over the sources."""

    def __init__(self, data: DataSection, template: Template, folder: Path, teacher: Any = None) -> None:
        self._data, self._template, self._folder = data, template, folder
        self._teacher: VectorWriter | None = None
        self._encode = encoder_of(teacher or data.teacher.encoder) if data.teacher else None
        self._taught: dict[int, int] = {}  # a text's number: the row of its teacher's vector
        self._places: dict[int, int] = {}  # a text's key: its row of the index
        self._indexed = -1
        markers = template.max_length - template.max_document
        self._document = min(template.max_document, data.max_document_tokens - markers)
        self._flat: dict[str, list[Any]] = {name: [] for name in _LISTS}
        self._starts: dict[str, list[int]] = {name: [0] for name in _LISTS}
        self._query: list[int] = []
        self._document_of: list[int] = []
        self._source: list[int] = []
        self._ids: dict[int, int] = {}
        self._used: dict[str, set[int]] = {"query": set(), "document": set(), "thought": set()}
        self._report = DataReport()

    def build(self, show: bool | None) -> DataReport:
        """Write the folder."""
        report = self._report
        self._embed_index()
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(TextWriter(self._folder, self._template.text_ids))
            if self._encode is not None:
                self._teacher = stack.enter_context(VectorWriter(self._folder / _TAUGHT, self._encode))
            for number, source in enumerate(self._data.train):
                self._read(number, source, writer, show)
            writer.flush()
        report.cut_queries = len(writer.cut & self._used["query"])
        report.cut_documents = len(writer.cut & self._used["document"])
        texts = Texts(self._folder)
        ids = np.zeros(len(texts), np.int64)
        ids[list(self._ids)] = list(self._ids.values())
        taught = np.full(len(texts), -1, np.int64)
        taught[list(self._taught)] = list(self._taught.values())
        arrays: dict[str, Any] = {
            "query": np.asarray(self._query, np.int64),
            "document": np.asarray(self._document_of, np.int64),
            "source": np.asarray(self._source, np.int64),
            "ids": ids,
            "taught": taught,
            "vectors": np.asarray([-1 if self._teacher is None else len(self._teacher), self._indexed]),
        }
        for name in _LISTS:
            kind = np.float64 if name == "scores" else np.int64
            arrays[name] = np.asarray(self._flat[name], kind)
            arrays[f"{name}_starts"] = np.asarray(self._starts[name], np.int64)
        np.savez(self._folder / _ROWS, **arrays)
        report.texts, report.tokens = len(texts), int(texts.lengths.sum())
        report.cut_thoughts = self._cut_thoughts(texts.lengths)
        return report

    def _embed_index(self) -> None:
        """Write the vectors of the index, and remember which text is where."""
        index = self._data.index
        if index is None:
            return
        encode = self._encode if index.encoder is None else encoder_of(index.encoder)
        assert encode is not None, "the recipe has been checked"
        with VectorWriter(self._folder / _INDEX, encode) as writer:
            for text in corpus_texts(index.corpus):
                self._places[text_key(text)] = writer.number(text, "document")
        self._indexed = len(writer)

    def _cut_thoughts(self, lengths: Numbers) -> int:
        """How many thoughts have no room behind their query."""
        markers = len(self._template.prompt([0])) - 1
        queries = np.repeat(np.asarray(self._query, np.int64), np.diff(self._starts["thoughts"]))
        room = self._template.room(range(markers)) - lengths[queries]
        return int((lengths[np.asarray(self._flat["thoughts"], np.int64)] > room).sum())

    def _read(self, number: int, source: Source, writer: TextWriter, show: bool | None) -> None:
        problems = RowProblems(str(source.path))
        total = count_rows(source.path, show=show)
        rows: Iterator[TrainingRow] = islice(read_rows(source.path, problems), source.rows)
        taken = 0
        with progress(f"Tokenising {source.title}", total, show=show) as advance:
            for row in rows:
                taken += self._take(number, row, source, writer)
                advance(1)
        self._report.rows[source.title] = taken
        if len(problems):
            self._report.problems.append(str(problems))

    def _take(self, number: int, row: TrainingRow, source: Source, writer: TextWriter) -> bool:
        if is_document(row, source):
            self._take_document(number, titled(getattr(row, "title", None), row.query), writer)
            return True
        thoughts = _thoughts(row, source)
        if not thoughts and not row.pos and self._teacher is None:
            self._report.unusable += 1
            return False
        self._report.without_thought += not thoughts
        self._report.without_positive += not row.pos
        self._query.append(self._number(row.query, "query", writer, self._template.max_query_text))
        self._document_of.append(-1)
        self._source.append(number)
        most = self._template.max_length
        self._list("thoughts", [self._number(text, "thought", writer, most) for text in thoughts])
        for name, texts, ids in (("positives", row.pos, "pos_ids"), ("negatives", row.neg, "neg_ids")):
            numbers = [self._number(text, "document", writer, self._document) for text in texts]
            self._list(name, numbers)
            self._ids |= _id_keys(numbers, getattr(row, ids, None))
        self._list("scores", _scores(row))
        taught = [] if self._teacher is None else [f"{row.query} {thought}" for thought in thoughts]
        self._list("composed", [self._teacher.number(text, "query") for text in taught if self._teacher])
        places = (self._places.get(text_key(text)) for text in row.pos)
        self._list("answers", sorted({place for place in places if place is not None}))
        return True

    def _take_document(self, number: int, text: str, writer: TextWriter) -> None:
        self._query.append(-1)
        self._document_of.append(self._number(text, "document", writer, self._document))
        self._source.append(number)
        for name in _LISTS:
            self._list(name, [])

    def _number(self, text: str, kind: str, writer: TextWriter, most: int) -> int:
        number = writer.number(text, most=most)
        self._used[kind].add(number)
        if self._teacher is not None and kind != "thought":
            read_as: Target = "query" if kind == "query" else "document"
            self._taught.setdefault(number, self._teacher.number(text, read_as))
        return number

    def _list(self, name: str, values: Sequence[Any]) -> None:
        self._flat[name].extend(values)
        self._starts[name].append(len(self._flat[name]))


def is_document(row: TrainingRow, source: Source) -> bool:
    """Whether a row is a plain document: its text stands where others have a query."""
    return source.kind == "documents" or getattr(row, "kind", None) == "document"


def _thoughts(row: TrainingRow, source: Source) -> list[str]:
    """Which thoughts of a row are trained on: the elected one, the first usable one, or any of them."""
    usable = [row.all_thought[place] or "" for place in row.usable]
    if source.thoughts == "none":
        return []
    if source.thoughts == "any":
        return usable or [text for text in [row.thought] if text]
    if source.thoughts == "first":
        return usable[:1] or [text for text in [row.thought] if text]
    return [row.thought] if row.thought else []


def _id_keys(numbers: Sequence[int], ids: Any) -> dict[int, int]:
    """What stands for the id of each text; nothing where a row has not one for each of its documents."""
    if not isinstance(ids, list) or len(ids) != len(numbers):
        return {}
    # No text begins like this, so that no text is taken for an id.
    known = [(number, one) for number, one in zip(numbers, ids, strict=True) if one is not None]
    return {number: text_key(f"\0id {one}") for number, one in known}


def _scores(row: TrainingRow) -> list[float]:
    def filled(scores: list[float] | None, count: int) -> list[float]:
        given = list(scores or [])[:count]
        return given + [float("nan")] * (count - len(given))

    return filled(row.pos_scores, len(row.pos)) + filled(row.neg_scores, len(row.neg))
