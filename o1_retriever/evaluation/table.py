"""One table with all systems: the measures, the gain over the first with its p-value, and the costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from o1_retriever.evaluation.comparison import Evaluation, SystemResult
from o1_retriever.evaluation.statistics import Comparison

MARK = "*"  # on a time that thoughts from the cache have shortened


def records(evaluation: Evaluation, *, measure: str | None = None) -> list[dict[str, Any]]:
    """One plain JSON object per system: means, 95 % interval, comparison with the first, costs."""
    measure = measure or next(iter(evaluation.results[0].values))
    compared = evaluation.comparisons(measure)
    return [
        {
            "collection": evaluation.collection.name,
            "split": evaluation.collection.split,
            "queries": len(evaluation.collection.qrels),
            "documents": len(evaluation.collection.corpus.ids),
            "system": result.name,
            "measures": result.means,
            "compared_by": measure,
            "interval": list(evaluation.interval(result.name, measure)),
            "against_first": asdict(compared[result.name]) if result.name in compared else None,
            "cost": asdict(result.cost),
            "recall_lost": asdict(result.recall_lost) if result.recall_lost else None,
        }
        for result in evaluation.results
    ]


def cells(evaluation: Evaluation, *, measure: str | None = None) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of the table as text; columns that would be empty are left out."""
    measure = measure or next(iter(evaluation.results[0].values))
    compared = evaluation.comparisons(measure)
    names = list(evaluation.results[0].values)
    costs = ["tokens thought", "ms/query", "documents/s", "MB", "recall lost"]
    heads = ["system", *names, "95 %", "gain", "p", *costs]
    rows = [_row(evaluation, result, measure, compared.get(result.name)) for result in evaluation.results]
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def markdown(evaluation: Evaluation, *, measure: str | None = None) -> str:
    """The table in Markdown, with a line on what it shows."""
    heads, rows = cells(evaluation, measure=measure)
    return "\n".join([*markdown_table(heads, rows), "", caption(evaluation, measure=measure)])


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose first column is text and whose others are numbers."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in escaped]


def caption(evaluation: Evaluation, *, measure: str | None = None) -> str:
    """What the table was measured on and how its columns are meant."""
    collection = evaluation.collection
    measure = measure or next(iter(evaluation.results[0].values))
    text = (
        f"{collection.name}, split {collection.split}: {len(collection.qrels)} queries, "
        f"{len(collection.corpus.ids)} documents. Interval, gain and p are of {measure}: bootstrap; against "
        f"{evaluation.results[0].name}; paired randomisation test, Holm's correction."
    )
    if any(result.cost.cached for result in evaluation.results):
        text += f" {MARK} Thoughts came from the cache: the time is shorter than without."
    return text


def _row(
    evaluation: Evaluation, result: SystemResult, measure: str, compared: Comparison | None
) -> list[str]:
    low, high = evaluation.interval(result.name, measure)
    cost, lost = result.cost, result.recall_lost
    return [
        result.name,
        *(f"{value:.4f}" for value in result.means.values()),
        f"{low:.3f}–{high:.3f}",
        f"{compared.difference:+.4f}" if compared else "",
        f"{compared.p_corrected:.4f}" if compared else "",
        f"{cost.thought_tokens:.1f}" if cost.thought_tokens else "",
        f"{cost.ms_per_query:.1f}{MARK if cost.cached else ''}",
        f"{cost.documents_per_second:,.0f}" if cost.documents_per_second else "",
        f"{cost.peak_mb:,.0f}" if cost.peak_mb else "",
        f"{lost.at_10:.1%} @10, {lost.at_depth:.1%} @{lost.depth}" if lost else "",
    ]
