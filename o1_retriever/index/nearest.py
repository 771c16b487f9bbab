"""The k nearest documents: exact where that is cheap, else from the graph, and fused with BM25.

HNSW is approximate. It also loses documents altogether where many are equal: with 700 copies of one text
among 3000, one graph in ten does not reach some of them however many are asked for. So the copies of what it
found are looked up in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from o1_retriever.index.graph import Graph, Where
from o1_retriever.index.lexicon import Lexicon
from o1_retriever.index.rows import Session
from o1_retriever.ranking.fusion import best_scores, fuse
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


# So many of each ranking are fused. A document at rank 1000 gains 1/1060, less than any step among the first.
FUSION_DEPTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A document of a fused ranking; its ranks count from 1, None where a ranking does not have it."""

    id: str
    cosine: float
    fused: float
    dense_rank: int | None
    lexical_rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What BM25 reads for each question, and how many documents of each ranking are fused."""

    lexicon: Lexicon
    texts: Sequence[str]
    depth: int


def nearest_to_any(
    session: Session, graph: Graph, groups: Sequence[Vector], k: int, where: Where | None
) -> list[Ranking]:
    """The k best ids for each group of vectors, a document's score being its best cosine.

    Every vector is searched for k documents, all of them in one batch: what is among the first k by its
    best cosine is among the first k of the vector that it has it with.
    """
    if not groups:
        return []
    rankings = iter(nearest(session, graph, np.concatenate(groups), k, where))
    return [
        by_score(best_scores(next(rankings) for _ in group).items())[:k] if len(group) > 1 else next(rankings)
        for group in groups
    ]


def fused(
    session: Session, graph: Graph, groups: Sequence[Vector], k: int, where: Where | None, fusion: Fusion
) -> list[list[Found]]:
    """The k best for each group when its ranking is fused with that of BM25 over its text.

    Equal fused scores are ordered by cosine, then by id.
    """
    depth = max(fusion.depth, k)
    dense = nearest_to_any(session, graph, groups, depth, where)
    among = None if where is None else fusion.lexicon.places(graph.matching(where))
    result = []
    for group, ranking, text in zip(groups, dense, fusion.texts, strict=True):
        lexical = fusion.lexicon.best(text, depth, among)
        result.append(_joined(session, group, ranking, lexical, k))
    return result


def _joined(session: Session, group: Vector, dense: Ranking, lexical: list[str], k: int) -> list[Found]:
    scores = fuse([[identity for identity, _ in dense], lexical])
    if not scores:
        return []
    near = dict(dense)
    # All that can be among the first k, equal ones included; those that only BM25 found lack a cosine.
    least = sorted(scores.values(), reverse=True)[:k][-1]
    chosen = [identity for identity, score in scores.items() if score >= least]
    near.update(cosines(session, [identity for identity in chosen if identity not in near], group))
    chosen.sort(key=lambda identity: (-scores[identity], -round(near[identity], 6), identity))
    ranks = [{identity: rank for rank, identity in enumerate(one, 1)} for one in (dict(dense), lexical)]
    return [
        Found(
            id=identity,
            cosine=near[identity],
            fused=scores[identity],
            dense_rank=ranks[0].get(identity),
            lexical_rank=ranks[1].get(identity),
        )
        for identity in chosen[:k]
    ]
