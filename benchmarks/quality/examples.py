"""Ten test queries for a reader: in each set the one that thinking of o1-embedder-22m helped and hurt most.

`python -m benchmarks.quality.run` writes them to benchmarks/results/examples.jsonl. A query is named and not
quoted: its text belongs to its collection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.bench import MEASURE
from o1_retriever.evaluation.comparison import Evaluation

FAST, THINKING = "o1_embedder_22m_fast", "o1_embedder_22m_thinking"


def write_examples(path: Path, done: Mapping[str, Evaluation]) -> None:
    """Write the examples of every set, most helped ones first."""
    found = [(set_name, *each) for set_name, evaluation in done.items() for each in _extremes(evaluation)]
    rows = [_example(name, done[name], query, gain) for name, query, gain in found]
    rows.sort(key=lambda row: -row["gain"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _extremes(evaluation: Evaluation) -> list[tuple[str, float]]:
    """(query, gain) of the largest gain and of the largest loss; ties go to the first id."""
    fast, thinking = (evaluation[name].values[MEASURE] for name in (FAST, THINKING))
    gains = {query: thinking[query] - fast[query] for query in sorted(fast)}
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    return [(best, gains[best]), (worst, gains[worst])]


def _example(name: str, evaluation: Evaluation, query: str, gain: float) -> dict[str, Any]:
    thinking = evaluation[THINKING]
    relevant = [document for document, grade in evaluation.collection.qrels[query].items() if grade > 0]
    return {
        "set": name,
        "query": query,
        "gain": round(gain, 4),
        "thoughts": [thought.text for thought in thinking.thoughts[query]],
        "places_fast": _places(evaluation[FAST].run[query], relevant),
        "places_thinking": _places(thinking.run[query], relevant),
    }


def _places(ranking: Mapping[str, float], relevant: list[str]) -> list[int]:
    """The places, counted from 1, of the relevant documents that were found, the first five at most."""
    order = sorted(ranking, key=lambda document: -ranking[document])
    return sorted(order.index(document) + 1 for document in relevant if document in ranking)[:5]
