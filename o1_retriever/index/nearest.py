"""The k nearest documents: exact where that is cheap, else from the graph.

HNSW is approximate. It also loses documents altogether where many are equal: with 700 copies of one text
among 3000, one graph in ten does not reach some of them however many are asked for. So the copies of what it
found are looked up in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from o1_retriever.index.graph import Graph, Where
from o1_retriever.index.ledger import Session
from o1_retriever.ranking.ranking import Ranking, best, best_of_groups, search_pages
from o1_retriever.thought import Vector
from o1_retriever.vectors import unit

# So many are compared one by one: 5 ms for 384 dimensions, as long as embedding a query takes at the least.
_EXACT = 2000
# Scores that agree in so many digits are equal: in the others equal texts differ by the order of additions.
DIGITS = 6
# Copies of one text that are looked at where a filter decides between them.
_COPIES = 5000


def nearest(
    session: Session, graph: Graph, groups: Sequence[Vector], k: int, where: Where | None
) -> list[Ranking]:
    """The k best ids for each group of vectors, with the best cosine that one of the group has.

    Of equal ones (to `DIGITS`), the smaller id is first.
    """
    if not groups:
        return []
    rankings = _nearest(session, graph, np.concatenate(groups), k, where)
    return best_of_groups(rankings, map(len, groups), k, digits=DIGITS)


def _nearest(session: Session, graph: Graph, vectors: Vector, k: int, where: Where | None) -> list[Ranking]:
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
    return [_clipped(ranking) for ranking in search_pages(unit(vectors), named, k, digits=DIGITS)]


def _with_copies(session: Session, graph: Graph, found: Ranking, k: int, where: Where | None) -> Ranking:
    """The first k when the documents of equal text are counted in that the graph did not reach."""
    scores = dict(found.pairs())
    copies = session.copies(list(scores), limit=k if where is None else _COPIES)
    unseen = {copy: scores[id] for id, others in copies.items() for copy in others if copy not in scores}
    if unseen and where is not None:
        allowed = set(graph.matching(where, ids=list(unseen)))
        unseen = {copy: score for copy, score in unseen.items() if copy in allowed}
    keys = np.array([*scores, *unseen], dtype=object)
    return _clipped(best(keys, np.array([*scores.values(), *unseen.values()]), k, digits=DIGITS))


def _clipped(ranking: Ranking) -> Ranking:
    """Cosines are at most 1, whatever rounding has made of them."""
    return Ranking(ranking.keys, np.asarray(np.clip(ranking.scores, -1.0, 1.0), ranking.scores.dtype))
