"""Measured figures of a model: what `o1-retriever eval` wrote, as a table and in the Hub's format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from o1_retriever.errors import InputError

_TASK = "information-retrieval"
_NOT_OURS = ("BM25", "HyDE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One system on one collection: its measures by name, and what a query costs."""

    collection: str
    split: str
    system: str
    measures: dict[str, float]
    queries: int | None = None
    cost: dict[str, Any] = field(default_factory=dict)


def read_figures(paths: Sequence[str | Path]) -> list[Figure]:
    """Read result files: `results.jsonl` of a report, what `eval --json` prints, or a report's folder.

    A line is an object with `collection`, `split`, `system` and `measures`; others may follow. Raises
    `InputError` naming the file and line of what cannot be used.
    """
    files = [file for path in paths for file in _files(Path(path))]
    return [figure for file in files for figure in _in_file(file)]


def as_table(figures: Sequence[Figure]) -> str:
    """A Markdown table of all systems, one line each."""
    names = list(dict.fromkeys(name for figure in figures for name in figure.measures))
    shown = [name for name in names if name in _SHOWN] or names[:3]
    heads = ["collection", "queries", "system", *shown, "thought tokens", "ms/query"]
    rows = [_row(figure, shown) for figure in figures]
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    lines = [[heads[place] for place in kept], *([row[place] for place in kept] for row in rows)]
    texts = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    rule = "|".join(" --- " if heads[place] in ("collection", "system") else " ---: " for place in kept)
    return "\n".join([texts[0], f"|{rule}|", *texts[1:]])


def as_eval_results(figures: Sequence[Figure]) -> list[Any]:
    """`huggingface_hub.EvalResult`s of the model's own systems, not of what it was compared with."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_TASK,
            task_name="Information Retrieval",
            dataset_type=figure.collection.removeprefix("hub:"),
            dataset_name=figure.collection,
            dataset_split=figure.split,
            metric_type=_metric(name),
            metric_name=f"{name}, {figure.system}",
            metric_value=round(value, 4),
        )
        for figure in _own(figures)
        for name, value in figure.measures.items()
    ]


_SHOWN = ("nDCG@10", "Recall@100", "MRR@10", "Success@1")


def _own(figures: Sequence[Figure]) -> list[Figure]:
    # The first model measured is the one that is published; its name ends at the first comma or space.
    dense = [figure for figure in figures if not figure.system.startswith(_NOT_OURS)]
    first = _model(dense[0]) if dense else ""
    return [each for each in dense if _model(each) == first and "BM25" not in each.system]


def _model(figure: Figure) -> str:
    return re.split(r"[ ,]", figure.system)[0]


def _metric(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("@", "_at_")).strip("_")


def _row(figure: Figure, shown: Sequence[str]) -> list[str]:
    tokens = figure.cost.get("thought_tokens")
    spent = figure.cost.get("ms_per_query")
    return [
        f"{figure.collection}, {figure.split}" if figure.split else figure.collection,
        "" if figure.queries is None else str(figure.queries),
        figure.system,
        *(f"{figure.measures[name]:.3f}" if name in figure.measures else "" for name in shown),
        f"{tokens:.0f}" if isinstance(tokens, int | float) and tokens else "",
        f"{spent:.1f}" if isinstance(spent, int | float) else "",
    ]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("results.jsonl"))
    if not found:
        raise InputError(
            f"{path} holds no results.jsonl; expected a report of o1-retriever eval.",
            hint="Type: o1-retriever eval --model FOLDER --data COLLECTION --report report",
        )
    return found


def _in_file(path: Path) -> list[Figure]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"The results {path} cannot be read: {said}.") from None
    figures = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            figures.extend(_in_line(line, f"{path}, line {number}"))
    if not figures:
        raise InputError(
            f"{path} is empty; expected the figures of o1-retriever eval, one JSON object a line."
        )
    return figures


def _in_line(line: str, where: str) -> list[Figure]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}.") from None
    rows = value if isinstance(value, list) else [value]
    return [_figure(row, where) for row in rows]


def _figure(row: Any, where: str) -> Figure:
    measures = row.get("measures") if isinstance(row, dict) else None
    names = [row.get(name) for name in ("collection", "system")] if isinstance(row, dict) else []
    numbers = isinstance(measures, dict) and all(_number(value) for value in measures.values())
    if not measures or not numbers or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"{where} is no result; expected an object with collection, split, system and measures.",
            hint="Pass the results.jsonl of: o1-retriever eval --report FOLDER",
        )
    cost = row.get("cost")
    return Figure(
        collection=row["collection"],
        split=str(row.get("split") or ""),
        system=row["system"],
        measures={name: float(value) for name, value in measures.items()},
        queries=row.get("queries") if isinstance(row.get("queries"), int) else None,
        cost=cost if isinstance(cost, dict) else {},
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
