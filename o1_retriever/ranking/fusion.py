"""Several rankings of the same documents made into one: by the sum of their scores, or by the best score."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from o1_retriever.ranking.ranking import DIGITS

Key = TypeVar("Key", bound=Hashable)

# So many of each ranking are fused.
FUSION_DEPTH = 1000


def fuse(
    dense: Mapping[Key, float], lexical: Mapping[Key, float], depth: int = FUSION_DEPTH
) -> dict[Key, float]:
    """The fused score, from 0 to 1, of every document in the ranking of the vectors or in that of BM25.

    Both are scores by document, the `depth` best or all that there are. Each is stretched so that its best
    is 1 and its least 0; a document that is not in one gets 0 from it. The fused score is the mean of the
    two: chosen on dev and train splits, where half of BM25's weight serves nearly as well (docs/search.md).
    """
    # A list of BM25 that is not full ends where no word is shared, at 0; how far the vectors' goes on is
    # not known.
    rest = 0.0 if len(lexical) < depth else None
    near, words = _stretched(dense), _stretched(lexical, rest)
    return {key: (near.get(key, 0.0) + words.get(key, 0.0)) / 2 for key in {**near, **words}}


def _stretched(scores: Mapping[Key, float], least: float | None = None) -> dict[Key, float]:
    """The scores from 0, for `least` (None: the least of them), to 1 for the best; 1 where all are equal."""
    if not scores:
        return {}
    values = np.round(np.fromiter(scores.values(), np.float64, len(scores)), DIGITS)
    floor, best = values.min() if least is None else least, values.max()
    values = (values - floor) / (best - floor) if best > floor else np.ones_like(values)
    return dict(zip(scores, values.tolist(), strict=True))


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
