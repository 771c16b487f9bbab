"""What a search finds, and what an index says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from o1_retriever.documents.structure import Scalar
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.index.ledger import EmbeddedDocument
from o1_retriever.index.nearest import FusedDocument
from o1_retriever.ranking.ranking import Ranking
from o1_retriever.thought import Vector
from o1_retriever.vectors import Precision, VectorSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A document that a search found. `score` is the cosine with the query vector, `rank` counts from 1.

    With pooling by the best thought, `score` is the cosine with the nearest of the thoughts' vectors. After a
    hybrid search the order is that of `fused_score`; `dense_rank` and `lexical_rank`, from 1, are the
    document's ranks in the two rankings, None where it is not in one. All three are None otherwise.
    """

    id: str
    text: str
    score: float
    rank: int
    source: str = ""
    metadata: dict[str, Scalar] = field(default_factory=dict)
    fused_score: float | None = None
    dense_rank: int | None = None
    lexical_rank: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The hit as plain JSON values; `fused_score` and the two ranks only after a hybrid search."""
        record: dict[str, Any] = {
            "rank": self.rank,
            "score": self.score,
            "id": self.id,
            "source": self.source,
            "text": self.text,
            "metadata": dict(self.metadata),
        }
        if self.fused_score is not None:
            record["fused_score"] = self.fused_score
            record["dense_rank"] = self.dense_rank
            record["lexical_rank"] = self.lexical_rank
        return record


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


def check_group(vectors: ArrayLike, dimension: int) -> Vector:
    """Return the vectors of one query as float32 (n, dimension), n from 1. Raises `InputError`."""
    group = check_queries(vectors, dimension)
    if not len(group):
        raise InputError("Found a group without vectors; expected at least one for each query.")
    return group


def check_count(name: str, value: object) -> None:
    """Raise `SettingsError` for what is no whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise SettingsError(f"{name} is {value!r}; expected a whole number from 1.")


def fused_hits(found: Sequence[FusedDocument], documents: dict[str, EmbeddedDocument]) -> list[Hit]:
    """A fused ranking with the documents in it."""
    return [
        replace(
            _hit(rank, documents[each.id], each.cosine),
            fused_score=each.fused,
            dense_rank=each.dense_rank,
            lexical_rank=each.lexical_rank,
        )
        for rank, each in enumerate(found, start=1)
    ]


def hits(ranking: Ranking, documents: dict[str, EmbeddedDocument]) -> list[Hit]:
    """A ranking of ids with the documents in it."""
    return [
        _hit(rank, documents[identity], score)
        for rank, (identity, score) in enumerate(ranking.pairs(), start=1)
    ]


def _hit(rank: int, embedded: EmbeddedDocument, score: float) -> Hit:
    metadata = embedded.document.metadata
    return Hit(
        id=embedded.document.id,
        text=embedded.document.text,
        score=score,
        rank=rank,
        source=str(metadata.get("source", "")),
        metadata=metadata,
    )
