"""The rows of a training run as numbers: built once from the files, then mapped by every process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from o1_retriever.reporting import counted, progress
from o1_retriever_training.joint.layouts import AnyTemplate
from o1_retriever_training.joint.recipe import DataSection, Source
from o1_retriever_training.rows import (
    DataError,
    RowProblems,
    TrainingRow,
    count_rows,
    digest,
    read_corpus,
    read_rows,
)
from o1_retriever_training.scorers import EncoderScorer, Target

_IDS, _ROWS, _REPORT = "ids.bin", "rows.npz", "report.json"
_TAUGHT, _INDEX = "teacher.bin", "index.bin"  # vectors
_FORMAT = 5
_AT_ONCE = 2000  # texts that are tokenised or embedded together
_MARKERS = 2  # around a text
Numbers: TypeAlias = NDArray[np.int64]
Waiting: TypeAlias = tuple[int, str, Any]
Convert: TypeAlias = Callable[[Sequence[Waiting]], Iterable[NDArray[Any]]]
RowList = Literal["thoughts", "positives", "negatives", "scores", "composed", "answers"]
_LISTS: tuple[RowList, ...] = get_args(RowList)


def text_key(text: str) -> int:
    """63 bits that stand for a text, never 0: two documents with the same key are the same document."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


class Texts:
    """Token ids by a text's number, mapped from disk; `keys` (texts,) has the `text_key` of each."""

    def __init__(self, path: Path, starts: Numbers, keys: Numbers) -> None:
        self.keys = keys
        self._starts = starts
        # An empty file cannot be mapped.
        self._ids = np.memmap(path, np.uint32, mode="r") if starts[-1] else np.zeros(0, np.uint32)

    def __len__(self) -> int:
        return len(self.keys)

    def ids(self, number: int) -> list[int]:
        """Token ids of a text, without markers."""
        ids: list[int] = self._ids[self._starts[number] : self._starts[number + 1]].tolist()
        return ids

    @property
    def lengths(self) -> Numbers:
        """Tokens of every text, (texts,)."""
        return np.diff(self._starts)


class _Writer:
    """Gives each different text a number and an array in a file, in the order of their numbers.

    Texts wait until there are enough of them for `convert`: (number, text, how it is read) of each.
    """

    def __init__(self, path: Path, convert: Convert) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._convert = path.open("wb"), convert
        self._numbers: dict[tuple[int, Hashable], int] = {}
        self._waiting: list[Waiting] = []
        self.keys: list[int] = []
        self.lengths: list[int] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def number(self, text: str, how: Hashable) -> int:
        """The number of a text that is read like this."""
        key = text_key(text)
        known = self._numbers.setdefault((key, how), len(self.keys))
        if known == len(self.keys):
            self.keys.append(key)
            self._waiting.append((known, text, how))
            if len(self._waiting) >= _AT_ONCE:
                self.flush()
        return known

    def flush(self) -> None:
        """Convert what waits."""
        for array in self._convert(self._waiting) if self._waiting else ():
            self.lengths.append(len(array))
            self._file.write(array.tobytes())
        self._waiting = []


def _embedding(encoder: Any) -> Convert:
    """What embeds texts as queries or documents: a name as for a committee, or an encoder of the caller's."""
    encode = EncoderScorer(encoder).encode

    def embed(waiting: Sequence[Waiting]) -> Iterable[NDArray[Any]]:
        found: dict[int, NDArray[np.float16]] = {}
        for target in get_args(Target):
            own = {number: text for number, text, read_as in waiting if read_as == target}
            if own:
                found |= zip(own, encode(list(own.values()), target).astype(np.float16), strict=True)
        return [found[number] for number, *_ in waiting]

    return embed


@dataclass(slots=True)
class DataReport:
    """What a run trains on: rows by source, what they lack, and what was too long and was cut."""

    rows: dict[str, int] = field(default_factory=dict)
    without_thought: int = 0
    without_positive: int = 0
    unusable: int = 0
    cut_queries: int = 0
    cut_thoughts: int = 0
    cut_documents: int = 0
    texts: int = 0
    tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(self.rows.values())
        parts = [f"{counted(total, 'row')}, {counted(self.texts, 'text')}, {counted(self.tokens, 'token')}"]
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
                parts.append(f"{counted(count, noun, plural)} {what}")
        return "; ".join([*parts, *self.problems])


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
        with np.load(folder / _ROWS) as stored:
            arrays = {name: stored[name] for name in stored.files}
        self.texts = Texts(folder / _IDS, arrays["starts"], arrays["keys"])
        self.query: Numbers = arrays["query"]
        self.document: Numbers = arrays["document"]
        self._around = int(arrays["around"])
        self.source: Numbers = arrays["source"]
        self.ids: Numbers = arrays["ids"]
        self.taught: Numbers = arrays["taught"]
        found: list[NDArray[np.float16] | None] = []
        for name, count in zip((_TAUGHT, _INDEX), arrays["vectors"].tolist(), strict=True):
            # -1 says that there are none to learn from; what is empty cannot be mapped.
            empty = None if count < 0 else np.zeros((0, 0), np.float16)
            found.append(np.memmap(folder / name, np.float16, "r").reshape(count, -1) if count > 0 else empty)
        self.teacher, self.index = found
        self._lists = {name: (arrays[name], arrays[f"{name}_starts"]) for name in _LISTS}
        self.report = DataReport(**json.loads((folder / _REPORT).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self.query)

    def of(self, row: int, name: RowList) -> NDArray[Any]:
        """One of the lists of a row.

        `thoughts` that may be trained on, the one to take first; `positives`; `negatives`; the teacher's
        `scores` of the positives and then of the negatives, nan where it gave none; `composed`, its vectors
        of the query followed by each thought; `answers`, the positives as rows of the index.
        """
        values, starts = self._lists[name]
        found: NDArray[Any] = values[starts[row] : starts[row + 1]]
        return found

    @property
    def lengths(self) -> Numbers:
        """Tokens of each row's longest sequence, the documents of its query left out, (rows,)."""
        own = self.texts.lengths
        text = own[np.maximum(self.query, self.document)] + _MARKERS
        values, starts = self._lists["thoughts"]
        longest = [max((own[t] for t in values[a:b]), default=-1) for a, b in pairwise(starts)]
        thought = np.asarray(longest, np.int64)
        return np.where(thought < 0, text, text + thought + self._around - _MARKERS)


def open_rows(
    data: DataSection, template: AnyTemplate, work: Path, *, show: bool | None = None, teacher: Any = None
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


def _signature(data: DataSection, template: AnyTemplate) -> str:
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
        [template.layout, len(template.prompt([0]))],
        hashlib.blake2b(json.dumps(words).encode()).hexdigest(),
        # Two tokenizers of one vocabulary may cut text differently.
        str(template.text_ids(["The quick brown Fox's  naïve jump, 1234!", "Größe <emb>\n\ttab"])),
    ]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


class _Builder:
    """One pass over the sources."""

    def __init__(self, data: DataSection, template: AnyTemplate, folder: Path, teacher: Any = None) -> None:
        self._data, self._template, self._folder = data, template, folder
        self._embed = _embedding(teacher or data.teacher.encoder) if data.teacher else None
        markers = template.max_length - template.max_document
        self._limits = {
            "query": template.max_query_text,
            "thought": template.max_length,
            "document": min(template.max_document, data.max_document_tokens - markers),
        }
        self._cut: set[int] = set()
        self._ids: dict[int, int] = {}
        self._taught: dict[int, int] = {}  # a text's number: the row of its teacher's vector
        self._places: dict[int, int] = {}  # a text's key: its row of the index
        self._rows: dict[str, list[int]] = {"query": [], "document": [], "source": []}
        self._flat: dict[str, list[Any]] = {name: [] for name in _LISTS}
        self._starts: dict[str, list[int]] = {name: [0] for name in _LISTS}
        self._report = DataReport()

    def build(self, show: bool | None) -> DataReport:
        """Write the folder."""
        indexed = self._embed_index()
        with contextlib.ExitStack() as stack:
            self._texts = stack.enter_context(_Writer(self._folder / _IDS, self._tokenise))
            self._vectors = None
            if self._embed is not None:
                self._vectors = stack.enter_context(_Writer(self._folder / _TAUGHT, self._embed))
            for number, source in enumerate(self._data.train):
                self._read(number, source, show)
            self._texts.flush()
            if self._vectors is not None:
                self._vectors.flush()
        lengths = np.asarray(self._texts.lengths, np.int64)
        arrays: dict[str, Any] = {
            "starts": np.concatenate([[0], np.cumsum(lengths)]),
            "keys": self._texts.keys,
            "ids": _scattered(self._ids, len(lengths), 0),
            "taught": _scattered(self._taught, len(lengths), -1),
            "around": len(self._template.prompt([0])) - 1 + self._template.tail,
            "vectors": [-1 if self._vectors is None else len(self._vectors.keys), indexed],
            **self._rows,
            **self._flat,
            **{f"{name}_starts": starts for name, starts in self._starts.items()},
        }
        for name, value in arrays.items():
            arrays[name] = np.asarray(value, np.float64 if name == "scores" else np.int64)
        np.savez(self._folder / _ROWS, **arrays)
        report = self._report
        report.texts, report.tokens = len(lengths), int(lengths.sum())
        report.cut_queries = len(self._cut.intersection(self._rows["query"]))
        documents = (self._rows["document"], self._flat["positives"], self._flat["negatives"])
        report.cut_documents = len(self._cut.intersection(chain(*documents)))
        # Thoughts that have no room behind their query.
        markers = len(self._template.prompt([0])) - 1
        queries = np.repeat(np.asarray(self._rows["query"], np.int64), np.diff(self._starts["thoughts"]))
        room = self._template.room(range(markers)) - lengths[queries]
        report.cut_thoughts = int((lengths[np.asarray(self._flat["thoughts"], np.int64)] > room).sum())
        return report

    def _tokenise(self, waiting: Sequence[Waiting]) -> Iterable[NDArray[Any]]:
        rows = self._template.text_ids([text for _, text, _ in waiting])
        for (number, _, most), row in zip(waiting, rows, strict=True):
            if len(row) > most:
                self._cut.add(number)
            yield np.asarray(row[:most], np.uint32)

    def _embed_index(self) -> int:
        """Write the index's vectors, and remember which text is where; their number, -1 without an index."""
        index = self._data.index
        if index is None:
            return -1
        embed = self._embed if index.encoder is None else _embedding(index.encoder)
        assert embed is not None, "the recipe has been checked"
        with _Writer(self._folder / _INDEX, embed) as writer:
            for text in read_corpus(index.corpus).texts:
                self._places[text_key(text)] = writer.number(text, "document")
            writer.flush()
        return len(writer.keys)

    def _read(self, number: int, source: Source, show: bool | None) -> None:
        problems = RowProblems(str(source.path))
        total = count_rows(source.path, show=show)
        taken = 0
        with progress(f"Tokenising {source.title}", total, show=show) as advance:
            for row in islice(read_rows(source.path, problems), source.rows):
                taken += self._take(number, row, source)
                advance(1)
        self._report.rows[source.title] = taken
        if len(problems):
            self._report.problems.append(str(problems))

    def _take(self, number: int, row: TrainingRow, source: Source) -> bool:
        """Add a row unless nothing can be learned from it."""
        if source.kind == "documents" or getattr(row, "kind", None) == "document":
            text = f"{getattr(row, 'title', None) or ''} {row.query}".strip()
            self._add(number, document=self._number(text, "document"))
            return True
        thoughts = _thoughts(row, source)
        embeds = self._template.embeds_documents
        if not thoughts and not (row.pos and embeds) and self._vectors is None:
            self._report.unusable += 1
            return False
        self._report.without_thought += not thoughts
        self._report.without_positive += embeds and not row.pos
        documents: dict[str, Any] = {}
        # A thinker's texts are its queries and thoughts alone.
        kinds = (("positives", row.pos, "pos_ids"), ("negatives", row.neg, "neg_ids"))
        for name, texts, ids in kinds if embeds else ():
            documents[name] = [self._number(text, "document") for text in texts]
            self._ids |= _id_keys(documents[name], getattr(row, ids, None))
        taught = [] if self._vectors is None else [f"{row.query} {thought}" for thought in thoughts]
        places = (self._places.get(text_key(text)) for text in row.pos)
        self._add(
            number,
            query=self._number(row.query, "query"),
            thoughts=[self._number(text, "thought") for text in thoughts],
            scores=_scores(row) if embeds else [],
            composed=[self._vectors.number(text, "query") for text in taught if self._vectors],
            answers=sorted({place for place in places if place is not None}),
            **documents,
        )
        return True

    def _add(self, source: int, *, query: int = -1, document: int = -1, **lists: Sequence[float]) -> None:
        for name, value in (("query", query), ("document", document), ("source", source)):
            self._rows[name].append(value)
        for name in _LISTS:
            self._flat[name].extend(lists.get(name, ()))
            self._starts[name].append(len(self._flat[name]))

    def _number(self, text: str, kind: Literal["query", "thought", "document"]) -> int:
        number = self._texts.number(text, self._limits[kind])
        if self._vectors is not None and kind != "thought":
            self._taught.setdefault(number, self._vectors.number(text, kind))
        return number


def _scattered(values: dict[int, int], count: int, missing: int) -> Numbers:
    found = np.full(count, missing, np.int64)
    found[list(values)] = list(values.values())
    return found


def _thoughts(row: TrainingRow, source: Source) -> list[str]:
    """Which thoughts of a row are trained on: the elected one, the first usable one, or any of them."""
    usable = [row.all_thought[place] or "" for place in row.usable]
    elected = [row.thought] if row.thought else []
    known = {"none": [], "elected": elected, "first": usable[:1] or elected, "any": usable or elected}
    return known[source.thoughts]


def _id_keys(numbers: Sequence[int], ids: Any) -> dict[int, int]:
    """What stands for the id of each text; nothing where a row has not one for each of its documents."""
    if not isinstance(ids, list) or len(ids) != len(numbers):
        return {}
    # No text begins like this, so that no text is taken for an id.
    known = [(number, id_) for number, id_ in zip(numbers, ids, strict=True) if id_ is not None]
    return {number: text_key(f"\0id {id_}") for number, id_ in known}


def _scores(row: TrainingRow) -> list[float]:
    def filled(scores: list[float] | None, count: int) -> list[float]:
        given = list(scores or [])[:count]
        return given + [float("nan")] * (count - len(given))

    return filled(row.pos_scores, len(row.pos)) + filled(row.neg_scores, len(row.neg))
