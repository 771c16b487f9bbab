"""The server's search, explanations, streams and reranking, over plain HTTP."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

import httpx
from prometheus_client.parser import text_string_to_metric_families

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever_server import ServerSettings, create_app, views
from tests.support.adapters import (
    OTHER,
    QUERY,
    TEXTS,
    THOUGHT,
    Mind,
    bag_of_words,
    calibrated,
    small_embedder,
)
from tests.support.http_server import ThreadServer, Words, serving, until


class Listener(Mind):
    """A mind that is told what was said before."""

    def __call__(self, queries: list[str], k: int, histories: Any = None) -> list[list[str | None]]:
        return super().__call__(queries, k)


@pytest.fixture(scope="module")
def server(small_index: Index) -> Iterator[ThreadServer]:
    settings = ServerSettings(max_hits=50, max_filter_characters=200, max_turns=3)
    with serving(
        create_app(small_embedder(Listener()), {"facts": small_index}, name="small", settings=settings)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: ThreadServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


class TestSearch:
    def test_hits_and_thoughts_are_those_of_the_library(self, http: httpx.Client, small_index: Index) -> None:
        expected = Retriever(small_embedder(), small_index).search(QUERY, k=2).to_dict()
        found = post(http, "/v1/search", query=QUERY, k=2)
        assert found.pop("timings").keys() == expected.pop("timings").keys()
        assert found == expected
        assert [hit["id"] for hit in found["hits"]] == ["vapour", "mirror"]
        assert found["thoughts"][0]["text"] == THOUGHT

    def test_a_request_says_how(self, http: httpx.Client) -> None:
        fast = post(http, "/v1/search", query=QUERY, thinking="never")
        assert (fast["thoughts"], fast["hits"][0]["id"]) == ([], "mirror")
        home = post(http, "/v1/search", query=QUERY, index="facts", where={"topic": "home"})
        assert {hit["id"] for hit in home["hits"]} == {"mirror", "bread"}
        many = post(http, "/v1/search", query=QUERY, pooling="best", thought_settings={"n_thoughts": 3})
        assert len(many["thoughts"]) == 3
        assert many["search"]["pooling"] == "best"

    def test_what_is_not_likely_relevant_is_left_out(self, http: httpx.Client, small_index: Index) -> None:
        body = {"query": QUERY, "min_relevance": 0.5}
        refused = http.post("/v1/search", json=body)
        assert refused.status_code == 400
        assert "was not calibrated" in refused.json()["error"]["message"]
        with calibrated(small_index):
            expected = Retriever(small_embedder(), small_index).search(QUERY, k=10, min_relevance=0.5)
            found = post(http, "/v1/search", **body)
            assert found["hits"] == expected.to_dict()["hits"]
            assert 0 < len(found["hits"]) < len(TEXTS)
            assert all(hit["probability"] >= 0.5 for hit in found["hits"])
            assert found["search"]["left_out"] == len(TEXTS) - len(found["hits"])
            explained = post(http, "/v1/explain", **body)["result"]
            assert [hit["id"] for hit in explained["hits"]] == [hit["id"] for hit in found["hits"]]
            assert post(http, "/v1/search", **{**body, "min_relevance": 1})["hits"] == []
        for bad in (-0.1, 1.1, "NaN"):
            assert http.post("/v1/search", json={**body, "min_relevance": bad}).status_code == 422

    def test_a_conversation_goes_before(self, http: httpx.Client) -> None:
        turns = [
            {"role": "user", "content": "Tell me of dew."},
            {"role": "assistant", "content": "It is wet."},
        ]
        assert post(http, "/v1/search", query=QUERY, history=turns)["history"] == turns

    @pytest.mark.parametrize("path", ["/v1/search", "/v1/explain", "/v1/map", "/v1/think"])
    def test_the_tokens_of_a_conversation_count(
        self, http: httpx.Client, server: ThreadServer, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server.service, "token_limit", Words())
        monkeypatch.setattr(server.service, "settings", ServerSettings(max_tokens=20))
        turns = [{"role": "user", "content": "b " * 30}]
        answer = http.post(path, json={"query": "Why", "history": turns})
        assert answer.status_code == 413
        assert "Found 31 tokens; expected at most 20" in answer.json()["error"]["message"]

    def test_thoughts_that_are_brought_are_used(self, http: httpx.Client) -> None:
        found = post(http, "/v1/search", query="Why?", k=1, thoughts=["Yeast makes dough.", "It does rise."])
        assert found["hits"][0]["id"] == "bread"
        assert [each["finish"] for each in found["thoughts"]] == ["given", "given"]
        assert post(http, "/v1/explain", query="Why?", thoughts=[])["result"]["thoughts"] == []
        assert http.post("/v1/search", json={"query": "a", "thoughts": ["b"] * 17}).status_code == 413

    def test_an_explanation_says_what_moved(self, http: httpx.Client, small_index: Index) -> None:
        found = post(http, "/v1/explain", query=QUERY, k=2)
        expected = Retriever(small_embedder(), small_index).explain(QUERY, k=2).to_dict()
        assert found["moves"] == expected["moves"]
        assert [hit["id"] for hit in found["without"]] == ["mirror", "moon"]
        assert found["result"]["hits"] == expected["result"]["hits"]

    def test_a_map_is_computed_beside_the_event_loop(
        self, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loops = []

        def noted(vectors: Any) -> Any:
            with suppress(RuntimeError):
                loops.append(asyncio.get_running_loop())
            return plane(vectors)

        plane = views._plane
        monkeypatch.setattr(views, "_plane", noted)
        post(http, "/v1/map", query=QUERY, k=2)
        assert loops == []

    def test_a_map_shows_what_is_near_to_what(self, http: httpx.Client) -> None:
        found = post(http, "/v1/map", query=QUERY, k=4)
        kinds = [point["kind"] for point in found["points"]]
        assert kinds == ["query", "thought", "thought", "mean", *["passage"] * 4]
        assert 0 < found["shown"] <= 1
        query, first, *_, mean, vapour, mirror, _, _ = [(each["x"], each["y"]) for each in found["points"]]
        assert math.dist(mean, vapour) < math.dist(query, vapour)
        assert math.dist(query, mirror) < math.dist(mean, mirror)
        assert math.dist(first, mean) < 1e-5  # both thoughts are the same
        repeats = post(http, "/v1/search", query="What do tides follow?")["thoughts"][0]
        assert repeats["dropped"] is not None
        dropped = post(http, "/v1/map", query="What do tides follow?", k=1)
        assert [point["kind"] for point in dropped["points"]] == ["query", "passage"]
        alone = post(http, "/v1/map", query="Why?", thinking="never", where={"topic": "none"})
        assert [point["kind"] for point in alone["points"]] == ["query"]
        assert (alone["points"][0]["x"], alone["shown"]) == (0, 1)

    @pytest.mark.parametrize(
        ("body", "status", "says"),
        [
            ({"query": " "}, 400, "only whitespace"),
            ({"query": "a", "k": 51}, 413, "51 passages to find; expected at most 50"),
            ({"query": "a", "index": "others"}, 404, "Found the index 'others'; expected one of 'facts'"),
            ({"query": "a", "where": {"$nor": 1}}, 400, "$nor"),
            ({"query": "a", "where": {"\ud800": 1}}, 400, "lone surrogates"),
            ({"query": "\ud800"}, 422, "body.query"),
            ({"query": "a", "where": {"a": "b" * 300}}, 413, "characters of filter; expected at most 200"),
            ({"query": "a", "history": [{"role": "user", "content": "b"}] * 4}, 413, "Found 4 turns"),
            ({"query": "a", "history": [{"role": "witch", "content": "b"}]}, 400, "witch"),
            ({"query": "a", "tought_settings": {}}, 422, "body.tought_settings"),
            ({"query": "a", "thinking": "perhaps"}, 422, "body.thinking"),
        ],
    )
    def test_what_cannot_be_used_is_named(
        self, http: httpx.Client, body: dict[str, Any], status: int, says: str
    ) -> None:
        for path in ("/v1/search", "/v1/explain"):
            # As JSON escapes it, which httpx does not: a part of a character may be in it.
            content, headers = json.dumps(body), {"Content-Type": "application/json"}
            answer = http.post(path, content=content, headers=headers)
            assert answer.status_code == status
            assert says in answer.json()["error"]["message"]

    def test_without_an_index(self) -> None:
        with serving(create_app(small_embedder())) as server:
            answer = httpx.post(f"{server.url}/v1/search", json={"query": "a"}, trust_env=False)
        assert answer.status_code == 404
        assert "--index" in answer.json()["error"]["message"]


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


class TestThink:
    def test_thoughts_come_as_events(self, http: httpx.Client) -> None:
        with http.stream("POST", "/v1/think", json={"query": QUERY}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            found = list(events(answer.iter_lines()))
        thoughts = [data for name, data in found if name == "thought"]
        assert [each["index"] for each in thoughts] == [0, 1]
        assert {each["text"] for each in thoughts} == {THOUGHT}
        assert found[0] == ("piece", {"index": 0, "text": THOUGHT})
        assert found[-1] == ("done", {})

    def test_what_cannot_be_thought_about_is_refused_before_the_answer_begins(
        self, http: httpx.Client
    ) -> None:
        answer = http.post("/v1/think", json={"query": " "})
        assert answer.status_code == 400
        assert "only whitespace" in answer.json()["error"]["message"]


class TestRerank:
    def test_in_the_shape_of_cohere_and_jina(self, http: httpx.Client) -> None:
        documents = [TEXTS["bread"], {"text": TEXTS["vapour"]}, TEXTS["mirror"]]
        found = post(
            http,
            "/v1/rerank",
            query=QUERY,
            documents=documents,
            top_n=2,
            return_documents=True,
            thoughts=True,
        )
        first, second = found["results"]
        assert (first["index"], first["document"]) == (1, {"text": TEXTS["vapour"]})
        assert second["index"] == 2
        assert 1 >= first["relevance_score"] > second["relevance_score"] >= 0
        assert found["thoughts"][0]["text"] == THOUGHT
        fast = post(http, "/v2/rerank", query=QUERY, documents=documents, model="small:fast")
        assert fast["results"][0]["index"] == 2
        assert "document" not in fast["results"][0]

    def test_in_the_shape_of_text_embeddings_inference(self, http: httpx.Client) -> None:
        found = post(http, "/rerank", query=QUERY, texts=[TEXTS["moon"], TEXTS["vapour"]], return_text=True)
        assert [each["index"] for each in found] == [1, 0]
        assert found[0]["text"] == TEXTS["vapour"]
        assert http.post("/rerank", json={"query": QUERY, "texts": []}).status_code == 400


class TestStates:
    def test_the_figures_count_what_was_done(self, http: httpx.Client) -> None:
        def figures() -> dict[tuple[str, ...], float]:
            return {
                (sample.name, *sample.labels.values()): sample.value
                for family in text_string_to_metric_families(http.get("/metrics").text)
                for sample in family.samples
            }

        def grown() -> dict[tuple[str, ...], float]:
            return {name: value - before.get(name, 0) for name, value in figures().items()}

        before = figures()
        post(http, "/v1/search", query="What is unthinkable?")
        post(http, "/v1/search", query=f"{OTHER} mirror")
        http.post("/v1/search", json={"query": " "})
        # An answer is counted when it has gone.
        until(lambda: grown().get(("o1_requests_total", "/v1/search", "400")) == 1)
        found = grown()
        assert found["o1_requests_total", "/v1/search", "200"] == 2
        assert found["o1_thoughts_total", "failed"] == 2
        assert found["o1_thoughts_total", "written"] == 2
        assert found["o1_stage_seconds_count", "search"] == 2
        assert found["o1_batch_size_count", "o1-retriever-model"] >= 2

    def test_states(self, http: httpx.Client) -> None:
        assert http.get("/health").json() == {"status": "ok"}
        state = http.get("/ready").json()
        assert (state["status"], state["model"], state["indexes"]) == ("ready", "small", ["facts"])

    def test_every_example_of_the_openapi_page_runs(self, http: httpx.Client) -> None:
        page = http.get("/openapi.json").json()
        asked = 0
        for path, methods in page["paths"].items():
            for body in examples(page, methods.get("post", {})):
                answer = http.post(path, json=body)
                assert answer.status_code == 200, (path, body, answer.text)
                asked += 1
        assert asked >= 8


def examples(page: dict[str, Any], method: dict[str, Any]) -> list[Any]:
    """The examples of a route's body."""
    if "requestBody" not in method:
        return []
    schema = method["requestBody"]["content"]["application/json"]["schema"]
    found = page["components"]["schemas"][schema["$ref"].rpartition("/")[2]].get("examples", [])
    assert found, f"{method['operationId']} has no example"
    return list(found)


def test_thoughts_of_the_caller_count_in_full_beside_a_writer_that_is_doubted(tmp_path: Path) -> None:
    doubted = ThoughtSettings(n_thoughts=2, doubt=3)
    embedder = ThinkingEmbedder.from_parts(Mind(), bag_of_words, settings=doubted)
    with Index(tmp_path / "index", embedder) as index:
        index.add(Document(id=name, text=text) for name, text in TEXTS.items())
        with (
            serving(create_app(embedder, {"facts": index})) as running,
            httpx.Client(base_url=running.url, trust_env=False) as client,
        ):

            def scores(**settings: float) -> list[float]:
                body = {"query": QUERY, "thoughts": [THOUGHT], "thought_settings": settings or None}
                return [hit["score"] for hit in client.post("/v1/search", json=body).json()["hits"]]

            assert scores() == scores(query_weight=0)
            assert scores() != scores(query_weight=3)
