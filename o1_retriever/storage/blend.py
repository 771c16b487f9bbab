"""Searches with several vectors a question, and fused with BM25."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from o1_retriever.fusion import best_scores, fuse
from o1_retriever.storage.graph import Graph, Where
from o1_retriever.storage.lexicon import Lexicon
from o1_retriever.storage.ranking import Ranking, by_score, cosines, nearest
from o1_retriever.storage.rows import Session
from o1_retriever.thought import Vector

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
