"""What adding to an index and searching it cost as it grows, with synthetic vectors of 384 dimensions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, median
from tempfile import TemporaryDirectory

from benchmarks.record import Figure
from benchmarks.speed.pairs import seconds
from benchmarks.speed.synthetic import SyntheticEmbedder, mixtures, numbered, random_base
from o1_retriever import Index

_QUICK = (1_000, 10_000, 100_000)
_FULL = (1_000, 10_000, 100_000, 1_000_000)
# Documents that the index embeds at once; it writes two such batches in one transaction.
_BATCH = 500
_QUERIES = 200


def measure(*, full: bool = False) -> list[Figure]:
    """`index_growth/<n>/...`: seconds to add n documents from nothing, and one search among them, p50."""
    return grow(_FULL if full else _QUICK)


def grow(sizes: Sequence[int], *, queries: int = _QUERIES) -> list[Figure]:
    """One index that grows through these sizes, and the exponents of its costs (1: linear, 0: constant)."""
    base = random_base()
    asked = mixtures(base, queries, seed=0)
    added: dict[int, float] = {}
    asking: dict[int, float] = {}
    spent, count = 0.0, 0
    with TemporaryDirectory() as folder, Index(Path(folder), SyntheticEmbedder(base)) as index:
        for size in sizes:
            started = time.perf_counter()
            index.add(numbered(count, size), batch_size=_BATCH, show_progress_bar=False)
            spent, count = spent + time.perf_counter() - started, size
            index.search(asked[:1])
            milliseconds = [1000 * seconds(lambda row=row: index.search(row[None])) for row in asked]  # type: ignore[misc]
            added[size], asking[size] = spent, median(milliseconds)
            print(f"{size} documents: {spent:.1f} s to add, {asking[size]:.2f} ms a query", flush=True)
    return [figure for size in sizes for figure in _figures(size, added[size], asking[size])] + [
        Figure(
            name=f"index_growth/{what}_exponent", value=exponent(costs), unit=_between(sizes), better="lower"
        )
        for what, costs in (("add", added), ("query", asking))
    ]


def exponent(costs: Mapping[int, float]) -> float:
    """The slope of the line through the logarithms of sizes and costs."""
    sizes, spent = ([math.log(value) for value in values] for values in (costs.keys(), costs.values()))
    slope = linear_regression(sizes, spent).slope
    return round(slope, 2)


def _figures(size: int, add_s: float, query_ms: float) -> list[Figure]:
    name = f"index_growth/{size}"
    return [
        Figure(name=f"{name}/add_s", value=round(add_s, 2), unit=f"s, {size} documents", better="lower"),
        Figure(name=f"{name}/query_ms", value=round(query_ms, 2), unit="ms, p50", better="lower"),
    ]


def _between(sizes: Sequence[int]) -> str:
    return f"exponent, {min(sizes)} to {max(sizes)} documents"
