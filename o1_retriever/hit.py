"""What a search finds, and what an index says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from o1_retriever.documents.structure import Scalar
from o1_retriever.errors import InputError
from o1_retriever.space import Precision, VectorSpace
from o1_retriever.thought import Vector

if TYPE_CHECKING:
    from o1_retriever.storage.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A document that a search found. `score` is the cosine with the query vector, `rank` counts from 1."""

    id: str
    text: str
    score: float
    rank: int
    source: str = ""
    metadata: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo:
    """What is in an index. `roots` are the folders it was made from with their numbers of files.

    `precision` is that of the embedder that began it, `chroma_path` the folder of Chroma's own files and
    `bytes` the size of everything on disk.
    """

    path: Path
    collection: str
    chroma_path: Path
    documents: int
    roots: dict[str, int]
    space: VectorSpace
    precision: Precision
    bytes: int


def check_queries(vectors: ArrayLike, dimension: int) -> Vector:
    """Return query vectors as float32 of shape (queries, dimension). Raises `InputError`."""
    try:
        queries = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"The query vectors cannot be used: {error}.") from None
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise InputError(
            f"Found query vectors of shape {queries.shape}; expected (queries, {dimension}).",
            hint="One query vector goes as vector[None].",
        )
    for position, query in enumerate(queries):
        if not np.isfinite(query).all() or not query.any():
            raise InputError(
                f"Query vector {position} is zero or not finite; expected a direction.", position=position
            )
    return queries


def hits(ranking: Sequence[tuple[str, float]], rows: dict[str, Row]) -> list[Hit]:
    """A ranking of ids and scores with the documents in it."""
    return [
        Hit(
            id=identity,
            text=rows[identity].document.text,
            score=score,
            rank=rank,
            source=str(rows[identity].document.metadata.get("source", "")),
            metadata=rows[identity].document.metadata,
        )
        for rank, (identity, score) in enumerate(ranking, start=1)
    ]
