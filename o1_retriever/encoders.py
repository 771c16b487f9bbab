"""Who makes the vectors: a sentence-transformers model, or a function of yours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from o1_retriever.errors import EncoderError, SettingsError
from o1_retriever.inputs import check_texts
from o1_retriever.sentence_encoder import PROBE, SentenceTransformerEncoder, is_sentence_transformer
from o1_retriever.space import Precision, VectorSpace
from o1_retriever.thought import Vector
from o1_retriever.vectors import check_vectors

__all__ = ["CallableEncoder", "Encoder", "SentenceTransformerEncoder", "as_encoder"]


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts into vectors, float32 of shape (texts, dimension), normalised or not."""

    @property
    def space(self) -> VectorSpace:
        """Identity of the document space."""
        ...

    @property
    def precision(self) -> Precision:
        """How the vectors are computed."""
        ...

    def embed_queries(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per query."""
        ...

    def embed_documents(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per document."""
        ...


class CallableEncoder:
    """A function of yours: `documents(texts)` returns one vector per text (list, numpy array or tensor).

    `queries` is the one for queries (None: the same). `name` stands for the vector space: give it another
    one when the function makes other vectors, or old indexes will be searched with them.

    Raises `SettingsError` for something that is no function, or no name.
    """

    def __init__(
        self,
        documents: Callable[[list[str]], Any],
        queries: Callable[[list[str]], Any] | None = None,
        *,
        name: str,
    ) -> None:
        for function in (documents, queries or documents):
            if not callable(function) or isinstance(function, type):
                raise SettingsError(f"Found {function!r:.80}; expected a function from texts to vectors.")
        if not isinstance(name, str) or not name.strip():
            raise SettingsError(f"The encoder's name is {name!r:.60}; expected some text.")
        self._documents = documents
        self._queries = queries or documents
        self._name = name
        self._dimension: int | None = None

    def __repr__(self) -> str:
        return f"CallableEncoder(name={self._name!r})"

    @property
    def space(self) -> VectorSpace:
        """The name and the dimension; before the first vector, a probe finds the dimension."""
        if self._dimension is None:
            self.embed_documents([PROBE])
        assert self._dimension is not None
        return VectorSpace(
            weights=self._name, layout="callable", pooling="callable", dimension=self._dimension
        )

    @property
    def precision(self) -> Precision:
        """What arrives is float32; where it is computed is the function's own affair."""
        return Precision(dtype="float32", device="unknown")

    def embed_queries(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per query; raises `InputError` or `EncoderError` with the position of a bad one."""
        return self._embed(self._queries, check_texts(texts, what="query"), batch_size)

    def embed_documents(self, texts: Sequence[str], *, batch_size: int = 32) -> Vector:
        """One vector per document; errors as for queries."""
        return self._embed(self._documents, check_texts(texts, what="document"), batch_size)

    def _embed(self, function: Callable[[list[str]], Any], texts: list[str], batch_size: int) -> Vector:
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size!r}; expected at least 1.")
        if not texts:
            return np.empty((0, self.space.dimension), dtype=np.float32)
        return np.concatenate(list(self._batches(function, texts, batch_size)))

    def _batches(
        self, function: Callable[[list[str]], Any], texts: list[str], batch_size: int
    ) -> Iterator[Vector]:
        for first in range(0, len(texts), batch_size):
            batch = texts[first : first + batch_size]
            try:
                answer = function(list(batch))
            except Exception as error:
                raise EncoderError(f"{self!r} failed: {type(error).__name__}: {error}") from error
            said = f"{self!r} returned for {len(batch)} texts"
            vectors = check_vectors(answer, len(batch), said, first=first, dimension=self._dimension)
            self._dimension = vectors.shape[1]
            yield vectors


def as_encoder(value: Any) -> Encoder:
    """An encoder from what users have: an encoder, a `SentenceTransformer` or its name, or a function.

    A function goes by its module and name. Raises `SettingsError` for anything else, and for a function
    without a name of its own, which could not be told from the next one.
    """
    if isinstance(value, str | os.PathLike) or is_sentence_transformer(value):
        return SentenceTransformerEncoder(value)
    if not isinstance(value, type):
        if isinstance(value, Encoder):
            return value
        if callable(value):
            return CallableEncoder(value, name=_own_name(value))
    raise SettingsError(
        f"The encoder is {value!r:.80}; expected an encoder, a SentenceTransformer, its name, or a function."
    )


def _own_name(function: Any) -> str:
    name = getattr(function, "__qualname__", "<lambda>")
    if "<lambda>" in name:
        raise SettingsError(
            f"The encoder {function!r:.80} has no name that its vectors could go by.",
            hint="Pass CallableEncoder(function, name=...).",
        )
    return f"{function.__module__}.{name}"
