"""The server on a hard day: thousands of mixed requests, four times what it can do, kills, and odd requests.

The server is a process of its own, as people start it: with o1-embedder-22m, once with SmolLM2 and MiniLM.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT, Figure
from benchmarks.speed.serve import (
    CLIENTS,
    MODEL,
    NAME,
    Connection,
    by_clients,
    mixed,
    pair_embedder,
    seconds_each,
    server,
)
from o1_retriever import Index, Retriever, ThinkingEmbedder
from o1_retriever.documents import Document
from o1_retriever.thought import Vector

_PARTS = ("mixed", "pair", "overload", "kills", "schema")
_ALIKE = 1e-4
_DIFFERENT = 200  # queries, and documents, among which the many requests choose
_LONGEST_BACK_S = 60.0


def measure(
    *, count: int | None = None, seconds: float = 60.0, only: Sequence[str] = _PARTS
) -> Iterator[Figure]:
    """`serve/...`: see the functions, each of which measures one thing."""
    if "mixed" in only:
        yield from _mixed(count or 10_000, pair=False)
    if "pair" in only:
        yield from _mixed(count or 2000, pair=True)
    if "overload" in only:
        with server("--model", str(MODEL), "--queue", str(_ROOM)) as (port, running):
            yield from asyncio.run(overload(port, running.pid, seconds))
    if "kills" in only:
        yield from kills(count or 20)
    if "schema" in only:
        yield from schema(count or 5000)


# Mixed requests. ---------------------------------------------------------------------------------------


def _mixed(requests: int, *, pair: bool) -> Iterator[Figure]:
    """Of so many requests of 64 clients, those without the library's own answer within 1e-4."""
    different = 40 if pair else _DIFFERENT
    embedder = pair_embedder() if pair else ThinkingEmbedder.from_pretrained(MODEL, cache=False)
    texts = [f"A passage about case {number}." for number in range(different)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with Index(Path(folder, "index"), embedder) as index:
            index.add(Document(id=str(number), text=text) for number, text in enumerate(texts))
            expected = _expected(embedder, index, different, texts)
        served = ["--name", NAME] if pair else ["--model", str(MODEL)]
        arguments = [*served, "--index", f"texts={folder}/index"]
        port, _ = stack.enter_context(server(*arguments, cache=str(Path(folder, "cache"))))
        wrong = asyncio.run(_lost_or_wrong(port, requests, expected, texts))
    name = f"serve/{requests}_mixed{'_pair' if pair else ''}"
    yield Figure(name=f"{name}/requests", value=requests, unit="requests")
    yield Figure(name=f"{name}/lost_or_wrong", value=wrong, unit="requests", better="lower")


def _query(number: int) -> str:
    return f"Why does it matter, case {number}?"


def _expected(
    embedder: ThinkingEmbedder, index: Index, different: int, texts: Sequence[str]
) -> dict[str, Vector]:
    """What the library says, by kind of request: a row for each query or text."""
    queries = [_query(number) for number in range(different)]
    fast = embedder.settings.with_changes(thinking="never")
    found = Retriever(embedder, index).search_many(queries, k=5)
    return {
        "": embedder.encode_queries(queries),
        ":fast": embedder.encode_queries(queries, settings=fast),
        ":document": embedder.encode_documents(texts),
        "search": np.array([[hit.score for hit in each.hits] for each in found]),
    }


async def _lost_or_wrong(
    port: int, requests: int, expected: Mapping[str, Vector], texts: Sequence[str]
) -> int:
    chance, left, right = random.Random(0), iter(range(requests)), 0

    async def one(connection: Connection) -> bool:
        nonlocal right
        if next(left, None) is None:
            return False
        kind, place = chance.choice([*expected]), chance.randrange(len(texts))
        if kind == "search":
            status, content = await connection.post("/v1/search", {"query": _query(place), "k": 5})
            row = np.array([hit["score"] for hit in json.loads(content)["hits"]]) if status == 200 else None
        else:
            text = texts[place] if kind == ":document" else _query(place)
            status, content = await connection.post("/v1/embeddings", _asked(text, NAME + kind))
            row = _vector(content) if status == 200 else None
        good = row is not None and np.allclose(row, expected[kind][place], atol=_ALIKE)
        right += good
        if not good:
            print(f"   {status} {kind} {place}: {content[:200]!r}", flush=True)
        return True

    await by_clients(port, CLIENTS, one)
    return requests - right


def _asked(text: str, model: str) -> dict[str, Any]:
    return {"input": text, "model": model, "encoding_format": "base64"}


def _vector(content: bytes) -> Vector:
    return np.frombuffer(base64.b64decode(json.loads(content)["data"][0]["embedding"]), "<f4")


# Overload. ---------------------------------------------------------------------------------------------

_ROOM = 32  # requests that may wait
_TIMES = 4
_WARM_S = 10.0


async def overload(port: int, process: int, seconds: float) -> list[Figure]:
    """Requests at four times the pace of which the server is capable, whether it answers or not.

    Its pace is that at which it answers as many clients as it lets wait. What is measured: answers besides
    200 and 429, the memory at the end less that when the overload had gone on for a while, how much of the
    pace is kept, and how long after the end a new request takes.
    """
    bodies = mixed(itertools.count())
    await seconds_each(port, _ROOM, 2 * _ROOM, bodies)
    pace = 1 / await seconds_each(port, _ROOM, 16 * _ROOM, bodies)
    await _offered(port, pace * _TIMES, _WARM_S, bodies)
    before = _megabytes(process)
    answers = await _offered(port, pace * _TIMES, seconds, bodies)
    grown, ended = _megabytes(process) - before, time.perf_counter()
    async with Connection(port) as connection:
        while (await connection.post("/v1/embeddings", next(bodies)))[0] != 200:
            assert time.perf_counter() < ended + _LONGEST_BACK_S
            await asyncio.sleep(0.05)
    back = time.perf_counter() - ended
    others = sum(number for status, number in answers.items() if status not in (200, 429))
    print(f"   capable of {pace:.0f} requests/s, offered {_TIMES} times that: {dict(answers)}", flush=True)
    kept = answers[200] / seconds / pace
    return [
        Figure(name="serve/overload/seconds", value=seconds, unit="s"),
        Figure(name="serve/overload/other_answers", value=others, unit="answers", better="lower"),
        Figure(name="serve/overload/memory_growth_mb", value=round(grown, 1), unit="MB", better="lower"),
        Figure(name="serve/overload/pace_kept", value=round(kept, 2), unit="ratio"),
        Figure(name="serve/overload/back_s", value=round(back, 2), unit="s", better="lower"),
    ]


async def _offered(
    port: int, per_second: float, seconds: float, bodies: Iterator[dict[str, Any]]
) -> Counter[int]:
    """Answers by status to requests that are sent at a pace of their own; 0 where there was none."""
    answers: Counter[int] = Counter()
    async with asyncio.TaskGroup() as group:
        free: list[Connection] = []

        async def one(body: dict[str, Any]) -> None:
            connection = free.pop() if free else await Connection(port).__aenter__()
            try:
                status, _ = await connection.post("/v1/embeddings", body)
                free.append(connection)
            except (OSError, EOFError):
                status = 0
            answers[status] += 1

        started, sent = time.perf_counter(), 0
        while (now := time.perf_counter() - started) < seconds:
            for _ in range(int(now * per_second) - sent):
                group.create_task(one(next(bodies)))
                sent += 1
            await asyncio.sleep(0.005)
    for connection in free:
        await connection.__aexit__()
    return answers


def _megabytes(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


# Kills. ------------------------------------------------------------------------------------------------

_ANEW = "Building the search graph"


def kills(times: int) -> Iterator[Figure]:
    """Kill a server under load, and a process that adds to its index, so many times.

    After each the index and the cache are opened: whatever the library warns of, or raises, counts as not
    clean, but for a search graph that is built anew from the documents, which is how an index goes on after
    a write was interrupted. What was acknowledged is a passage that was added, and a thought whose vector was
    answered. The figures come after each kill: what a run that is ended has measured by then is kept.
    """
    lost = warned = acknowledged = anew = 0
    chance, numbers = random.Random(0), itertools.count()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=False)
        with Index(folder / "index", embedder) as index:
            index.add([Document(id="first", text="The first passage.")])
        added: list[str] = []
        for turn in range(times):
            vectors, new = _killed_under_load(folder, turn, chance.uniform(0.2, 3.0), numbers)
            added += new
            problems = _Problems()
            try:
                with problems.noted():
                    lost += _lost_vectors(folder, vectors) + _lost_passages(folder, embedder, added)
            except Exception as error:  # whatever it is, this is not clean
                problems.found.append(f"{type(error).__name__}: {error}")
            others = [said for said in problems.found if not said.startswith(_ANEW)]
            warned += bool(others)
            anew += len(others) < len(problems.found)
            acknowledged += len(vectors) + len(new)
            print(f"   {turn}: {len(vectors)} vectors, {len(new)} passages {problems.found}", flush=True)
            yield Figure(name="serve/kills/kills", value=turn + 1, unit="kills")
            yield Figure(name="serve/kills/acknowledged", value=acknowledged, unit="writes")
            yield Figure(name="serve/kills/graphs_built_anew", value=anew, unit="kills", better="lower")
            yield Figure(name="serve/kills/not_clean", value=warned, unit="kills", better="lower")
            yield Figure(name="serve/kills/acknowledged_lost", value=lost, unit="writes", better="lower")


def _killed_under_load(
    folder: Path, turn: int, seconds: float, numbers: Iterator[int]
) -> tuple[dict[str, Vector], list[str]]:
    """The vectors that were answered, and the ids of passages that were added, until both were killed, so
    many seconds after the first answer.
    """
    arguments = ["--model", str(MODEL), "--index", f"texts={folder}/index"]
    command = [sys.executable, "-m", __name__, "--add", str(folder / "index"), str(turn)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as adding,
        server(*arguments, cache=str(folder / "cache")) as (port, running),
    ):
        assert adding.stdout
        adding.stdout.readline()  # it has begun
        try:
            vectors = asyncio.run(_answered(port, running, seconds, numbers))
        finally:
            adding.kill()
        return vectors, [line.strip() for line in adding.stdout if line.endswith("\n")]


async def _answered(
    port: int, running: subprocess.Popen[str], seconds: float, numbers: Iterator[int]
) -> dict[str, Vector]:
    found: dict[str, Vector] = {}
    first = asyncio.Event()

    async def one(connection: Connection) -> bool:
        number = next(numbers)
        if number % 4 == 0:
            await connection.post("/v1/search", {"query": f"Which one is it, case {number}?", "k": 3})
            return True
        status, content = await connection.post("/v1/embeddings", _asked(_query(number), NAME))
        assert status == 200, content
        found[_query(number)] = _vector(content)
        first.set()
        return True

    async def client() -> None:
        with suppress(OSError, EOFError):  # it was killed
            await by_clients(port, 1, one)

    clients = [asyncio.ensure_future(client()) for _ in range(CLIENTS)]
    await asyncio.wait_for(first.wait(), _LONGEST_BACK_S)
    await asyncio.sleep(seconds)
    running.kill()
    await asyncio.gather(*clients)
    return found


def _lost_vectors(folder: Path, vectors: Mapping[str, Vector]) -> int:
    """Answered vectors whose thoughts have to be written again, or that differ."""
    embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=folder / "cache")
    rows = embedder.embed_queries(list(vectors))
    assert embedder.cache
    embedder.cache.close()
    return sum(
        not all(thought.cached for thought in row.thoughts)
        or not np.allclose(row.vector, vectors[row.query], atol=_ALIKE)
        for row in rows
    )


def _lost_passages(folder: Path, embedder: ThinkingEmbedder, added: Sequence[str]) -> int:
    """Acknowledged passages that are not there, and 1 more where a search finds nothing."""
    with Index(folder / "index", embedder, create=False) as index:
        texts = {document.id: document.text for document in index.get(added)}
        lost = sum(texts.get(each) != _passage(each) for each in added)
        found = Retriever(embedder, index).search("The first passage.", k=1, thinking="never")
        return lost + (not found.hits)


def _passage(identity: str) -> str:
    return f"What is known about {identity}."


class _Problems(logging.Handler):
    """What the library warns of meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is said."""
        self.found.append(record.getMessage())

    def noted(self) -> ExitStack:
        """While it is open, warnings of the library come here."""
        stack, logger = ExitStack(), logging.getLogger("o1_retriever")
        logger.addHandler(self)
        stack.callback(logger.removeHandler, self)
        return stack


def _add(folder: str, turn: str) -> None:
    """Add passages one after the other, and say each when it is there, until killed."""
    embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=False)
    with Index(Path(folder), embedder) as index:
        print("begun", flush=True)
        for number in itertools.count():
            identity = f"{turn}-{number}"
            index.add([Document(id=identity, text=_passage(identity))])
            print(identity, flush=True)


# Odd requests. -----------------------------------------------------------------------------------------


_AT_ONCE = 8
_LATE, _BROKEN = 504, 599


def schema(cases: int) -> Iterator[Figure]:
    """Requests that schemathesis makes of the server's own description, valid and not: answers of 500 and
    above, but for 504, which says that a request for many long thoughts was not done in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=False)
        with Index(Path(folder, "index"), embedder) as index:
            index.add(Document(id=str(n), text=f"A passage about case {n}.") for n in range(20))
        arguments = ["--model", str(MODEL), "--index", f"texts={folder}/index"]
        quick = ["-n", "1", "--max-new-tokens", "8", "--timeout", "10"]
        with server(*arguments, *quick, cache=str(Path(folder, "cache"))) as (port, _):
            answers = _answers(port, cases)
    print(f"   {sum(answers.values())} cases: {dict(sorted(answers.items()))}", flush=True)
    bad = sum(number for status, number in answers.items() if status >= 500 and status != _LATE)
    yield Figure(name="serve/schema/cases", value=sum(answers.values()), unit="requests")
    yield Figure(name="serve/schema/internal_errors", value=bad, unit="answers", better="lower")


def _answers(port: int, cases: int) -> Counter[int]:
    """Answers by status to so many cases, shared among the routes that take something, some at a time."""
    import schemathesis
    from schemathesis import GenerationMode

    address = f"http://127.0.0.1:{port}"
    described = schemathesis.openapi.from_url(f"{address}/openapi.json")
    routes = [each.ok() for each in described.get_all_operations()]
    taking = [route for route in routes if route.method == "post"]
    answers: Counter[int] = Counter()
    for route in routes:
        _try(route, GenerationMode.POSITIVE, 1, answers)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for seed in itertools.count():
            ways = [(route, mode) for route in taking for mode in GenerationMode]
            left = cases - sum(answers.values())
            list(pool.map(lambda way: _try(*way, left // len(ways) + 1, answers, seed), ways))  # noqa: B023
            if sum(answers.values()) >= cases:
                return answers
    raise AssertionError


def _try(route: Any, mode: Any, most: int, answers: Counter[int], seed: int = 0) -> None:
    import hypothesis
    import requests

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=most,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=route.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        try:
            status = case.call(timeout=900).status_code
        except requests.RequestException as error:
            print(f"   {error!r:.200}", flush=True)
            status = _BROKEN
        answers[status] += 1
        if status >= 500 and status != _LATE:
            print(f"   {status} {case.as_curl_command()[:1000]}", flush=True)

    send()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--add", required=True, nargs=2)
    _add(*parser.parse_args().add)
