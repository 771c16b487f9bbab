"""What a search finds, and what an index says about itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from o1_retriever.documents.structure import Value
from o1_retriever.errors import InputError, SettingsError, StoreError
from o1_retriever.index.ledger import EmbeddedDocument
from o1_retriever.ranking.bm25 import Reading
from o1_retriever.ranking.ranking import DIGITS, Ranking, fuse, of_score
from o1_retriever.reporting import counted
from o1_retriever.thought import Vector
from o1_retriever.vectors import Precision, VectorSpace, as_float32, unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A document that a search found. `score` is the cosine with the query vector, `rank` counts from 1.

    With pooling by the best thought, `score` is the cosine with the nearest of the thoughts' vectors. After a
    hybrid search the order is that of `fused_score`, from 0 to 1; `dense_rank` and `lexical_rank`, from 1,
    are the document's ranks in the two rankings, None where it is not in one, and `lexical_score` is what
    BM25 gave it. All four are None otherwise. `relevance` is on one scale for every search; `probability` is
    how likely the document is relevant, where the search had a `min_relevance` (docs/search.md).
    """

    id: str
    text: str
    score: float
    rank: int
    source: str = ""
    metadata: dict[str, Value] = field(default_factory=dict)
    fused_score: float | None = None
    dense_rank: int | None = None
    lexical_rank: int | None = None
    lexical_score: float | None = None
    probability: float | None = None

    @property
    def relevance(self) -> float:
        """From 0 to 1, falling from hit to hit: see `o1_retriever.ranking.ranking`."""
        return of_score(self.score if self.fused_score is None else self.fused_score)

    def to_dict(self) -> dict[str, Any]:
        """The hit as plain JSON values; the fused and lexical ones only after a hybrid search."""
        record: dict[str, Any] = {
            "rank": self.rank,
            "relevance": self.relevance,
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
            record["lexical_score"] = self.lexical_score
        if self.probability is not None:
            record["probability"] = self.probability
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
        queries = as_float32(vectors)
    except (TypeError, ValueError, OverflowError) as error:
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


def check_groups(
    groups: Sequence[ArrayLike], texts: Sequence[str | Reading] | None, dimension: int
) -> list[Vector]:
    """The query vectors of each group, (n, dimension), and one text for each. Raises `InputError`."""
    if texts is not None and len(texts) != len(groups):
        found, wanted = counted(len(texts), "text"), counted(len(groups), "group")
        raise InputError(f"Found {found} for {wanted}; expected one for each.")
    queries = [check_queries(group, dimension) for group in groups]
    if not all(map(len, queries)):
        raise InputError("Found a group without vectors; expected at least one for each query.")
    return queries


def check_count(name: str, value: object) -> None:
    """Raise `SettingsError` for what is no whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise SettingsError(f"{name} is {value!r}; expected a whole number from 1.")


class Kept(Protocol):
    """Where documents are kept, such as a session of a ledger."""

    def documents(self, ids: Sequence[str]) -> dict[str, EmbeddedDocument]:
        """The documents of those ids that are there."""
        ...


def hits(kept: Kept, rankings: Sequence[Ranking]) -> list[list[Hit]]:
    """Rankings of ids with the documents in them."""
    documents = kept.documents(list({key for ranking in rankings for key in ranking.keys.tolist()}))
    _check_there(documents, (key for ranking in rankings for key in ranking.keys.tolist()))
    return [
        [_hit(rank, documents[key], score) for rank, (key, score) in enumerate(ranking.pairs(), start=1)]
        for ranking in rankings
    ]


def fused_hits(
    kept: Kept, vectors: Vector, dense: Ranking, lexical: Mapping[str, float], k: int, depth: int
) -> list[Hit]:
    """The k best documents of two rankings of one query, cut at `depth`; `vectors` are the query's.

    `lexical` are the scores of BM25 by id, best first. Equal fused scores are ordered by cosine, then by id.
    """
    cosines = dict(dense.pairs())
    dense_ids = list(cosines)
    lexical_ids = list(lexical)
    scores = fuse(cosines, lexical, depth)
    if not scores:
        return []
    # All that can be among the first k, equal ones included; those that only BM25 found lack a cosine.
    least = sorted(scores.values(), reverse=True)[:k][-1]
    documents = kept.documents([key for key, score in scores.items() if score >= least])
    for key, embedded in documents.items():
        if key not in cosines:
            cosines[key] = float(np.clip((unit(vectors) @ unit(embedded.vector)).max(), -1.0, 1.0))
    chosen = sorted(documents, key=lambda key: (-scores[key], -round(cosines[key], DIGITS), key))[:k]
    ranks = [{key: rank for rank, key in enumerate(ids, start=1)} for ids in (dense_ids, lexical_ids)]
    return [
        replace(
            _hit(rank, documents[key], cosines[key]),
            fused_score=scores[key],
            dense_rank=ranks[0].get(key),
            lexical_rank=ranks[1].get(key),
            lexical_score=lexical.get(key),
        )
        for rank, key in enumerate(chosen, start=1)
    ]


def _check_there(documents: Mapping[str, EmbeddedDocument], ids: Iterable[str]) -> None:
    """Raise `StoreError` for a document that a search has found and that is not there: a file is damaged."""
    for identity in ids:
        if identity not in documents:
            raise StoreError(
                f"A search has found the document {identity!r:.60}, which is not in the index.",
                hint="Delete the folder of the index and index again: o1-retriever index FOLDER",
            )


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
