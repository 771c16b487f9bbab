"""How much thoughts should count on a user's own questions, and what that gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import InputError
from o1_retriever.evaluation.comparison import bootstrap_interval, randomisation_test
from o1_retriever.evaluation.metrics import aligned, per_query
from o1_retriever.query import Query, as_query
from o1_retriever.reporting.text import counted
from o1_retriever.search.result import SearchOptions, SearchResult
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import Thought, ThoughtSettings

MEASURE = "nDCG@10"
_HITS = 10
# From the thoughts alone to the query nearly alone.
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 6.0)
_LEAST = 10  # questions, below which an interval says nothing

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The `query_weight` that serves best, None where the query alone does, and what it gains.

    `alone` is the measure of the query without thoughts, `by_weight` that with thoughts at each weight.
    `gain` over `alone` has a 95 % interval from `low` to `high` and the p-value of a paired randomisation
    test: each question is measured at the weight that the others choose, so that nothing is measured where it
    was chosen. `questions` is their number.
    """

    query_weight: float | None
    alone: float
    by_weight: Mapping[float, float]
    gain: float
    low: float
    high: float
    p: float
    questions: int

    @property
    def sentence(self) -> str:
        """What it comes to, in words."""
        interval = f"{self.gain:+.3f} {MEASURE}, between {self.low:+.3f} and {self.high:+.3f}"
        if self.query_weight is None:
            return f"The queries alone serve best (thinking adds {interval}): do not think about them."
        if self.low <= 0:
            return f"Thinking adds {interval}: chance may explain it; more questions would tell."
        return f"Thinking adds {interval}."

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain JSON values."""
        by_weight = {f"{weight:g}": value for weight, value in self.by_weight.items()}
        return {**asdict(self), "by_weight": by_weight, "measure": MEASURE}


def calibrate(
    retriever: Retriever,
    relevant: Mapping[str, Sequence[str]],
    *,
    settings: ThoughtSettings | None = None,
    **options: Unpack[SearchOptions],
) -> Calibration:
    """Search for each question at each weight of the query, and choose.

    `relevant` has the ids of the relevant passages, or their sources, by question: a few dozen. Each question
    is thought about once. `settings` and `options` are those of `Retriever.search`. Raises `InputError` for
    fewer than ten questions and for those without a relevant passage.
    """
    if len(relevant) < _LEAST:
        raise InputError(
            f"Found {counted(len(relevant), 'question')} with relevant passages; expected {_LEAST} or more, "
            "better a few dozen."
        )
    for position, (query, names) in enumerate(relevant.items()):
        if isinstance(names, str) or not names:
            raise InputError(
                f"The question {query!r:.60} has no list of relevant passages.", position=position
            )
    base = settings or retriever.embedder.settings
    asked = [as_query(query) for query in relevant]
    written = retriever.embedder.think(asked, settings=base)
    queries = [
        Query(query.text, thoughts=tuple(each.text for each in row if _counts(each)))
        for query, row in zip(asked, written, strict=True)
    ]

    def values(chosen: ThoughtSettings, queries: Sequence[Query]) -> Values:
        how = cast(SearchOptions, {**options, "thinking": None})
        found = retriever.search_many(queries, k=_HITS, settings=chosen, show_progress_bar=False, **how)
        return _values(found, list(relevant.values()))

    alone = values(base.with_changes(thinking="never"), asked)
    rows = np.stack([values(base.with_changes(query_weight=weight), queries) for weight in WEIGHTS])
    return _chosen(alone, rows)


def _counts(thought: Thought) -> bool:
    """Whether a search would use it. One that was cut inside its only word looks whole once it is given."""
    return not thought.failed and (thought.finish != "length" or len(thought.text.split()) > 1)


def _values(found: Sequence[SearchResult], relevant: Sequence[Sequence[str]]) -> Values:
    """The measure of each question; a relevant source is found by the best of its passages."""
    names = [f"question {place}" for place in range(len(found))]
    qrels = {name: dict.fromkeys(wanted, 1) for name, wanted in zip(names, relevant, strict=True)}
    run = {}
    for name, result in zip(names, found, strict=True):
        ranked: dict[str, float] = {}
        for hit in result:
            ranked.setdefault(hit.id if hit.id in qrels[name] else hit.source or hit.id, -float(hit.rank))
        run[name] = ranked
    return aligned(per_query(qrels, run, measures=[MEASURE])[MEASURE], names)


def _chosen(alone: Values, rows: Values) -> Calibration:
    """Of the values by weight and question (weights, questions) the best weight, and its honest gain."""
    every = np.vstack([alone, rows])
    totals = every.sum(axis=1)
    # The best choice without each question, the first of equal ones: the query alone, if it is as good.
    others = (totals[:, None] - every).argmax(axis=0)
    honest = every[others, np.arange(len(alone))]
    best = int(totals.argmax())
    low, high = bootstrap_interval(honest - alone)
    return Calibration(
        query_weight=WEIGHTS[best - 1] if best else None,
        alone=float(alone.mean()),
        by_weight=dict(zip(WEIGHTS, rows.mean(axis=1).tolist(), strict=True)),
        gain=float((honest - alone).mean()),
        low=low,
        high=high,
        p=randomisation_test(alone, honest),
        questions=len(alone),
    )
