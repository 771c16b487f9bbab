"""Several rankings of the same documents made into one: by reciprocal ranks, or by the best score."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from o1_retriever.ranking.ranking import Places, Ranking, Scores, best

Key = TypeVar("Key", bound=Hashable)

# Of Cormack, Clarke and Büttcher (SIGIR 2009), with ranks that begin at 0.
RRF_CONSTANT = 60


def fuse(rankings: Sequence[Sequence[Key]]) -> dict[Key, float]:
    """The fused score of every document: the sum of 1 / (60 + rank) over its rankings, rank from 0."""
    scores: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking):
            scores[key] = scores.get(key, 0.0) + 1.0 / (RRF_CONSTANT + rank)
    return scores


def fuse_complete(scores: Sequence[Scores], k: int, *, ties: Places) -> Ranking:
    """The `k` best of the fusion of complete rankings, each given by the scores of all documents."""
    fused = np.sum([1.0 / (RRF_CONSTANT + ranks(row, ties)) for row in scores], axis=0)
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
