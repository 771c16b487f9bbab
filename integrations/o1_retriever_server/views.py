"""What stands behind the answers: a query among the passages that it finds, and what thoughts have gained on
judged queries (the reports of `o1-retriever eval`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from o1_retriever.errors import SettingsError
from o1_retriever.thought import Vector
from o1_retriever.vectors import unit
from o1_retriever_server.problems import RESPONSES
from o1_retriever_server.searching import SearchRequest, found
from o1_retriever_server.service import Serving

router = APIRouter(prefix="/v1", tags=["audit"], responses=RESPONSES)

_FIGURES = "results.jsonl"
# Of a report, so many queries that gain most, and that lose most.
_SHOWN = 10


class MapPoint(BaseModel):
    """A vector in the plane: the query alone, one of its thoughts with it, their mean, or a passage."""

    kind: Literal["query", "thought", "mean", "passage"]
    number: int | None = Field(default=None, description="Of the thought, or the passage's rank; from 1.")
    label: str
    x: float
    y: float


class MapResponse(BaseModel):
    """Vectors in the plane in which they differ most; `shown` is the share of their variance in it."""

    points: list[MapPoint]
    shown: float


@router.post("/map")
async def map_of(asked: SearchRequest, service: Serving) -> MapResponse:
    """Where a query lies among the passages that it finds, alone and with its thoughts."""
    result = await found(asked, service)
    never = service.thought_settings(asked.thought_settings, fast=True)
    alone = await service.embedder.aembed_query(asked.query, settings=never)
    index = service.retriever(asked.index).index
    rows = await asyncio.to_thread(index.vectors, [hit.id for hit in result.hits])
    vectors: list[Vector] = [alone.vector]
    names: list[tuple[Any, int | None, str]] = [("query", None, asked.query)]
    thoughts = [(number, each.text) for number, each in enumerate(result.thoughts, 1) if each.usable]
    if thoughts:
        vectors += [*result.embedding.vectors, result.embedding.vector]
        names += [("thought", number, text) for number, text in thoughts]
        names.append(("mean", None, "The query with its thoughts"))
    vectors += list(unit(rows)) if len(rows) else []
    names += [("passage", hit.rank, hit.source or hit.id) for hit in result.hits]
    places, shown = await asyncio.to_thread(_plane, np.stack(vectors))
    points = [
        MapPoint(kind=kind, number=number, label=label, x=x, y=y)
        for (kind, number, label), (x, y) in zip(names, places.tolist(), strict=True)
    ]
    return MapResponse(points=points, shown=shown)


def _plane(vectors: Vector) -> tuple[Vector, float]:
    """The vectors (n, 2) on their first two principal components, and the share of the variance in these."""
    left, scales, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    places = np.zeros((len(vectors), 2), np.float32)
    places[:, : len(scales)] = (left * scales)[:, :2]
    whole = float((scales**2).sum())
    return places, float((scales[:2] ** 2).sum()) / whole if whole else 1.0


class ControlRecord(BaseModel):
    """What else was tried in place of a system's own thoughts, and what these gain over it.

    `low` to `high` is the bootstrap interval of the gain, `p` of a paired randomisation test after Holm's
    correction, `effect` the mean gain in standard deviations of the gains.
    """

    name: str
    mean: float
    difference: float
    low: float
    high: float
    p_corrected: float
    effect: float
    wins: int
    losses: int


class SystemRecord(BaseModel):
    """A system of a report: its mean with its interval, and its audit, if there was one."""

    name: str
    mean: float
    interval: tuple[float, float]
    verdict: str | None = None
    controls: list[ControlRecord] = []


class JudgedQuery(BaseModel):
    """What thinking changed for one query of a report, and why, where the audit knows."""

    query: str
    before: float
    after: float
    thoughts: list[str]
    why: str | None = None


class ReportRecord(BaseModel):
    """What `o1-retriever eval --report` has found, with the queries that gain and lose most."""

    collection: str
    split: str
    queries: int
    documents: int
    measure: str
    systems: list[SystemRecord]
    helped: list[JudgedQuery]
    hurt: list[JudgedQuery]


@router.get("/reports")
async def reports(service: Serving) -> list[ReportRecord]:
    """The reports that the server was started with, as they are now."""
    try:
        return await asyncio.to_thread(read_reports, service.reports)
    except SettingsError as error:
        raise HTTPException(404, str(error)) from error


def read_reports(folders: Sequence[Path]) -> list[ReportRecord]:
    """The reports in folders that were given to `eval --report`, or in their own.

    Raises `SettingsError` for a folder without any, and for a file that is none.
    """
    found = []
    for folder in folders:
        files = sorted({*folder.glob(_FIGURES), *folder.glob(f"*/{_FIGURES}")})
        if not files:
            raise SettingsError(
                f"Found no report in {folder}; expected {_FIGURES} in it or one folder below.",
                hint=f"Type: o1-retriever eval --data ... --control --report {folder}",
            )
        found += [_report(file) for file in files]
    return found


def _report(file: Path) -> ReportRecord:
    try:
        rows = _rows(file)
        judged = _judged(_rows(file.with_name("per_query.jsonl")))
        first = rows[0]
        return ReportRecord(
            **{name: first[name] for name in ("collection", "split", "queries", "documents")},
            measure=first["compared_by"],
            systems=[_system(row) for row in rows],
            helped=[each for each in judged if each.after > each.before][:_SHOWN],
            hurt=[each for each in reversed(judged) if each.after < each.before][:_SHOWN],
        )
    except (OSError, LookupError, TypeError, ValueError, ValidationError) as error:
        raise SettingsError(
            f"The report {file.parent} cannot be read ({type(error).__name__}: {error}).",
            hint=f"Type: o1-retriever eval ... --report {file.parent.parent}",
        ) from error


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _system(row: dict[str, Any]) -> SystemRecord:
    return SystemRecord(
        name=row["system"],
        mean=row["measures"][row["compared_by"]],
        interval=row["interval"],
        verdict=row.get("verdict"),
        controls=[ControlRecord(name=name, **each) for name, each in row.get("controls", {}).items()],
    )


def _judged(rows: Iterable[dict[str, Any]]) -> list[JudgedQuery]:
    """The queries of which something was thought, largest gain first."""
    found = [
        JudgedQuery(query=row["text"], why=row.get("diagnosis", {}).get("why"), **row["thinking"])
        for row in rows
        if "thinking" in row
    ]
    return sorted(found, key=lambda each: (each.before - each.after, each.query))
