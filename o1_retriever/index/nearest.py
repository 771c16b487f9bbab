"""The k nearest documents: exact where that is cheap, else from the graph.

HNSW is approximate. It also loses documents altogether where many are equal: with 700 copies of one text
among 3000, one graph in ten does not reach some of them however many are asked for. So the copies of what it
found are looked up in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from o1_retriever.index.fields import Numbers
from o1_retriever.index.graph import Graph
from o1_retriever.index.ledger import Session
from o1_retriever.ranking.ranking import DIGITS, Ranking, best, best_of_groups, search_pages
from o1_retriever.thought import Vector
from o1_retriever.vectors import unit

# So many are compared one by one: 5 ms for 384 dimensions, as long as embedding a query takes at the least.
_EXACT = 2000
# So many times more documents are asked of the graph than chance would need for a filter, twice in a row.
_MARGIN = 4
# A document of the graph takes as long as comparing so many: 15 and 5 µs, with what the ledger is asked for.
_GRAPH_COST = 3
# Copies of one text that are looked at where a filter decides between them.
_COPIES = 5000


def nearest(
    session: Session, graph: Graph, groups: Sequence[Vector], k: int, among: Numbers | None = None
) -> list[Ranking]:
    """The k best ids for each group of vectors, with the best cosine that one of the group has.

    Of equal ones (to `DIGITS`), the smaller id is first. `among` are the documents that count (None: all).
    """
    if not groups:
        return []
    rankings = _nearest(session, graph, np.concatenate(groups), k, among)
    return best_of_groups(rankings, map(len, groups), k, digits=DIGITS)


def _nearest(session: Session, graph: Graph, vectors: Vector, k: int, among: Numbers | None) -> list[Ranking]:
    count = session.count(at_most=max(k, _EXACT + 1)) if among is None else len(among)
    every = count if among is None else session.highest()
    if graph.lost or count <= _EXACT or (among is not None and _is_cheap(count, k, every)):
        return _exact(session.vector_pages(among), vectors, k)
    wanted = min(k, count)
    # The graph knows nothing of filters: it is asked for so many that those that count are among them.
    asked = min(every, wanted * every // count * (_MARGIN if every > count else 1))
    rankings = _reached(session, graph, vectors, asked, k, among)
    for place, vector in enumerate(vectors):
        if len(rankings[place]) < wanted and asked * _MARGIN < every:
            (rankings[place],) = _reached(session, graph, vector[None], asked * _MARGIN, k, among)
        if len(rankings[place]) < wanted:
            (rankings[place],) = _exact(session.vector_pages(among), vector[None], k)
    return rankings


def _is_cheap(count: int, k: int, every: int) -> bool:
    """Whether comparing `count` of all documents is less work than what the graph would be asked for."""
    return count * count <= _GRAPH_COST * _MARGIN * k * every


def _exact(pages: Iterable[tuple[list[str], Vector]], vectors: Vector, k: int) -> list[Ranking]:
    """The k best of the documents in `pages`, each compared."""
    named = ((np.array(ids, dtype=object), unit(page)) for ids, page in pages)
    return [_clipped(ranking) for ranking in search_pages(unit(vectors), named, k, digits=DIGITS)]


def _reached(
    session: Session, graph: Graph, vectors: Vector, asked: int, k: int, among: Numbers | None
) -> list[Ranking]:
    """The first k for each vector, of those that the graph knows and of copies that it did not reach."""
    return [_with_copies(session, found, k, among) for found in graph.nearest(vectors, asked)]


def _with_copies(session: Session, found: Ranking, k: int, among: Numbers | None) -> Ranking:
    scores = dict(found.pairs())
    copies = session.copies(list(scores), limit=k if among is None else _COPIES)
    scores |= {copy: scores[id] for id, others in copies.items() for copy in others if copy not in scores}
    if among is not None:
        allowed = session.among(list(scores), among)
        scores = {id: score for id, score in scores.items() if id in allowed}
    keys = np.array([*scores], dtype=object)
    return _clipped(best(keys, np.array([*scores.values()]), k, digits=DIGITS))


def _clipped(ranking: Ranking) -> Ranking:
    """Cosines are at most 1, whatever rounding has made of them."""
    return Ranking(ranking.keys, np.asarray(np.clip(ranking.scores, -1.0, 1.0), ranking.scores.dtype))
