"""Several rankings of the same documents made into one: by reciprocal ranks, or by the best score."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from o1_retriever.ranking.ranking import Places, Ranking, Scores, best

Key = TypeVar("Key", bound=Hashable)

# Of Cormack, Clarke and Büttcher (SIGIR 2009), with ranks that begin at 0.
RRF_CONSTANT = 60
ABSENT = -1


def reciprocal_scores(rankings: Sequence[Places]) -> NDArray[np.float64]:
    """The fused score of every document: the sum of 1 / (60 + rank) over the rankings, rank from 0.

    Each array has the documents' ranks in one ranking, `ABSENT` for those that are not in it: they get
    nothing from it.
    """
    parts = [np.where(ranks >= 0, 1.0 / (RRF_CONSTANT + np.maximum(ranks, 0)), 0.0) for ranks in rankings]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def fuse(rankings: Sequence[Sequence[Key]]) -> dict[Key, float]:
    """The fused score of every document in rankings that are given by their keys, best first."""
    places: dict[Key, int] = {}
    for ranking in rankings:
        for key in ranking:
            places.setdefault(key, len(places))
    ranks = np.full((len(rankings), len(places)), ABSENT, dtype=np.int64)
    for row, ranking in zip(ranks, rankings, strict=True):
        row[[places[key] for key in ranking]] = np.arange(len(ranking))
    return dict(zip(places, reciprocal_scores(list(ranks)).tolist(), strict=True)) if places else {}


def fuse_complete(scores: Sequence[Scores], k: int, *, ties: Places) -> Ranking:
    """The `k` best of the fusion of complete rankings, each given by the scores of all documents."""
    fused = reciprocal_scores([ranks(row, ties) for row in scores])
    ranking = best(np.arange(len(fused)), fused, k, ties=ties)
    return Ranking(ranking.keys, ranking.scores.astype(np.float32))


def ranks(scores: Scores, ties: Places) -> Places:
    """The rank of every document, from 0, in the complete ranking of one query."""
    result = np.empty(len(scores), dtype=np.int64)
    result[np.lexsort((ties, -scores))] = np.arange(len(scores))
    return result


def best_of(rankings: Iterable[Iterable[tuple[Key, float]]], k: int) -> list[tuple[Key, float]]:
    """The `k` best of several rankings of (key, score), a document's score being its best.

    Pooling by the best thought, for documents of whatever kind: each ranking must hold the first `k` for one
    of `QueryEmbedding.vectors`; the result is then that of comparing every document with every vector. Equal
    scores stay in the order of the rankings.
    """
    found: dict[Key, float] = {}
    for ranking in rankings:
        for key, score in ranking:
            if key not in found or score > found[key]:
                found[key] = score
    return sorted(found.items(), key=lambda item: -item[1])[:k]
