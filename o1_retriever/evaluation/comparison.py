"""Run systems over a collection and compare them: values per query, means, tests, and what it cost."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from o1_retriever.evaluation.collection import Collection
from o1_retriever.evaluation.metrics import DEPTH, MEASURES, Run, aligned, means, per_query
from o1_retriever.evaluation.search import RecallLost
from o1_retriever.evaluation.statistics import Comparison, bootstrap_interval, compare
from o1_retriever.evaluation.systems import Answer, System
from o1_retriever.thought import Thought

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a system cost.

    `thought_tokens` and `prompt_tokens` are per query. `ms_per_query` is wall-clock time of thinking,
    embedding and searching in batches; where `cached` is True some thoughts came from the cache and the
    time is not what it would take without. `peak_mb` is the largest memory of the process so far.
    """

    thought_tokens: float
    prompt_tokens: float
    ms_per_query: float
    cached: bool
    documents_per_second: float | None
    peak_mb: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SystemResult:
    """One system on one collection: its run, the thoughts by query id, and every measure per query."""

    name: str
    run: Run
    thoughts: Mapping[str, Sequence[Thought]]
    values: Mapping[str, Mapping[str, float]]
    cost: Cost
    recall_lost: RecallLost | None = None

    @property
    def means(self) -> dict[str, float]:
        """Each measure's mean over all judged queries."""
        return means(self.values)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """All systems on one collection, the first of which the others are compared with."""

    collection: Collection
    results: Sequence[SystemResult]

    def __getitem__(self, name: str) -> SystemResult:
        return next(result for result in self.results if result.name == name)

    def comparisons(self, measure: str = "nDCG@10") -> dict[str, Comparison]:
        """Every system but the first against the first, corrected for their number."""
        queries = list(self.collection.qrels)
        first, *others = [(result.name, aligned(result.values[measure], queries)) for result in self.results]
        return compare(first[1], dict(others))

    def interval(self, name: str, measure: str = "nDCG@10") -> tuple[float, float]:
        """95 % bootstrap interval of a system's mean."""
        return bootstrap_interval(aligned(self[name].values[measure], list(self.collection.qrels)))


def evaluate(
    collection: Collection,
    systems: Sequence[System],
    *,
    measures: Sequence[str] = tuple(MEASURES),
    depth: int = DEPTH,
) -> Evaluation:
    """Search with every system for every judged query and measure what was found.

    `depth` documents are ranked per query: the deepest measure should not need more.
    """
    return Evaluation(
        collection=collection,
        results=[_measured(collection, system, measures=measures, depth=depth) for system in systems],
    )


def _measured(collection: Collection, system: System, *, measures: Sequence[str], depth: int) -> SystemResult:
    ids = collection.corpus.ids
    # A document with the id of its query is dropped from the ranking: one more is needed then.
    more = bool(collection.queries.keys() & set(ids))
    started = time.perf_counter()
    answer = system.search(list(collection.queries.values()), depth + more)
    seconds = time.perf_counter() - started
    run = {}
    for query, ranking in zip(collection.queries, answer.rankings, strict=True):
        found = ranking.by_id(ids)
        found.pop(query, None)
        run[query] = dict(list(found.items())[:depth])
    logger.info("%s on %s: %.1f s", system.name, collection.name, seconds)
    return SystemResult(
        name=system.name,
        run=run,
        thoughts=dict(zip(collection.queries, answer.thoughts, strict=True)),
        values=per_query(collection.qrels, run, measures=measures),
        cost=_cost(answer, seconds),
        recall_lost=answer.recall_lost,
    )


def _cost(answer: Answer, seconds: float) -> Cost:
    count = len(answer.rankings)
    thoughts = [thought for row in answer.thoughts for thought in row]
    return Cost(
        thought_tokens=sum(thought.completion_tokens for thought in thoughts) / count,
        prompt_tokens=sum(thought.prompt_tokens for thought in thoughts) / count,
        ms_per_query=1000 * seconds / count,
        cached=any(thought.cached for thought in thoughts),
        documents_per_second=answer.documents_per_second,
        peak_mb=peak_megabytes(),
    )


def peak_megabytes() -> float | None:
    """The largest resident memory of this process so far, in MB; None where the system does not say."""
    try:
        # Asked first: what `getrusage` counts begins with the memory of whoever started this process.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kilobytes elsewhere.
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
