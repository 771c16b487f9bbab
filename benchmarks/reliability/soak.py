"""A server at half of what it can do: does its memory grow, are handles left open.

The server is a process of its own on the loopback interface, with an index, the model of this repository and
a cache of a bounded size. What it can do is measured first; then requests come at the given share of that,
evenly, whether earlier ones are answered or not. Memory (RSS) and handles are read every two seconds. The
slope is that of minutes' means after the warm-up, with an interval of 95 % by Student's t. Time in which the
whole of it stands still (SIGSTOP, a machine asleep) does not count.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import Figure
from benchmarks.speed.serve import MODEL, NAME, Connection, by_clients, server
from o1_retriever import Index, ThinkingEmbedder

_EVERY_S = 2.0
_BLOCK_S = 60.0
_CLIENTS = 8
_OUTSTANDING = 64  # beyond it a request is not sent: the machine has fallen behind
_STILL_S = 10.0  # whoever is so late has stood still
_POOL = 400  # queries among which half of the requests choose: the cache knows them


@dataclass(frozen=True)
class Reading:
    """What the system says of a process: seconds since the beginning, MB of memory, handles and threads."""

    at: float
    megabytes: float
    handles: int
    threads: int


def measure(*, count: int = 0, seconds: float = 1800.0, share: float = 0.5) -> Iterator[Figure]:
    """`soak/...`: the growth of memory an hour as a share of it, its interval, handles, lost requests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Index(folder / "index", ThinkingEmbedder.from_pretrained(MODEL, cache=False)) as index:
            index.add([f"A passage about case {number}, and why it matters." for number in range(300)])
        arguments = ["--model", str(MODEL), "--index", f"notes={folder / 'index'}", "--timeout", "3600"]
        with server(*arguments, cache=str(folder / "cache")) as (port, running):
            readings, answers = asyncio.run(_soak(port, running.pid, seconds, share))
    yield from figures(readings, answers, warm_up=min(300.0, seconds / 4))


async def _soak(port: int, process: int, seconds: float, share: float) -> tuple[list[Reading], Counter[str]]:
    bodies = requests()
    rate = share * await _capacity(port, bodies, min(20.0, seconds / 10))
    print(f"   {rate:.1f} requests a second for {seconds:.0f} s", flush=True)
    watching = asyncio.create_task(_watch(process, seconds))
    answers = await _at_rate(port, rate, seconds, bodies)
    return await watching, answers


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths and bodies without end: vectors of queries, searches, passages; half of the queries are known."""
    for number in count():
        case = number if number % 2 else number % _POOL
        text = f"Why does it matter, case {case}?"
        kind = number % 5
        if kind < 2:
            yield "/v1/embeddings", {"input": text, "encoding_format": "base64"}
        elif kind < 4:
            yield "/v1/search", {"query": text, "k": 5}
        else:
            texts = [f"A passage about case {number}, part {part}." for part in range(4)]
            yield "/v1/embeddings", {"input": texts, "model": f"{NAME}:document"}


async def _capacity(port: int, bodies: Iterator[tuple[str, dict[str, Any]]], seconds: float) -> float:
    """Requests a second of clients that never wait."""
    done, ends = 0, time.monotonic() + seconds

    async def one(connection: Connection) -> bool:
        nonlocal done
        status, body = await connection.post(*next(bodies))
        assert status == 200, body[:500]
        done += 1
        return time.monotonic() < ends

    began = time.monotonic()
    await by_clients(port, _CLIENTS, one)
    return done / (time.monotonic() - began)


async def _at_rate(
    port: int, rate: float, seconds: float, bodies: Iterator[tuple[str, dict[str, Any]]]
) -> Counter[str]:
    answers: Counter[str] = Counter()
    free: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()

    async def ask() -> None:
        path, body = next(bodies)
        for last in (False, True):
            connection = free.pop() if free and not last else await Connection(port).__aenter__()
            try:
                status, _ = await connection.post(path, body)
            except (asyncio.IncompleteReadError, ConnectionError):
                if last:  # a connection that was idle for long has been closed, a new one has not
                    answers["lost"] += 1
                continue
            answers["right" if status == 200 else f"status {status}"] += 1
            free.append(connection)
            return

    began = time.monotonic()
    for number in count():
        due = began + number / rate
        if due > began + seconds:
            break
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if (late := time.monotonic() - due) > _STILL_S:
            began += late
        if len(under_way) >= _OUTSTANDING:
            answers["not sent"] += 1
            continue
        task = asyncio.create_task(ask())
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    return answers


async def _watch(process: int, seconds: float) -> list[Reading]:
    found: list[Reading] = []
    began = time.monotonic()
    while (at := time.monotonic() - began) < seconds:
        if found and (late := at - found[-1].at - _EVERY_S) > _STILL_S:
            print(f"   stood still for {late:.0f} s", flush=True)
            began, at = began + late, at - late
        found.append(reading(process, at))
        await asyncio.sleep(_EVERY_S)
    return found


def reading(process: int, at: float) -> Reading:
    """What /proc says now."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return Reading(
        at=at,
        megabytes=int(status["VmRSS"].split()[0]) / 1024,
        handles=len(os.listdir(f"/proc/{process}/fd")),  # noqa: PTH208  (not a folder of files)
        threads=int(status["Threads"]),
    )


def figures(readings: Sequence[Reading], answers: Counter[str], *, warm_up: float) -> Iterator[Figure]:
    """The figures of one soak."""
    steady = [each for each in readings if each.at >= warm_up]
    slope, low, high = growth(steady)
    handles = [each.handles for each in steady]
    half = len(handles) // 2
    leaked = statistics.median(handles[half:]) - statistics.median(handles[:half])
    print(f"   answers {dict(answers)}; threads {min(r.threads for r in steady)} to "
          f"{max(r.threads for r in steady)}; handles {min(handles)} to {max(handles)}")  # fmt: skip
    megabytes = statistics.fmean(each.megabytes for each in steady)
    yield Figure(name="soak/minutes", value=round(readings[-1].at / 60, 1), unit="minutes")
    yield Figure(name="soak/requests", value=sum(answers.values()), unit="requests")
    lost = sum(answers.values()) - answers["right"] - answers["not sent"]
    yield Figure(name="soak/lost", value=lost, unit="requests", better="lower")
    yield Figure(name="soak/not_sent", value=answers["not sent"], unit="requests", better="lower")
    yield Figure(name="soak/memory_mb", value=round(megabytes, 1), unit="MB", better="lower")
    for name, value in (("", slope), ("/low", low), ("/high", high)):
        share = round(value / megabytes, 5)
        yield Figure(name=f"soak/slope_share_per_hour{name}", value=share, unit="share", better="lower")
    yield Figure(name="soak/handles_leaked", value=leaked, unit="handles", better="lower")


def growth(readings: Sequence[Reading]) -> tuple[float, float, float]:
    """MB an hour with the ends of its interval of 95 %, from the means of minutes (of a tenth, in a short one)."""
    length = min(_BLOCK_S, (readings[-1].at - readings[0].at) / 10)
    blocks: dict[int, list[Reading]] = {}
    for each in readings:
        blocks.setdefault(int((each.at - readings[0].at) // length), []).append(each)
    most = max(map(len, blocks.values()))
    full = [block for block in blocks.values() if len(block) >= most / 2]
    hours = np.array([statistics.fmean(each.at for each in block) / 3600 for block in full])
    sizes = np.array([statistics.fmean(each.megabytes for each in block) for block in full])
    centred = hours - hours.mean()
    slope = float(centred @ sizes / (centred @ centred))
    left = sizes - sizes.mean() - slope * centred
    # Neighbouring minutes resemble each other: fewer of them are independent than there are.
    alike = float(np.clip(left[1:] @ left[:-1] / max(left @ left, 1e-12), 0.0, 0.9))
    independent = max(3.0, len(full) * (1 - alike) / (1 + alike))
    error = float(np.sqrt(left @ left / (independent - 2) / (centred @ centred)))
    margin = _student(independent - 2) * error
    return slope, slope - margin, slope + margin


def _student(freedom: float) -> float:
    """Student's t for 95 %, both sides."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
