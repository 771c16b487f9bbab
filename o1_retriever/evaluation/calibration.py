"""What a user's own questions tell about an index: how much thoughts should count, and what that gains; and
how probable it is that a hit with such scores is relevant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import InputError
from o1_retriever.evaluation.comparison import bootstrap_interval, randomisation_test
from o1_retriever.evaluation.metrics import aligned, per_query
from o1_retriever.index.index import Index
from o1_retriever.query import Query, as_query
from o1_retriever.reporting import counted
from o1_retriever.search.relevance import Relevance, described, keep, kind, probability
from o1_retriever.search.result import SearchOptions, SearchResult
from o1_retriever.search.retriever import Retriever
from o1_retriever.thought import Thought, ThoughtSettings

MEASURE = "nDCG@10"
_HITS = 20  # what is searched for: the measure reads ten, and relevance is told from all
# From the thoughts alone to the query nearly alone.
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 6.0)
_LEAST = 10  # questions, below which an interval says nothing
_PARTS = 5  # of the questions, for what a fit says about others
_STEPS = 10  # of probabilities that are compared with shares
_RIDGE, _NEWTON = 1.0, 30  # of the logistic regression: its penalty, and its steps

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The `query_weight` that serves best, None where the query alone does, and what it gains.

    `alone` is the measure of the query without thoughts, `by_weight` that with thoughts at each weight.
    `gain` over `alone` has a 95 % interval from `low` to `high` and the p-value of a paired randomisation
    test: each question is measured at the weight that the others choose, so that nothing is measured where it
    was chosen. `questions` is their number. `relevance` has for this search, without thoughts and at each
    weight, how probable it is that a hit is relevant, by `search.relevance.kind`.
    """

    query_weight: float | None
    alone: float
    by_weight: Mapping[float, float]
    gain: float
    low: float
    high: float
    p: float
    questions: int
    relevance: Mapping[str, Relevance] = field(default_factory=dict)

    def keep(self, index: Index) -> Path:
        """Keep `relevance` beside the index, so that its searches take a `min_relevance`; return the file."""
        return keep(index, self.relevance)

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

    `relevant` has the ids of the relevant passages, or their sources, by question: a few dozen. An empty list
    says that nothing in the index is relevant: such questions tell what irrelevant hits look like, and
    nothing about the weight. Each question is thought about once. `settings` and `options` are those of
    `Retriever.search`. Raises `InputError` for fewer than ten questions with relevant passages, and for an
    empty index.
    """
    _check(relevant)
    if not retriever.index.count():
        raise InputError(f"{retriever.index.name} has no documents; expected some to search.")
    base = settings or retriever.embedder.settings
    asked = [as_query(query) for query in relevant]
    written = retriever.embedder.think(asked, settings=base)
    queries = [
        Query(query.text, thoughts=tuple(each.text for each in row if _counts(each)))
        for query, row in zip(asked, written, strict=True)
    ]

    how = cast(SearchOptions, {**options, "thinking": None, "min_relevance": None})

    def search(chosen: ThoughtSettings, queries: Sequence[Query]) -> list[SearchResult]:
        return retriever.search_many(queries, k=_HITS, settings=chosen, show_progress_bar=False, **how)

    weights = dict.fromkeys([*WEIGHTS, base.weight()])
    wanted = list(relevant.values())
    alone = search(base.with_changes(thinking="never"), asked)
    thinking = {weight: search(base.with_changes(query_weight=weight), queries) for weight in weights}
    chosen = _chosen(
        _values(alone, wanted), np.stack([_values(thinking[weight], wanted) for weight in WEIGHTS])
    )
    searched: list[tuple[float | None, list[SearchResult]]] = [(None, alone), *thinking.items()]
    settings_of_search = retriever.search_settings.with_changes(**how)
    return replace(
        chosen,
        relevance={
            kind(settings_of_search.hybrid, settings_of_search.pooling, weight): _relevance(found, wanted)
            for weight, found in searched
        },
    )


def _check(relevant: Mapping[str, Sequence[str]]) -> None:
    for position, (query, names) in enumerate(relevant.items()):
        if isinstance(names, str):
            raise InputError(
                f"The question {query!r:.60} has no list of relevant passages.", position=position
            )
    answered = sum(bool(names) for names in relevant.values())
    if answered < _LEAST:
        raise InputError(
            f"Found {counted(answered, 'question')} with relevant passages; expected {_LEAST} or more, "
            "better a few dozen."
        )


def _counts(thought: Thought) -> bool:
    """Whether a search would use it. One that was cut inside its only word looks whole once it is given."""
    return not thought.failed and (thought.finish != "length" or len(thought.text.split()) > 1)


def _values(found: Sequence[SearchResult], relevant: Sequence[Sequence[str]]) -> Values:
    """The measure of each question that has an answer; a source is found by the best of its passages."""
    names = [f"question {place}" for place, wanted in enumerate(relevant) if wanted]
    answered = [(result, wanted) for result, wanted in zip(found, relevant, strict=True) if wanted]
    qrels = {name: dict.fromkeys(wanted, 1) for name, (_, wanted) in zip(names, answered, strict=True)}
    run = {}
    for name, (result, _) in zip(names, answered, strict=True):
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


def _relevance(found: Sequence[SearchResult], relevant: Sequence[Sequence[str]]) -> Relevance:
    """How probable it is that a hit is relevant, and how true that is of questions not fitted on."""
    rows = np.concatenate([described(result.hits) for result in found if result.hits])
    labels = np.array(
        [
            hit.id in wanted or hit.source in wanted
            for result, names in zip(found, relevant, strict=True)
            for wanted in [set(names) - {""}]
            for hit in result
        ],
        np.float64,
    )
    parts = np.random.default_rng(0).permutation(len(found)) % _PARTS
    part = np.concatenate([np.full(len(result), each) for result, each in zip(found, parts, strict=True)])
    told, of_base_rate = np.zeros(len(labels)), np.zeros(len(labels))
    for each in range(_PARTS):
        others, these = part != each, part == each
        told[these] = probability(rows[these], logistic(rows[others], labels[others]))
        of_base_rate[these] = labels[others].mean()
    fitted = logistic(rows, labels)
    return Relevance(
        weights=tuple(fitted[:-1].tolist()),
        bias=float(fitted[-1]),
        questions=len(found),
        brier=float(((told - labels) ** 2).mean()),
        brier_of_base_rate=float(((of_base_rate - labels) ** 2).mean()),
        calibration_error=calibration_error(told, labels),
    )


def logistic(rows: Values, labels: Values) -> Values:
    """Weights (features + 1, the last is the bias) of the logistic regression of labels, 0 or 1, on rows.

    A ridge of one on the standardised features keeps the weights finite where the labels can be told apart.
    """
    centre, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
    standard = np.column_stack([(rows - centre) / scale, np.ones(len(rows))])
    ridge = np.diag([*[_RIDGE] * rows.shape[1], 1e-6])
    weights = np.zeros(standard.shape[1])
    for _ in range(_NEWTON):
        likely = probability(standard[:, :-1], weights)
        curvature = standard.T @ (standard * (likely * (1 - likely))[:, None]) + ridge
        weights = weights - np.linalg.solve(curvature, standard.T @ (likely - labels) + ridge @ weights)
    plain = weights[:-1] / scale
    return np.append(plain, weights[-1] - plain @ centre)


def calibration_error(told: Values, labels: Values) -> float:
    """By how much probabilities differ from shares of labels, on average over ten equal steps of them."""
    step = np.minimum((told * _STEPS).astype(int), _STEPS - 1)
    return float(
        sum(abs(told[step == each].sum() - labels[step == each].sum()) for each in range(_STEPS))
        / len(labels)
    )
