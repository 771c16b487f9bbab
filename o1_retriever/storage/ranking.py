"""The k nearest documents: exact where that is cheap, else from the graph, exact again where the graph fails.

HNSW is approximate. It also loses documents altogether where many are equal: with 700 copies of one text
among 3000, one graph in ten does not reach some of them however many are asked for. So the copies of what it
found are looked up in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from o1_retriever.storage.graph import Graph, Where
from o1_retriever.storage.rows import Session
from o1_retriever.thought import Vector

Ranking = list[tuple[str, float]]

# So many are compared one by one: 5 ms for 384 dimensions, as long as embedding a query takes at the least.
_EXACT = 2000
# Asked for beyond k, so that documents of equal score at the end can be told apart by id.
_SPARE = 32
# Scores that agree in so many digits are equal.
_DIGITS = 6
_EQUAL = 2 * 10.0**-_DIGITS
# Copies of one text that are looked at where a filter decides between them.
_COPIES = 5000


def nearest(session: Session, graph: Graph, vectors: Vector, k: int, where: Where | None) -> list[Ranking]:
    """The k best ids of each vector with their cosine; of equal ones (to `_DIGITS`), the smaller id first."""
    if not len(vectors):
        return []
    count = session.count(at_most=max(k, _EXACT + 1))
    wanted = min(k, count)
    if where is not None:
        matching = graph.matching(where, limit=_EXACT + 1)
        if len(matching) <= _EXACT:
            return exact(session.vector_pages(matching), vectors, k)
    elif count <= _EXACT:
        return exact(session.vector_pages(), vectors, k)
    rankings = []
    for vector, found in zip(vectors, graph.nearest(vectors, wanted + _SPARE, where), strict=True):
        ranking = _with_copies(session, graph, found, k, where)
        if len(ranking) < wanted:
            every = None if where is None else graph.matching(where)
            ranking = exact(session.vector_pages(every), vector[None], k)[0]
        rankings.append(ranking)
    return rankings


def exact(pages: Iterable[tuple[list[str], Vector]], vectors: Vector, k: int) -> list[Ranking]:
    """The k best of the documents in `pages`, each compared."""
    rankings: list[Ranking] = [[] for _ in vectors]
    queries = _unit(vectors)
    for ids, page in pages:
        cosines = queries @ _unit(page).T
        for place, row in enumerate(cosines):
            # All that can be among the first k, equal ones included.
            least = np.partition(row, -k)[-k] - _EQUAL if k < len(row) else -2.0
            best = [(ids[at], float(row[at])) for at in np.flatnonzero(row >= least)]
            rankings[place] = by_score([*rankings[place], *best])[:k]
    return rankings


def _with_copies(session: Session, graph: Graph, found: Ranking, k: int, where: Where | None) -> Ranking:
    """The first k when the documents of equal text are counted in that the graph did not reach."""
    scores = dict(found)
    copies = session.copies(list(scores), limit=k if where is None else _COPIES)
    unseen = {copy: scores[one] for one, others in copies.items() for copy in others if copy not in scores}
    if unseen and where is not None:
        allowed = set(graph.matching(where, ids=list(unseen)))
        unseen = {copy: score for copy, score in unseen.items() if copy in allowed}
    return by_score([*found, *unseen.items()])[:k]


def cosines(session: Session, ids: Sequence[str], vectors: Vector) -> dict[str, float]:
    """The best cosine of each of these documents with any of the vectors."""
    found = session.vectors(ids)
    if not found:
        return {}
    best = (_unit(vectors) @ _unit(np.stack(list(found.values()))).T).max(axis=0)
    return dict(zip(found, np.clip(best, -1.0, 1.0).tolist(), strict=True))


def by_score(ranking: Iterable[tuple[str, float]]) -> Ranking:
    """Best first; equal scores (to `_DIGITS`) by id."""
    best_first = sorted(ranking, key=lambda item: (-_shown(item[1]), item[0]))
    return [(identity, min(1.0, max(-1.0, score))) for identity, score in best_first]


def _shown(score: float) -> float:
    """Without the last digits, in which equal texts differ by the order of additions."""
    return round(score, _DIGITS)


def _unit(vectors: Vector) -> Vector:
    unit: Vector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
