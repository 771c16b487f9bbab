"""Rankings as arrays: which documents, best first, and how ties and several rankings become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o1_retriever.ranking.fusion import Places, reciprocal_scores
from o1_retriever.thought import Vector


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The documents found for one query, best first: places in the corpus and float32 scores."""

    places: Places
    scores: Vector

    def by_id(self, ids: Sequence[str]) -> dict[str, float]:
        """Document id to score, best first."""
        return {ids[place]: float(score) for place, score in zip(self.places, self.scores, strict=True)}


def tie_order(ids: Sequence[str]) -> Places:
    """For every document its place among all in trec_eval's order for equal scores: descending id."""
    order = np.empty(len(ids), dtype=np.int64)
    order[sorted(range(len(ids)), key=lambda place: ids[place], reverse=True)] = np.arange(len(ids))
    return order


def best(
    scores: Vector | NDArray[np.float64], ties: Places, depth: int, *, places: Places | None = None
) -> Ranking:
    """The `depth` best of one query's scores; equal scores in the order of `ties`.

    `places` says which documents the scores belong to (None: all, in order).
    """
    count = len(scores)
    where = np.arange(count) if places is None else places
    chosen = np.arange(count)
    if depth < count:
        # Everything that equals the last one's score takes part, so that the cut falls in the ties' order.
        bar = np.partition(scores, count - depth)[count - depth]
        chosen = np.flatnonzero(scores >= bar)
    order = np.lexsort((ties[where[chosen]], -scores[chosen]))[:depth]
    picked = chosen[order]
    return Ranking(where[picked], np.asarray(scores[picked], dtype=np.float32))


def best_of_groups(found: Sequence[Ranking], sizes: Sequence[int], ties: Places, depth: int) -> list[Ranking]:
    """One ranking for each group of so many that follow each other: a document's score is its best."""
    result = []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        group = found[end - size : end]
        if size > 1:
            places = np.concatenate([ranking.places for ranking in group])
            scores = np.concatenate([ranking.scores for ranking in group])
            order = np.lexsort((-scores, places))
            kept, first = np.unique(places[order], return_index=True)
            group = [best(scores[order][first], ties, depth, places=kept)]
        result.append(group[0])
    return result


def ranks(scores: Vector, ties: Places) -> Places:
    """The rank of every document, from 0, in the complete ranking of one query."""
    result = np.empty(len(scores), dtype=np.int64)
    result[np.lexsort((ties, -scores))] = np.arange(len(scores))
    return result


def fuse(complete: Sequence[Vector], ties: Places, depth: int) -> Ranking:
    """Reciprocal rank fusion of complete rankings, each given by the scores of all documents.

    A document's score is the sum of 1 / (60 + rank), rank from 0, over the rankings.
    """
    fused = reciprocal_scores([ranks(scores, ties) for scores in complete])
    return best(fused, ties, depth)
