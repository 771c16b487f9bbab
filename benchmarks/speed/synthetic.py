"""Vectors without texts, to fill a large index in little time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from o1_retriever.documents import Document
from o1_retriever.thought import Vector
from o1_retriever.vectors import Precision, VectorSpace

DIMENSION = 384
# A vector is a mixture of so many of the base's, moved by noise of this length.
_PARTS, _NOISE = 3, 0.3


def random_base(count: int = 256) -> Vector:
    """Unit vectors of random directions (count, dimension), the same at every call."""
    rows = np.random.default_rng(0).standard_normal((count, DIMENSION), dtype=np.float32)
    return _unit(rows)


def mixtures(base: Vector, count: int, *, seed: int) -> Vector:
    """Unit vectors (count, dimension) near the span of a few of the base's, as those of real texts are.

    Independent random directions would all be equally far from each other: no graph finds neighbours there.
    """
    generator = np.random.default_rng(seed)
    places = generator.integers(len(base), size=(count, _PARTS))
    weights = generator.random((count, _PARTS, 1), dtype=np.float32)
    noise = generator.standard_normal((count, base.shape[1]), dtype=np.float32)
    return _unit(_unit((base[places] * weights).sum(1)) + _NOISE * _unit(noise))


class SyntheticEmbedder:
    """What an index asks of an embedder, with vectors drawn and not computed. The texts do not matter."""

    def __init__(
        self, base: Vector, *, space: VectorSpace | None = None, precision: Precision | None = None
    ) -> None:
        self.space = space or VectorSpace(
            weights="synthetic", layout="none", pooling="none", dimension=base.shape[1]
        )
        self.precision = precision or Precision()
        self._base = base
        self._calls = 0

    def encode_documents(
        self, documents: list[str], *, batch_size: int = 0, show_progress_bar: bool | None = None
    ) -> Vector:
        """Other vectors at every call."""
        self._calls += 1
        return mixtures(self._base, len(documents), seed=self._calls)


def numbered(start: int, stop: int) -> Iterator[Document]:
    """Documents with the numbers `start` to `stop - 1` as ids, and a line of text each."""
    return (
        Document(id=str(number), text=f"Passage number {number} of a large collection.")
        for number in range(start, stop)
    )


def _unit(rows: Vector) -> Vector:
    unit: Vector = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit
