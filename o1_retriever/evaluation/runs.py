"""TREC run files, with the thoughts that led to them in a JSONL file beside."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from o1_retriever.errors import CollectionError
from o1_retriever.evaluation.metrics import Run, ordered
from o1_retriever.storage.files import written_whole
from o1_retriever.thought import Thought

_COLUMNS = "query Q0 document rank score tag"


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
    lines = [line for query, scores in run.items() for line in _lines(query, scores, _checked(tag, "tag"))]
    with written_whole(target) as file:
        file.writelines(lines)
    if thoughts is not None:
        texts = queries or {}
        rows = (_thoughts_row(key, texts.get(key, ""), said) for key, said in thoughts.items())
        with written_whole(thoughts_path(target)) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_run(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read a TREC run: query id to document id to score, best first whatever the order of the lines.

    Raises `CollectionError`, naming the line, for one that does not have the six columns or a number as
    score, and for a document that is listed twice for a query.
    """
    found: dict[str, dict[str, float]] = {}
    with Path(path).open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            columns = line.split()
            if not columns:
                continue
            where = f"{path}, line {number}"
            if len(columns) != 6:
                raise CollectionError(f"{where} has {len(columns)} columns; expected {_COLUMNS!r}.")
            query, _, document, _, score, _ = columns
            documents = found.setdefault(query, {})
            if document in documents:
                raise CollectionError(f"{where} lists {document!r} for query {query!r} a second time.")
            documents[document] = _score(score, where)
    return {
        query: {document: scores[document] for document in ordered(scores)} for query, scores in found.items()
    }


def _lines(query: str, scores: Mapping[str, float], tag: str) -> list[str]:
    _checked(query, "query id")
    return [
        f"{query} Q0 {_checked(document, 'document id')} {rank} {_finite(scores[document], query)!r} {tag}\n"
        for rank, document in enumerate(ordered(scores), start=1)
    ]


def _checked(identity: str, what: str) -> str:
    if len(identity.split()) != 1 or identity != identity.strip():
        raise CollectionError(
            f"The {what} {identity!r} cannot stand in a TREC run; expected no white space in it."
        )
    return identity


def _finite(value: float, query: str) -> float:
    if not math.isfinite(value):
        raise CollectionError(f"Query {query!r} has the score {value!r}; expected a finite number.")
    return float(value)


def _score(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CollectionError(f"{where} has the score {text!r}; expected a number.")
    return value


def _thoughts_row(key: str, text: str, thoughts: Sequence[Thought]) -> dict[str, object]:
    return {
        "_id": key,
        "text": text,
        "thoughts": [None if thought.failed else thought.text for thought in thoughts],
        "finish": [thought.finish for thought in thoughts],
        "errors": [thought.error for thought in thoughts],
        "tokens": [thought.completion_tokens for thought in thoughts],
    }
