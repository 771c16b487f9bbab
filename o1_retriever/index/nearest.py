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
from o1_retriever.index.ledger import Session
from o1_retriever.index.lexicon import Lexicon
from o1_retriever.ranking.fusion import fuse
from o1_retriever.ranking.ranking import Ranking, best, best_of_groups, search_pages
from o1_retriever.thought import Vector
from o1_retriever.vectors import unit

# So many are compared one by one: 5 ms for 384 dimensions, as long as embedding a query takes at the least.
_EXACT = 2000
# Scores that agree in so many digits are equal: in the others equal texts differ by the order of additions.
_DIGITS = 6
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
            return _exact(session.vector_pages(matching), vectors, k)
    elif count <= _EXACT:
        return _exact(session.vector_pages(), vectors, k)
    rankings = []
    for vector, found in zip(vectors, graph.nearest(vectors, wanted, where), strict=True):
        ranking = _with_copies(session, graph, found, k, where)
        if len(ranking) < wanted:
            every = None if where is None else graph.matching(where)
            ranking = _exact(session.vector_pages(every), vector[None], k)[0]
        rankings.append(ranking)
    return rankings


def _exact(pages: Iterable[tuple[list[str], Vector]], vectors: Vector, k: int) -> list[Ranking]:
    """The k best of the documents in `pages`, each compared."""
    named = ((np.array(ids, dtype=object), unit(page)) for ids, page in pages)
    return [_clipped(ranking) for ranking in search_pages(unit(vectors), named, k, digits=_DIGITS)]


def _with_copies(session: Session, graph: Graph, found: Ranking, k: int, where: Where | None) -> Ranking:
    """The first k when the documents of equal text are counted in that the graph did not reach."""
    scores = dict(found.pairs())
    copies = session.copies(list(scores), limit=k if where is None else _COPIES)
    unseen = {copy: scores[id] for id, others in copies.items() for copy in others if copy not in scores}
    if unseen and where is not None:
        allowed = set(graph.matching(where, ids=list(unseen)))
        unseen = {copy: score for copy, score in unseen.items() if copy in allowed}
    keys = np.array([*scores, *unseen], dtype=object)
    return _clipped(best(keys, np.array([*scores.values(), *unseen.values()]), k, digits=_DIGITS))


def _clipped(ranking: Ranking) -> Ranking:
    """Cosines are at most 1, whatever rounding has made of them."""
    return Ranking(ranking.keys, np.asarray(np.clip(ranking.scores, -1.0, 1.0), ranking.scores.dtype))


def _cosines(session: Session, ids: Sequence[str], vectors: Vector) -> dict[str, float]:
    """The best cosine of each of these documents with any of the vectors."""
    found = session.vectors(ids)
    if not found:
        return {}
    nearest_of = (unit(vectors) @ unit(np.stack(list(found.values()))).T).max(axis=0)
    return dict(zip(found, np.clip(nearest_of, -1.0, 1.0).tolist(), strict=True))


# So many of each ranking are fused. A document at rank 1000 gains 1/1060, less than any step among the first.
FUSION_DEPTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedDocument:
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
    """The k best ids for each group of vectors, a document's score being its best cosine."""
    if not groups:
        return []
    rankings = nearest(session, graph, np.concatenate(groups), k, where)
    return best_of_groups(rankings, map(len, groups), k, digits=_DIGITS)


def fused(
    session: Session, graph: Graph, groups: Sequence[Vector], k: int, where: Where | None, fusion: Fusion
) -> list[list[FusedDocument]]:
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


def _joined(
    session: Session, group: Vector, dense: Ranking, lexical: list[str], k: int
) -> list[FusedDocument]:
    near = dict(dense.pairs())
    dense_ids = list(near)
    scores = fuse([dense_ids, lexical])
    if not scores:
        return []
    # All that can be among the first k, equal ones included; those that only BM25 found lack a cosine.
    least = sorted(scores.values(), reverse=True)[:k][-1]
    chosen = [identity for identity, score in scores.items() if score >= least]
    near.update(_cosines(session, [identity for identity in chosen if identity not in near], group))
    chosen.sort(key=lambda identity: (-scores[identity], -round(near[identity], _DIGITS), identity))
    ranks = [{identity: rank for rank, identity in enumerate(ids, 1)} for ids in (dense_ids, lexical)]
    return [
        FusedDocument(
            id=identity,
            cosine=near[identity],
            fused=scores[identity],
            dense_rank=ranks[0].get(identity),
            lexical_rank=ranks[1].get(identity),
        )
        for identity in chosen[:k]
    ]
