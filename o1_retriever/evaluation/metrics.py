"""Runs: their measures, computed by `ir-measures`, and their files in TREC's format."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import CollectionError, SettingsError, require
from o1_retriever.evaluation.collection import Qrels
from o1_retriever.storage import written_whole
from o1_retriever.thought import Thought

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
    package = require("ir_measures", extra="eval", purpose="Measuring a ranking")
    parsed = {}
    for name in measures:
        try:
            parsed[name] = package.parse_measure(MEASURES.get(name, name))
        except (ValueError, NameError, SyntaxError) as error:
            hint = f"Known ones: {', '.join(MEASURES)}, and those of ir-measures."
            raise SettingsError(f"Unknown measure {name!r}.", hint=hint) from error
    ranked = {}
    for query in qrels:
        found = ordered({key: score for key, score in run.get(query, {}).items() if key != query})
        # Ranks instead of scores: no provider of ir-measures is left to break a tie in its own way.
        ranked[query] = {document: float(-rank) for rank, document in enumerate(found)}
    plain = {query: dict(judged) for query, judged in qrels.items()}
    values: dict[tuple[str, str], float] = {
        (str(row.measure), row.query_id): float(row.value)
        for row in package.iter_calc(list(parsed.values()), plain, ranked)
    }
    return {
        name: {query: values.get((str(measure), query), 0.0) for query in qrels}
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


def thoughts_path(path: str | os.PathLike[str]) -> Path:
    """Where the thoughts of a run file are kept: `name.thoughts.jsonl` beside `name.trec`."""
    return Path(path).with_suffix(".thoughts.jsonl")


def write_run(
    path: str | os.PathLike[str],
    run: Run,
    *,
    tag: str = "o1-retriever",
    queries: Mapping[str, str] | None = None,
    thoughts: Mapping[str, Sequence[Thought]] | None = None,
) -> None:
    """Write a run as `query Q0 document rank score tag`, best first, ranks from 1; scores lose nothing.

    With `thoughts` (by query id) and the texts of the `queries`, the file of `thoughts_path` is written too;
    it can be read again as recorded thoughts. Raises `CollectionError` for an id or tag with white space,
    which the format cannot hold, and for a score that is not finite.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_names("tag", [tag])
    _check_names("query id", run)
    lines = []
    for query, scores in run.items():
        _check_names("document id", scores)
        for rank, document in enumerate(ordered(scores), start=1):
            score = float(scores[document])
            if not math.isfinite(score):
                raise CollectionError(f"Query {query!r} has the score {score!r}; expected a finite number.")
            lines.append(f"{query} Q0 {document} {rank} {score!r} {tag}\n")
    with written_whole(target) as file:
        file.writelines(lines)
    if thoughts is not None:
        texts = queries or {}
        with written_whole(thoughts_path(target)) as file:
            for key, written in thoughts.items():
                row = {
                    "_id": key,
                    "text": texts.get(key, ""),
                    "thoughts": [None if thought.failed else thought.text for thought in written],
                    "finish": [thought.finish for thought in written],
                    "errors": [thought.error for thought in written],
                    "tokens": [thought.completion_tokens for thought in written],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check_names(what: str, names: Iterable[str]) -> None:
    for name in names:
        if len(name.split()) != 1 or name != name.strip():
            raise CollectionError(
                f"The {what} {name!r} cannot stand in a TREC run; expected no white space in it."
            )
