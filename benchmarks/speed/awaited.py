"""Queries that coroutines await: what sharing batches gains, and how long an event loop is kept waiting.

The model is o1-embedder-22m with its own settings, without a cache; every query is another one.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Coroutine
from itertools import count
from typing import Any

import numpy as np

from benchmarks.record import ROOT, Figure
from o1_retriever import ThinkingEmbedder

_TOGETHER, _IN_TURN, _IN_FLIGHT = 200, 40, 64
_PAIRS = 3
_TICK_S = 0.001


def measure(*, full: bool = False) -> list[Figure]:
    """`awaited/22M/q200/ratio`: the time of a query awaited alone (40, one after the other) over that of one
    of 200 awaited together; the median of alternated pairs.

    `awaited/22M/q64/loop_gap_p99_ms`: 99 of 100 turns of an event loop that sleeps for a millisecond take no
    longer while 64 queries are in flight; `.../idle_gap_p99_ms` is the same while nothing is.
    """
    embedder = ThinkingEmbedder.from_pretrained(ROOT / "models" / "o1-embedder-22m", cache=False)
    return asyncio.run(_figures(embedder, _PAIRS if not full else 2 * _PAIRS))


async def _figures(embedder: ThinkingEmbedder, pairs: int) -> list[Figure]:
    numbers = count()
    await _together(embedder, 8, numbers)
    ratios = []
    for pair in range(pairs):
        alone = 0.0 if pair % 2 else await _in_turn(embedder, _IN_TURN, numbers)
        shared = await _together(embedder, _TOGETHER, numbers)
        alone = alone or await _in_turn(embedder, _IN_TURN, numbers)
        ratios.append(alone / shared)
        print(f"   alone {alone * 1000:.0f} ms a query, together {shared * 1000:.0f} ms", flush=True)
    busy = await _gaps(_together(embedder, _IN_FLIGHT, numbers))
    idle = await _gaps(asyncio.sleep(1.0))
    print(f"   longest turn of the loop {max(busy) * 1000:.0f} ms, of {len(busy)}", flush=True)
    gap, quiet = (float(np.quantile(gaps, 0.99)) * 1000 for gaps in (busy, idle))
    return [
        Figure(name="awaited/22M/q200/ratio", value=round(statistics.median(ratios), 2), unit="ratio"),
        Figure(name="awaited/22M/q64/loop_gap_p99_ms", value=round(gap, 1), unit="ms", better="lower"),
        Figure(name="awaited/22M/q64/idle_gap_p99_ms", value=round(quiet, 1), unit="ms", better="lower"),
    ]


async def _in_turn(embedder: ThinkingEmbedder, queries: int, numbers: count[int]) -> float:
    """Seconds for each of so many queries, each awaited before the next."""
    started = time.perf_counter()
    for _ in range(queries):
        await embedder.aembed_query(f"Why does it matter, case {next(numbers)}?")
    return (time.perf_counter() - started) / queries


async def _together(embedder: ThinkingEmbedder, queries: int, numbers: count[int]) -> float:
    """Seconds for each of so many queries, all awaited at the same time."""
    texts = [f"Why does it matter, case {next(numbers)}?" for _ in range(queries)]
    started = time.perf_counter()
    await asyncio.gather(*(embedder.aembed_query(text) for text in texts))
    return (time.perf_counter() - started) / queries


async def _gaps(work: Coroutine[Any, Any, object]) -> list[float]:
    """Seconds of each turn of an event loop that sleeps for a millisecond, until the work is done."""
    working, gaps, last = asyncio.ensure_future(work), [], time.perf_counter()
    while not working.done():
        await asyncio.sleep(_TICK_S)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    await working
    return gaps
