"""Vectors that a model learns from and that do not change: a teacher's of the same texts, and an index's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from o1_retriever_training.errors import DataError
from o1_retriever_training.reading import RowProblems, read_values
from o1_retriever_training.scorers import EncoderScorer, Target

Encode: TypeAlias = Callable[[Sequence[str], Target], NDArray[np.float32]]
_AT_ONCE = 2000


def encoder_of(name: Any) -> Encode:
    """What embeds texts as queries or documents: a name as for a committee, or an encoder of the caller's."""
    return EncoderScorer(name).encode


class VectorWriter:
    """Collects texts; `number(text)` gives each different one its row in a file of unit vectors, float16."""

    def __init__(self, path: Path, encode: Encode) -> None:
        self._path, self._encode = path, encode
        self._numbers: dict[tuple[str, Target], int] = {}
        self._waiting: dict[Target, list[tuple[int, str]]] = {"query": [], "document": []}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> VectorWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            for read_as in self._waiting:
                self._write(read_as)
        if self._file is not None:
            self._file.close()

    def number(self, text: str, read_as: Target) -> int:
        """The row of a text's vector."""
        key = (text, read_as)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self._waiting[read_as].append((self._numbers[key], text))
            if len(self._waiting[read_as]) >= _AT_ONCE:
                self._write(read_as)
        return self._numbers[key]

    def __len__(self) -> int:
        return len(self._numbers)

    def _write(self, read_as: Target) -> None:
        waiting = self._waiting[read_as]
        if not waiting or self._file is None:
            return
        vectors = self._encode([text for _, text in waiting], read_as).astype(np.float16)
        for (number, _), vector in zip(waiting, vectors, strict=True):
            self._file.seek(number * vector.nbytes)
            self._file.write(vector.tobytes())
        self._waiting[read_as] = []


def read_vectors(path: Path, rows: int) -> NDArray[np.float16]:
    """The vectors (rows, dimension) of a `VectorWriter`, mapped from disk."""
    if not rows:
        return np.zeros((0, 0), dtype=np.float16)
    return np.memmap(path, dtype=np.float16, mode="r").reshape(rows, -1)


def corpus_texts(path: str) -> Iterator[str]:
    """The documents of a corpus, each with its title in front. Raises `DataError` for a line without text."""
    problems = RowProblems(path)
    for place, value in read_values(path, problems):
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise DataError(
                f"{path}, {place}: found {json.dumps(value)[:60]}; expected a document with its text.",
                hint='A line of a corpus is {"text": "...", "title": "..."}; the title may be left out.',
            )
        yield titled(value.get("title"), value["text"])


def titled(title: Any, text: str) -> str:
    """A document's text with its title in front."""
    return f"{title or ''} {text}".strip()
