"""What an index costs as it grows: adding, opening, searching, with and without a filter, and memory.

The vectors are synthetic, of 384 dimensions. Each size is opened and searched in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import Figure
from benchmarks.speed.child import in_child, resident
from benchmarks.speed.pairs import seconds
from benchmarks.speed.synthetic import SyntheticEmbedder, mixtures, random_base
from o1_retriever import Index
from o1_retriever.documents import Document

_QUICK = (1_000, 10_000, 100_000)
_FULL = (1_000, 10_000, 100_000, 1_000_000)
# Documents that the index embeds at once; it writes two such batches in one transaction.
_BATCH = 500
_QUERIES = 200
# One document in ten, anywhere; and the hundred of one file.
_FILTERS: dict[str, dict[str, Any]] = {"filtered": {"tenth": 3}, "one_file": {"source": "file-0005.md"}}
_UNITS = {
    "add_s": "s, {size} documents, from nothing",
    "query_p50_ms": "ms, p50",
    "filtered_p50_ms": "ms, p50, a tenth of the documents",
    "one_file_p50_ms": "ms, p50, 100 of the documents",
    "first_filter_ms": "ms, the first search for a tenth of the documents",
    "open_s": "s, from the files to the first answer",
    "memory_mb": "MB, resident after the searches",
    "disk_mb": "MB, all files",
}


def measure(*, full: bool = False) -> list[Figure]:
    """`search/<n>/...`: adding n documents from nothing, and opening and searching them in a new process."""
    return grow(_FULL if full else _QUICK)


def grow(sizes: Sequence[int], *, queries: int = _QUERIES) -> list[Figure]:
    """One index that grows through these sizes, and the exponents of its costs (1: linear, 0: constant)."""
    embedder = SyntheticEmbedder(random_base())
    costs: dict[int, dict[str, float]] = {}
    spent, count = 0.0, 0
    with TemporaryDirectory() as name:
        for size in sizes:
            with Index(name, embedder) as index:
                started = time.perf_counter()
                index.add(documents(count, size), batch_size=_BATCH, show_progress_bar=False)
                spent, count = spent + time.perf_counter() - started, size
            found = in_child(__name__, "--folder", name, "--queries", queries)
            costs[size] = {"add_s": spent, **found}
            print(
                f"{size}: {json.dumps({key: round(value, 2) for key, value in costs[size].items()})}",
                flush=True,
            )
    return [
        Figure(
            name=f"search/{size}/{what}",
            value=round(value, 2),
            unit=_UNITS[what].format(size=size),
            better="lower",
        )
        for size in sizes
        for what, value in costs[size].items()
    ] + [
        Figure(
            name=f"search/{what.partition('_')[0]}_exponent",
            value=exponent({size: found[what] for size, found in costs.items()}),
            unit=f"exponent, {min(sizes)} to {max(sizes)} documents",
            better="lower",
        )
        for what in ("add_s", "query_p50_ms")
    ]


def documents(start: int, stop: int) -> Iterator[Document]:
    """Documents with the numbers `start` to `stop - 1`, and metadata as of files of a hundred passages."""
    for number in range(start, stop):
        metadata = {"source": f"file-{number // 100:04d}.md", "position": number % 100, "tenth": number % 10}
        text = f"Passage number {number} of a large collection."
        yield Document(id=str(number), text=text, metadata=metadata)


def exponent(costs: Mapping[int, float]) -> float:
    """The slope of the line through the logarithms of sizes and costs."""
    sizes, spent = ([math.log(value) for value in values] for values in (costs.keys(), costs.values()))
    slope = linear_regression(sizes, spent).slope
    return round(slope, 2)


def draw(folder: Path, queries: int) -> dict[str, float]:
    """Open the index and search it: seconds, milliseconds and megabytes, by the names of `_UNITS`."""
    import chromadb  # noqa: F401 - to load the library is not to open an index

    asked = mixtures(random_base(), queries, seed=0)[:, None]
    started = time.perf_counter()
    with Index(folder) as index:
        index.search(asked[0])
        found = {"open_s": time.perf_counter() - started}
        found["query_p50_ms"] = median(1000 * seconds(lambda row=row: index.search(row)) for row in asked)  # type: ignore[misc]
        for name, where in _FILTERS.items():
            first = 1000 * seconds(lambda where=where: index.search(asked[0], where=where))  # type: ignore[misc]
            found.setdefault("first_filter_ms", first)
            found[f"{name}_p50_ms"] = median(
                1000 * seconds(lambda row=row, where=where: index.search(row, where=where))  # type: ignore[misc]
                for row in asked
            )
        return {**found, "memory_mb": resident(), "disk_mb": index.info().bytes / 1e6}


def main() -> None:
    """Open and search what the parent process has filled."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--queries", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(draw(options.folder, options.queries)))


if __name__ == "__main__":
    main()
