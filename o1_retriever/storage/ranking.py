"""The k nearest documents: approximate from the graph, exact where that is cheap or the graph falls short."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from o1_retriever.storage.graph import Graph, Where
from o1_retriever.storage.rows import Session
from o1_retriever.thought import Vector

Ranking = list[tuple[str, float]]

# A filter that leaves at most this many documents is searched exactly: 10 ms for 384 dimensions.
_EXACT = 2000
# Asked for beyond k, so that documents of equal score at the end can be told apart by id.
_SPARE = 32
_WIDEST = 4096
# Vectors in memory at a time.
_PAGE = 2000


def nearest(session: Session, graph: Graph, vectors: Vector, k: int, where: Where | None) -> list[Ranking]:
    """The k best ids of each vector with their cosine; of equal ones (to 6 digits), the smaller id first."""
    count = session.count()
    if where is not None:
        matching = graph.matching(where, limit=_EXACT + 1)
        if len(matching) <= _EXACT:
            return exact(session, matching, vectors, k)
    if not count or not len(vectors):
        return [[] for _ in vectors]
    width = min(count, k + _SPARE)
    rankings = [_sorted(found) for found in graph.nearest(vectors, width, where)]
    return [
        ranking[:k] if _is_settled(ranking, k, width, count) else _wider(session, graph, vector, k, where)
        for ranking, vector in zip(rankings, vectors, strict=True)
    ]


def exact(session: Session, ids: Sequence[str], vectors: Vector, k: int) -> list[Ranking]:
    """The k best of `ids`, each compared."""
    scores: list[Ranking] = [[] for _ in vectors]
    queries = _unit(vectors)
    for start in range(0, len(ids) if len(vectors) else 0, _PAGE):
        part = session.vectors(ids[start : start + _PAGE])
        if not part:
            continue
        cosines = queries @ _unit(np.stack(list(part.values()))).T
        for ranking, row in zip(scores, cosines, strict=True):
            ranking.extend(zip(part, row.tolist(), strict=True))
            ranking[:] = _sorted(ranking)[:k]
    return scores


def _wider(session: Session, graph: Graph, vector: Vector, k: int, where: Where | None) -> Ranking:
    """Look further, until the last of the k differs from what comes after; exact if the graph has too few."""
    count = session.count()
    width = k + _SPARE
    while True:
        width = min(count, 4 * width)
        ranking = _sorted(graph.nearest(vector[None], width, where)[0])
        if len(ranking) < min(k, width):
            return exact(session, graph.matching(where), vector[None], k)[0]
        if width >= min(count, _WIDEST) or _is_settled(ranking, k, width, count):
            return ranking[:k]


def _is_settled(ranking: Ranking, k: int, width: int, count: int) -> bool:
    """Whether nothing that was not looked at can belong among the first k."""
    if len(ranking) < width:
        return False
    return width >= count or _shown(ranking[k - 1][1]) != _shown(ranking[-1][1])


def _sorted(ranking: Ranking) -> Ranking:
    best_first = sorted(ranking, key=lambda item: (-_shown(item[1]), item[0]))
    return [(identity, min(1.0, max(-1.0, score))) for identity, score in best_first]


def _shown(score: float) -> float:
    """Without the last digits, in which equal texts differ by the order of additions."""
    return round(score, 6)


def _unit(vectors: Vector) -> Vector:
    unit: Vector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
