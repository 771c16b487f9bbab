"""Rankings as arrays: which documents, best first; how ties are ordered, and how several become one:
by the sum of their scores, or by the best score.

The scores of every kind of search are on one scale, from 0 to 1, where 1 is the best that there can be, so
that the cut-offs which people carry from one program to the next (`similarity_cutoff=0.1`) mean the same
everywhere. A better hit of one search never has the smaller number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from o1_retriever.thought import Vector

Places: TypeAlias = NDArray[np.int64]
# What names documents: their places in a corpus, or their ids (of dtype object).
Keys: TypeAlias = NDArray[Any]
Scores: TypeAlias = NDArray[np.floating[Any]]

# Scores that agree in so many digits are equal: in the others equal texts differ by the order of additions.
DIGITS = 6
BLOCK_BYTES = 64 << 20  # of scores or of vectors that are in memory at a time


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The documents found for one query, best first: their keys and their scores."""

    keys: Keys
    scores: Scores

    def __len__(self) -> int:
        return len(self.keys)

    def by_id(self, ids: Sequence[str]) -> dict[str, float]:
        """Document id to score, best first, where the keys are places among `ids`."""
        return {ids[place]: score for place, score in self.pairs()}

    def pairs(self) -> list[tuple[Any, float]]:
        """(key, score), best first, as plain values."""
        return list(zip(self.keys.tolist(), self.scores.tolist(), strict=True))


def tie_order(ids: Sequence[str]) -> Places:
    """For every document its place among all in trec_eval's order for equal scores: descending id."""
    order = np.empty(len(ids), dtype=np.int64)
    order[sorted(range(len(ids)), key=lambda place: ids[place], reverse=True)] = np.arange(len(ids))
    return order


def best(
    keys: Keys, scores: Scores, k: int, *, ties: Places | None = None, digits: int | None = None
) -> Ranking:
    """The `k` best of these documents.

    Equal scores are in ascending order of `ties[key]`, or of the key itself where `ties` is None. Scores
    that agree to so many decimal `digits` are equal (None: to the last bit).
    """
    compared = _compared(scores, digits)
    chosen = np.arange(len(scores))
    if k < len(scores):
        # Everything that equals the last one's score takes part, so that the cut falls in the ties' order.
        bar = np.partition(compared, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(compared >= bar)
    second = keys[chosen] if ties is None else ties[keys[chosen]]
    picked = chosen[np.lexsort((second, -compared[chosen]))[:k]]
    return Ranking(keys[picked], scores[picked])


def best_of_groups(
    rankings: Iterable[Ranking],
    sizes: Iterable[int],
    k: int,
    *,
    ties: Places | None = None,
    digits: int | None = None,
) -> list[Ranking]:
    """One ranking for each group of so many that follow each other: a document's score is its best.

    Where each ranking holds the first `k` for one vector of a group, the result is that of comparing every
    document with every vector: who is among the first `k` by its best score is among the first of the ranking
    that holds this score.
    """
    remaining = iter(rankings)
    groups = [[next(remaining) for _ in range(size)] for size in sizes]
    return [group[0] if len(group) == 1 else _best_of(group, k, ties, digits) for group in groups]


def _best_of(group: Sequence[Ranking], k: int, ties: Places | None, digits: int | None) -> Ranking:
    keys = np.concatenate([ranking.keys for ranking in group])
    scores = np.concatenate([ranking.scores for ranking in group])
    order = np.lexsort((-scores, keys))
    kept, first = np.unique(keys[order], return_index=True)
    return best(kept, scores[order][first], k, ties=ties, digits=digits)


def search_exactly(
    queries: Vector, matrix: Vector, k: int, *, ties: Places, block_bytes: int = BLOCK_BYTES
) -> list[Ranking]:
    """The places of the `k` documents of largest inner product for each row of `queries`, best first.

    `matrix` (documents, dimension) may be a memory map: a block of it is read at a time, and memory does not
    grow with its rows.
    """
    return search_pages(queries, _blocks(matrix, len(queries), block_bytes), k, ties=ties)


def search_pages(
    queries: Vector,
    pages: Iterable[tuple[Keys, Vector]],
    k: int,
    *,
    ties: Places | None = None,
    digits: int | None = None,
) -> list[Ranking]:
    """As `search_exactly`, over documents that come as pages of (keys, vectors), each of them once."""
    found = [Ranking(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    for keys, vectors in pages:
        for number, scores in enumerate(queries @ vectors.T):
            found[number] = _merged(found[number], keys, scores, k, ties, digits)
    return found


def _blocks(matrix: Vector, queries: int, block_bytes: int) -> Iterator[tuple[Places, Vector]]:
    """Parts of the matrix with their places, whose scores and vectors take at most `block_bytes` each."""
    step = max(1, block_bytes // (4 * max(1, queries, int(matrix.shape[1]))))
    for first in range(0, len(matrix), step):
        block = np.asarray(matrix[first : first + step], dtype=np.float32)
        yield np.arange(first, first + len(block)), block


def _merged(
    known: Ranking, keys: Keys, scores: Vector, k: int, ties: Places | None, digits: int | None
) -> Ranking:
    if len(known) == k:
        # Most of a later page is worse than what is known; equal scores may still win by the order of ties.
        promising = _compared(scores, digits) >= _compared(known.scores[-1:], digits)
        keys, scores = keys[promising], scores[promising]
        if not len(scores):
            return known
    if len(known):
        keys, scores = np.concatenate([known.keys, keys]), np.concatenate([known.scores, scores])
    return best(keys, scores, k, ties=ties, digits=digits)


def _compared(scores: Scores, digits: int | None) -> Scores:
    """Without the digits in which equal vectors differ by the order of additions."""
    return scores if digits is None else np.round(scores.astype(np.float64), digits)


def of_score(score: float) -> float:
    """A cosine or a fused score, to the digits that order hits; 0 for what points away from the query."""
    return min(max(round(float(score), DIGITS), 0.0), 1.0)


# From a distance of unit vectors to their cosine, by Chroma's names: its `l2` is the squared distance.
_OF_DISTANCE: dict[str, Callable[[float], float]] = {
    "cosine": lambda distance: 1.0 - distance,
    "ip": lambda distance: 1.0 - distance,
    "l2": lambda distance: 1.0 - distance / 2.0,
}


def cosine_of_distance(collection: Any) -> Callable[[float], float] | None:
    """From the distances of a Chroma collection to cosines; None for a space that has none."""
    stored = collection.configuration_json
    configuration = json.loads(stored) if isinstance(stored, str) else stored
    index = configuration.get("hnsw") or configuration.get("spann") or {}
    return _OF_DISTANCE.get(str(index.get("space", "l2")))


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
    floor, top = values.min() if least is None else least, values.max()
    values = (values - floor) / (top - floor) if top > floor else np.ones_like(values)
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
