"""Sixty-four clients at once: nothing is lost, nothing is mixed up, and what is too much is refused."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

import httpx

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever_server import ServerSettings, create_app
from tests.support.adapters import small_embedder
from tests.support.http_server import ThreadServer, serving

pytestmark = pytest.mark.long
pytest.importorskip("chromadb", reason="needs the extra `index`")

HOW = ThoughtSettings(n_thoughts=2, temperature=1.0, max_new_tokens=6)
CLIENTS, REQUESTS = 64, 640
QUERIES = [f"query number {number}" for number in range(40)]
TEXTS = [f"text {number} " + "word " * (number % 7) for number in range(40)]


@pytest.fixture(scope="module", params=["pair", "local"])
def embedder(request: pytest.FixtureRequest) -> ThinkingEmbedder:
    if request.param == "pair":
        return small_embedder()
    from o1_retriever.engine.backend import LocalBackend
    from tests.support.engine import exact_model

    return ThinkingEmbedder(LocalBackend(exact_model("qwen2")), settings=HOW, cache=False)


@pytest.fixture(scope="module")
def index(embedder: ThinkingEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with Index(tmp_path_factory.mktemp("load"), embedder) as made:
        made.add(Document(id=str(number), text=text) for number, text in enumerate(TEXTS))
        yield made


async def by_all(
    server: ThreadServer, one: Callable[[httpx.AsyncClient, int], Awaitable[None]], count: int
) -> None:
    """`count` requests by all clients, each of which sends its next one when it has an answer."""
    numbers = iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            await one(http, number)

    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=200, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))


async def test_every_answer_is_that_of_the_library(embedder: ThinkingEmbedder, index: Index) -> None:
    fast = embedder.settings.with_changes(thinking="never")
    expected = {
        "tiny": embedder.encode_queries(QUERIES),
        "tiny:fast": embedder.encode_queries(QUERIES, settings=fast),
        "tiny:document": embedder.encode_documents(TEXTS),
    }
    found = {query: [hit.id for hit in Retriever(embedder, index).search(query, k=3)] for query in QUERIES}
    kinds: Counter[str] = Counter()
    chance = random.Random(0)

    async def one(http: httpx.AsyncClient, _: int) -> None:
        kind, place = chance.choice([*expected, "search"]), chance.randrange(40)
        if kind == "search":
            answer = await http.post("/v1/search", json={"query": QUERIES[place], "k": 3})
            assert [hit["id"] for hit in answer.json()["hits"]] == found[QUERIES[place]]
        else:
            places = [(place + more) % 40 for more in range(chance.choice([1, 1, 5]))]
            texts = TEXTS if kind == "tiny:document" else QUERIES
            body = {"model": kind, "input": [texts[each] for each in places]}
            rows = [
                each["embedding"] for each in (await http.post("/v1/embeddings", json=body)).json()["data"]
            ]
            assert np.allclose(rows, expected[kind][places], atol=1e-4)
        kinds[kind] += 1

    with serving(create_app(embedder, {"texts": index}, name="tiny")) as server:
        await by_all(server, one, REQUESTS)
    assert sum(kinds.values()) == REQUESTS
    assert min(kinds.values()) > REQUESTS / 8


async def test_an_overload_gets_200_and_429_alone(embedder: ThinkingEmbedder, index: Index) -> None:
    answers: Counter[int] = Counter()

    async def one(http: httpx.AsyncClient, number: int) -> None:
        answer = await http.post("/v1/search", json={"query": f"another query {number}"})
        answers[answer.status_code] += 1
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            await asyncio.sleep(0.01)

    settings = ServerSettings(max_waiting=CLIENTS // 4)
    with serving(create_app(embedder, {"texts": index}, settings=settings)) as server:
        await by_all(server, one, 320)
        assert set(answers) == {200, 429}
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=200) as http:
            after: Any = await http.post("/v1/search", json={"query": "afterwards"})
        assert after.status_code == 200
