"""Run systems over a collection and compare them: values per query, what it cost, and what is chance."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Collection
from o1_retriever.evaluation.metrics import DEPTH, MEASURES, Run, aligned, means, per_query
from o1_retriever.evaluation.systems import RecallLost, System, family_of
from o1_retriever.thought import Thought, repeats

logger = logging.getLogger(__name__)

Values = NDArray[np.float64]
ROUNDS = 10_000
_AT_ONCE = 4 << 20  # numbers drawn at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A system against another over the same queries.

    `difference` is the mean gain with its bootstrap interval from `low` to `high`; `p` is the two-sided
    p-value of a paired randomisation test, `p_corrected` after Holm's correction for all comparisons of the
    table. `effect` is Cohen's d of paired values: the mean gain in standard deviations of the gains (0.2 is
    called small, 0.5 medium, 0.8 large). `wins`, `losses` and `ties` count queries.
    """

    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    effect: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a system cost.

    `thought_tokens`, `prompt_tokens`, `repeats` (thoughts that nearly repeat another one) and `dropped`
    (those that the guard left out) are per query.
    `ms_per_query` is wall-clock time of thinking, embedding and searching in batches; where `cached` is True
    some thoughts came from the cache and the time is not what it would take without. `peak_mb` is the largest
    memory of the process so far.
    """

    thought_tokens: float
    prompt_tokens: float
    repeats: float
    dropped: float
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

    @property
    def thoughts_per_query(self) -> float:
        """How many thoughts could be had about a query."""
        counts = [sum(not thought.failed for thought in row) for row in self.thoughts.values()]
        return float(np.mean(counts)) if counts else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What one query's thoughts brought, in words that BM25 counts: stems, without stop words.

    `new` is the share of the thoughts' words that the query lacks; of these new words, `in_relevant` is the
    share that stands in a relevant document and `in_corpus` the share that stands in any. `before` and
    `after` are the places of the first relevant document without thoughts and with them, from 1 (None: not
    found). `why` says in a sentence what moved it.
    """

    new: float
    in_relevant: float
    in_corpus: float
    before: int | None
    after: int | None
    why: str


SIGNIFICANT = 0.05
ALONE = "the query alone"
OTHERS, EMPTY, REPEATED, RANDOM = (
    "another query's thoughts",
    "empty thoughts",
    "the query again",
    "random words",
)
CONTROLS = (OTHERS, EMPTY, REPEATED, RANDOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Systems with their own thoughts, each against the query alone and against controls of the same run.

    `compared` and `means` go by system, then by what it is compared with: `ALONE` (where it was measured),
    and the names of the controls. `diagnoses` go by query, for the pair of systems that a report shows.
    """

    compared: Mapping[str, Mapping[str, Comparison]]
    means: Mapping[str, Mapping[str, float]]
    diagnoses: Mapping[str, Diagnosis]

    def beaten(self, system: str) -> list[str]:
        """The controls that are worse than the system's own thoughts, beyond chance."""
        return [name for name, found in self.compared[system].items() if name != ALONE and _better(found)]

    def sentence(self, system: str) -> str:
        """What the comparisons of a system come to."""
        alone = self.compared[system].get(ALONE)
        equal = [name for name in self.compared[system] if name != ALONE and name not in self.beaten(system)]
        if alone is not None and not _better(alone):
            hurt = alone.p_corrected < SIGNIFICANT and alone.difference < 0
            first = "The thoughts hurt." if hurt else "The thoughts do not help beyond chance."
            return f"{first} What they say matters: every control is worse." if not equal else first
        helps = "The thoughts help" if alone is not None else "The thoughts beat the controls"
        if not equal:
            return f"{helps}, and it is what they say that helps."
        any_text = OTHERS in equal or RANDOM in equal
        finding = "any text of this length would have helped" if any_text else "not by what they say"
        start = "The thoughts help, but" if alone is not None else "Whether they help was not measured, but"
        return f"{start} {finding} (not worse beyond chance: {', '.join(equal)})."


def _better(found: Comparison) -> bool:
    return found.p_corrected < SIGNIFICANT and found.difference > 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """All systems on one collection, the first of which the others are compared with.

    `audit` compares their thoughts with controls, where that was asked for.
    """

    collection: Collection
    results: Sequence[SystemResult]
    audit: Audit | None = None

    def __getitem__(self, name: str) -> SystemResult:
        return next(result for result in self.results if result.name == name)

    @property
    def measure(self) -> str:
        """The measure by which systems are compared: the first one."""
        return next(iter(self.results[0].values))

    def comparisons(self) -> dict[str, Comparison]:
        """Every system but the first against the first, corrected for their number."""
        first, *others = [(result.name, self.values(result)) for result in self.results]
        return compare(first[1], dict(others))

    def interval(self, name: str) -> tuple[float, float]:
        """95 % bootstrap interval of a system's mean."""
        return bootstrap_interval(self.values(self[name]))

    def values(self, result: SystemResult) -> Values:
        """The measure of every judged query, for a system of this run or of another one."""
        return aligned(result.values[self.measure], list(self.collection.qrels))

    def thinking_pair(self) -> tuple[SystemResult, SystemResult] | None:
        """(first system without thoughts, the same one with most thoughts), None where there are no such two.

        Where nothing goes by the first one's name, any system that thinks is taken.
        """
        plain = next((result for result in self.results if not result.thoughts_per_query), None)
        thinking = [result for result in self.results if result.thoughts_per_query]
        if plain is None or not thinking:
            return None
        related = [result for result in thinking if family_of(result.name) == family_of(plain.name)]
        return plain, (related or thinking)[-1]


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
    # A document with the id of its query, and those that are excluded, are dropped from the ranking: as many
    # more are needed then.
    excluded = collection.excluded
    more = bool(collection.queries.keys() & set(ids)) + max(map(len, excluded.values()), default=0)
    started = time.perf_counter()
    answer = system.search(list(collection.queries.values()), depth + more)
    seconds = time.perf_counter() - started
    run = {}
    for query, ranking in zip(collection.queries, answer.rankings, strict=True):
        found = ranking.by_id(ids)
        dropped = {query, *excluded.get(query, ())}
        kept = ((key, score) for key, score in found.items() if key not in dropped)
        run[query] = dict(islice(kept, depth))
    logger.info("%s on %s: %.1f s", system.name, collection.name, seconds)
    count, thoughts = len(run), [thought for row in answer.thoughts for thought in row]
    return SystemResult(
        name=system.name,
        run=run,
        thoughts=dict(zip(collection.queries, answer.thoughts, strict=True)),
        values=per_query(collection.qrels, run, measures=measures),
        cost=Cost(
            thought_tokens=sum(thought.completion_tokens for thought in thoughts) / count,
            prompt_tokens=sum(thought.prompt_tokens for thought in thoughts) / count,
            repeats=sum(len(repeats(row)) for row in answer.thoughts) / count,
            dropped=sum(thought.dropped is not None for thought in thoughts) / count,
            ms_per_query=1000 * seconds / count,
            cached=any(thought.cached for thought in thoughts),
            documents_per_second=answer.documents_per_second,
            peak_mb=peak_megabytes(),
        ),
        recall_lost=answer.recall_lost,
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


def randomisation_test(first: Values, second: Values, *, rounds: int = ROUNDS, seed: int = 0) -> float:
    """Two-sided p-value for the difference of means of two systems over the same queries.

    Under the null hypothesis the two values of a query may be swapped. With at most `rounds` possible
    assignments all of them are counted, which is exact; otherwise `rounds` are drawn with `seed` and
    p = (1 + as extreme) / (1 + rounds).
    """
    differences = _paired(second, first)
    if not differences.any():
        return 1.0
    # A query without a difference changes no sum.
    differences = differences[differences != 0]
    count = len(differences)
    # Sums of the same numbers in another order differ by rounding; a hair less counts as equal.
    bar = abs(differences.sum()) * (1 - 1e-9)
    if 2**count <= rounds:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float(np.mean(np.abs(signs @ differences) >= bar))
    generator = np.random.default_rng(seed)
    extreme, left = 0, rounds
    while left:
        step = min(left, max(1, _AT_ONCE // count))
        signs = 1 - 2 * generator.integers(0, 2, size=(step, count), dtype=np.int8)
        extreme += int(np.sum(np.abs(signs @ differences) >= bar))
        left -= step
    return (1 + extreme) / (1 + rounds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons: adjusted p-values in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return [float(value) for value in adjusted]


def bootstrap_interval(values: Values) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over queries, drawn `ROUNDS` times with one seed."""
    if not len(values):
        raise SettingsError("Found no values; expected one per query.")
    generator = np.random.default_rng(0)
    drawn = []
    step = max(1, _AT_ONCE // len(values))
    for first in range(0, ROUNDS, step):
        places = generator.integers(0, len(values), size=(min(step, ROUNDS - first), len(values)))
        drawn.append(values[places].mean(axis=1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return float(low), float(high)


def compare(baseline: Values, others: Mapping[str, Values]) -> dict[str, Comparison]:
    """Each of the others against the baseline, by name, corrected for their number."""
    raw = [randomisation_test(baseline, values) for values in others.values()]
    result = {}
    for (name, values), p, corrected in zip(others.items(), raw, holm(raw), strict=True):
        gain = _paired(values, baseline)
        low, high = bootstrap_interval(gain)
        result[name] = Comparison(
            difference=float(gain.mean()),
            low=low,
            high=high,
            p=p,
            p_corrected=corrected,
            effect=float(gain.mean() / spread) if (spread := gain.std(ddof=len(gain) > 1)) else 0.0,
            wins=int((gain > 0).sum()),
            losses=int((gain < 0).sum()),
            ties=int((gain == 0).sum()),
        )
    return result


def _paired(first: Values, second: Values) -> Values:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise SettingsError(
            f"Found values of shapes {first.shape} and {second.shape}; expected one per query of each."
        )
    return np.asarray(first - second, dtype=np.float64)
