"""Measures of a ranking, computed by `ir-measures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import Qrels
from o1_retriever.extras import require

Run: TypeAlias = Mapping[str, Mapping[str, float]]

# Names as users write them, and as ir-measures does.
MEASURES = {
    "nDCG@10": "nDCG@10",
    "Recall@100": "R@100",
    "Recall@1000": "R@1000",
    "MRR@10": "RR@10",
    "MAP": "AP",
    "Success@1": "Success@1",
}
DEPTH = 1000  # documents per query that the deepest of the measures reads


def per_query(
    qrels: Qrels, run: Run, *, measures: Sequence[str] = tuple(MEASURES)
) -> dict[str, dict[str, float]]:
    """Every measure of every judged query: name to query id to value.

    `measures` are the names above or any of ir-measures'. A judged query that the run lacks has 0 and a
    query without judgments does not count. A document with the id of its query is left out, as in BEIR.
    Documents of equal score are ranked as trec_eval does, by descending id.
    """
    package = _package()
    parsed = {name: _parse(package, name) for name in measures}
    ranked = {query: _as_ranks(query, run.get(query, {})) for query in qrels}
    plain = {query: dict(judged) for query, judged in qrels.items()}
    found: dict[tuple[str, str], float] = {
        (str(row.measure), row.query_id): float(row.value)
        for row in package.iter_calc(list(parsed.values()), plain, ranked)
    }
    return {
        name: {query: found.get((str(measure), query), 0.0) for query in qrels}
        for name, measure in parsed.items()
    }


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over all its queries."""
    return {name: float(np.mean(list(by_query.values()))) for name, by_query in values.items()}


def ordered(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first; equal scores (as float32) by descending id, which is trec_eval's order."""
    with np.errstate(over="ignore"):
        single = np.fromiter(scores.values(), dtype=np.float64, count=len(scores)).astype(np.float32).tolist()
    return [document for _, document in sorted(zip(single, scores, strict=True), reverse=True)]


def aligned(values: Mapping[str, float], queries: Sequence[str]) -> NDArray[np.float64]:
    """The values of the queries in their order, for a paired test."""
    return np.array([values[query] for query in queries], dtype=np.float64)


def _as_ranks(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    # Ranks instead of scores: no provider of ir-measures is left to break a tie in its own way.
    documents = ordered({key: value for key, value in scores.items() if key != query})
    return {document: float(-rank) for rank, document in enumerate(documents)}


def _package() -> ModuleType:
    return require("ir_measures", extra="eval", purpose="Measuring a ranking")


def _parse(package: ModuleType, name: str) -> object:
    try:
        return package.parse_measure(MEASURES.get(name, name))
    except (ValueError, NameError, SyntaxError) as error:
        raise SettingsError(
            f"Unknown measure {name!r}.", hint=f"Known ones: {', '.join(MEASURES)}, and those of ir-measures."
        ) from error
