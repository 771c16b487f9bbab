"""Teachers: who scores documents for a query, so that a student can be trained towards those scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from o1_retriever.errors import SettingsError
from o1_retriever.extras import require
from o1_retriever_training.committee import COSINE_SCALE, Judge
from o1_retriever_training.dense import Dense

CROSS = "cross-encoder:"

Asked = tuple[str, Sequence[str]]  # a query and its documents


class Teacher(Protocol):
    """Anything that scores documents for queries, higher for better."""

    @property
    def name(self) -> str:
        """How the manifest calls it."""
        ...

    def scores(self, asked: Sequence[Asked]) -> list[list[float]]:
        """For each query one score per document."""
        ...


class DenseTeacher:
    """Cosine x 100 between a query, read as a query, and its documents."""

    def __init__(self, model: Any) -> None:
        self.name = os.fspath(model) if isinstance(model, str | os.PathLike) else type(model).__name__
        self._model = model
        self._dense: Dense | None = None

    def scores(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Embed every different text once."""
        self._dense = self._dense or Dense(self._model)
        documents = list(dict.fromkeys(text for _, texts in asked for text in texts))
        if not documents:
            return [[] for _ in asked]
        places = {text: place for place, text in enumerate(documents)}
        vectors = self._dense.documents(documents)
        queries = self._dense.queries([query for query, _ in asked])
        return [
            (COSINE_SCALE * (vectors[[places[text] for text in texts]] @ query)).tolist()
            for query, (_, texts) in zip(queries, asked, strict=True)
        ]


class PairTeacher:
    """A function(texts, queries) that returns one number per pair; all pairs are asked about at once."""

    def __init__(self, function: Judge, *, name: str) -> None:
        self.name = name
        self._function = function

    def scores(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Ask about every document with its query."""
        texts = [text for _, documents in asked for text in documents]
        queries = [query for query, documents in asked for _ in documents]
        found = [float(value) for value in self._function(texts, queries)] if texts else []
        if len(found) != len(texts):
            raise SettingsError(f"The teacher {self.name} returned {len(found)} scores, not {len(texts)}.")
        values = iter(found)
        return [[next(values) for _ in documents] for _, documents in asked]


def as_teacher(value: Any) -> Teacher:
    """A teacher from what users have.

    That is a sentence-transformers model or one of ours (loaded, or its name), "minilm", a cross-encoder
    (loaded, or "cross-encoder:NAME"), or a function(texts, queries). Raises `SettingsError` for another.
    """
    if isinstance(value, str) and value.startswith(CROSS):
        package = require("sentence_transformers", extra="train", purpose="A cross-encoder as the teacher")
        return _of_cross_encoder(package.CrossEncoder(value.removeprefix(CROSS)), value)
    if hasattr(value, "predict"):
        return _of_cross_encoder(value, type(value).__name__)
    if isinstance(value, str | os.PathLike) or hasattr(value, "encode") or hasattr(value, "embed_documents"):
        return DenseTeacher(value)
    if hasattr(value, "encode_documents"):
        return DenseTeacher(value)
    if callable(value):
        return PairTeacher(value, name=getattr(value, "__name__", type(value).__name__))
    raise SettingsError(f"The teacher is {value!r:.60}; expected a model, its name, or a function.")


def _of_cross_encoder(model: Any, name: str) -> Teacher:
    def judge(texts: list[str], queries: list[str]) -> Sequence[float]:
        pairs = list(zip(queries, texts, strict=True))
        return list(model.predict(pairs, show_progress_bar=False))

    return PairTeacher(judge, name=name)
