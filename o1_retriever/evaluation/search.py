"""Which documents are nearest: exactly, block by block, or through Chroma's graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from o1_retriever.evaluation.ranking import Ranking, best
from o1_retriever.extras import require
from o1_retriever.ranking.fusion import Places
from o1_retriever.thought import Vector

BLOCK_BYTES = 64 << 20  # of scores or of vectors that are in memory at a time


def search_exactly(
    queries: Vector, matrix: Vector, depth: int, *, ties: Places, block_bytes: int = BLOCK_BYTES
) -> list[Ranking]:
    """The `depth` documents of largest inner product for each row of `queries`, best first.

    `matrix` (documents, dimension) may be a memory map: a block of it is read at a time, and memory does not
    grow with its rows. `ties` orders equal scores.
    """
    found: list[Ranking | None] = [None] * len(queries)
    for first in range(0, len(matrix), _rows(queries, matrix, block_bytes)):
        block = np.asarray(matrix[first : first + _rows(queries, matrix, block_bytes)], dtype=np.float32)
        scores = queries @ block.T
        places = np.arange(first, first + len(block))
        for number, row in enumerate(scores):
            found[number] = _merged(found[number], row, places, ties, depth)
    empty = Ranking(np.zeros(0, np.int64), np.zeros(0, np.float32))
    return [empty if ranking is None else ranking for ranking in found]


def all_scores(queries: Vector, matrix: Vector, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Vector]:
    """For each query its inner products with all documents, a few queries at a time."""
    step = max(1, block_bytes // (4 * max(1, len(matrix))))
    for first in range(0, len(queries), step):
        yield from queries[first : first + step] @ np.asarray(matrix, dtype=np.float32).T


def search_hnsw(queries: Vector, matrix: Vector, depth: int, *, batch: int = 5000) -> list[Ranking]:
    """Search through Chroma's graph (HNSW, cosine space, default parameters) in a temporary folder.

    The graph is approximate: compare with `search_exactly` by `recall_lost`.
    """
    chromadb = require("chromadb", extra="index", purpose="Searching through HNSW")
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = chromadb.PersistentClient(path=folder, settings=settings)
        collection = client.create_collection(
            "corpus", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
        for first in range(0, len(matrix), batch):
            rows = np.asarray(matrix[first : first + batch], dtype=np.float32)
            collection.add(ids=[str(first + i) for i in range(len(rows))], embeddings=rows)
        rankings = []
        for query in queries:
            answer = collection.query(
                query_embeddings=query[None], n_results=min(depth, len(matrix)), include=["distances"]
            )
            places = np.array([int(key) for key in answer["ids"][0]], dtype=np.int64)
            scores = 1 - np.array(answer["distances"][0], dtype=np.float32)
            rankings.append(Ranking(places, scores))
    return rankings


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallLost:
    """Share of the exact result that an approximate search missed, at 10 documents and at `depth`."""

    at_10: float
    at_depth: float
    depth: int


def recall_lost(exact: Sequence[Ranking], approximate: Sequence[Ranking], depth: int) -> RecallLost:
    """Compare two searches for the same queries."""
    return RecallLost(
        at_10=_missed(exact, approximate, 10), at_depth=_missed(exact, approximate, depth), depth=depth
    )


def _missed(exact: Sequence[Ranking], approximate: Sequence[Ranking], depth: int) -> float:
    shares = [
        1
        - len(np.intersect1d(right.places[:depth], found.places[:depth])) / max(1, len(right.places[:depth]))
        for right, found in zip(exact, approximate, strict=True)
    ]
    return float(np.mean(shares)) if shares else 0.0


def _rows(queries: Vector, matrix: Vector, block_bytes: int) -> int:
    """Rows of a block whose scores and whose vectors each take at most `block_bytes`."""
    widest = max(1, len(queries), int(matrix.shape[1]))
    return max(1, block_bytes // (4 * widest))


def _merged(known: Ranking | None, scores: Vector, places: Places, ties: Places, depth: int) -> Ranking:
    if known is None:
        return best(scores, ties, depth, places=places)
    if len(known.scores) == depth:
        # Most of a later block is worse than what is known; equal scores may still win by the order of ties.
        promising = scores >= known.scores[-1]
        scores, places = scores[promising], places[promising]
    if not len(scores):
        return known
    return best(
        np.concatenate([known.scores, scores]), ties, depth, places=np.concatenate([known.places, places])
    )
