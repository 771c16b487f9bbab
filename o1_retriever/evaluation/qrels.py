"""Judgments: which documents are relevant to a query, and how much."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from o1_retriever.evaluation.problems import CollectionReport

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]

_HEADER = ("query-id", "corpus-id", "score")


def read_qrels(path: Path, report: CollectionReport) -> dict[str, dict[str, int]]:
    """Read judgments by query: tab-separated query, document, score under BEIR's header.

    TREC's four columns (query, 0, document, score), with or without tabs, are understood too.
    """
    qrels: dict[str, dict[str, int]] = {}
    data = path.read_bytes()
    if data.startswith(codecs.BOM_UTF8):
        report.add("byte order mark", path.name)
        data = data.removeprefix(codecs.BOM_UTF8)
    if b"\r\n" in data:
        report.add("Windows line ends", path.name)
    first = True
    for number, raw in enumerate(data.split(b"\n"), start=1):
        where = f"{path.name}, line {number}"
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            report.add("not UTF-8", where)
            continue
        if not line.strip():
            continue
        columns = _columns(line)
        header = first and _is_header(columns, where, report)
        first = False
        if not header:
            _judge(qrels, columns, where, report)
    return qrels


def check_qrels(
    qrels: Mapping[str, Mapping[str, int]],
    queries: Mapping[str, str],
    documents: frozenset[str],
    report: CollectionReport,
) -> dict[str, dict[str, int]]:
    """The judgments of known queries; what refers to nothing is reported.

    A judgment of a document that is not in the corpus stays, as in BEIR: it can never be found.
    """
    kept: dict[str, dict[str, int]] = {}
    for query, judged in qrels.items():
        if query not in queries:
            report.add("judged query missing", repr(query))
            continue
        for document in judged:
            if document not in documents:
                report.add("judged document missing", f"{document!r:.60} of query {query!r:.60}")
        if not any(grade > 0 for grade in judged.values()):
            report.add("query without relevant document", repr(query))
        kept[query] = dict(judged)
    return kept


def _columns(line: str) -> list[str]:
    columns = line.split("\t") if "\t" in line else line.split()
    return [column.strip() for column in columns]


def _is_header(columns: list[str], where: str, report: CollectionReport) -> bool:
    if tuple(columns) == _HEADER:
        return True
    if columns and _grade(columns[-1]) is not None:
        report.add("no header", f"{where} is {' '.join(columns)!r:.60}")
        return False
    report.add("wrong header", f"{where} is {' '.join(columns)!r:.60}; expected {' '.join(_HEADER)!r}")
    return True


def _judge(
    qrels: dict[str, dict[str, int]], columns: list[str], where: str, report: CollectionReport
) -> None:
    if len(columns) == 4:
        del columns[1]
    if len(columns) != 3 or not all(columns[:2]):
        report.add("wrong columns", f"{where} has {len(columns)} columns, expected 3")
        return
    query, document, score = columns
    grade = _grade(score)
    if grade is None:
        report.add("wrong score", f"{where} has {score!r:.40}, expected a whole number")
    elif document in qrels.setdefault(query, {}):
        report.add("duplicate judgment", f"{document!r:.60} of query {query!r:.60} in {where}")
    else:
        qrels[query][document] = grade


def _grade(text: str) -> int | None:
    """A whole number, also when it is written as a float; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
