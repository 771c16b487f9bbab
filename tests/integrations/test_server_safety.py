"""Who may call the server, how much it accepts, and what becomes of requests that nobody waits for."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

import httpx
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.errors import SettingsError
from o1_retriever_server import Keys, ServerSettings, create_app
from o1_retriever_server.embeddings import EmbeddingRequest
from o1_retriever_server.middleware import JsonLines
from o1_retriever_server.searching import RerankRequest, SearchRequest, TextsRequest, ThinkRequest
from tests.support.adapters import bag_of_words, small_embedder
from tests.support.http_server import ThreadServer, serving, until

KEY = "0123456789abcdef-secret"
SECRET = "a private question"


def client(server: ThreadServer, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=server.url, trust_env=False, timeout=60, **options)


class TestKeys:
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[ThreadServer]:
        keys = Keys({"alice": KEY, "bob": "another-key-of-some-length"})
        settings = ServerSettings(hosts=("*",))
        with serving(create_app(small_embedder(), name="small", keys=keys, settings=settings)) as running:
            yield running

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": KEY},
            {"X-API-Key": ""},
            {"X-API-Key": "ü"},
        ],
    )
    def test_a_request_without_a_known_key_is_refused(
        self, server: ThreadServer, headers: dict[str, str]
    ) -> None:
        encoded = {name: value.encode() for name, value in headers.items()}
        with client(server) as http:
            answer = http.post("/v1/embeddings", json={"input": SECRET}, headers=encoded)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            for path in ("/metrics", "/v1/models", "/nowhere", "/page/../metrics"):
                assert http.get(path, headers=encoded).status_code == 401, path
            for path in ("/page/%2e%2e/metrics", "/page/..%2fapp.py", "/page//metrics"):
                assert http.get(path, headers=encoded).status_code == 404, path

    def test_a_known_one_passes_and_its_name_is_logged(
        self, server: ThreadServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "o1_retriever.server"), client(server) as http:
            for headers in ({"Authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}):
                answer = http.post(
                    "/v1/embeddings", json={"input": SECRET}, headers={**headers, "X-Request-ID": "mine-1"}
                )
                assert answer.status_code == 200
                assert answer.headers["X-Request-Id"] == "mine-1"
            until(lambda: len(caplog.records) == 2)  # a line is written when the answer has gone
        records = [json.loads(record.getMessage()) for record in caplog.records]
        assert [(each["key"], each["status"], each["id"]) for each in records] == [
            ("alice", 200, "mine-1")
        ] * 2
        assert KEY not in caplog.text
        assert SECRET not in caplog.text

    def test_what_says_nothing_needs_none(self, server: ThreadServer) -> None:
        with client(server) as http:
            for path in ("/", "/docs", "/health", "/ready", "/openapi.json", "/page/page.js"):
                assert http.get(path).status_code == 200

    def test_keys_are_read_from_a_file_and_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "keys"
        file.write_text(f"# ours\nalice {KEY}\n\nnameless-key-of-some-length\n")
        monkeypatch.setenv("O1_RETRIEVER_API_KEYS", "bob=of-the-environment, carol=of-the-environment-2")
        keys = Keys.read(file)
        found = [
            keys.name_of(key) for key in (KEY, "nameless-key-of-some-length", "of-the-environment", "none")
        ]
        assert found == ["alice", "key-2", "bob", None]
        assert KEY not in repr(keys)

    def test_base64_of_the_environment_is_a_key_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = [base64.b64encode(bytes(range(first, first + 32))).decode() for first in (0, 100, 200)]
        assert all(key.endswith("=") for key in made)
        monkeypatch.setenv("O1_RETRIEVER_API_KEYS", f"{made[0]},bob={made[1]}, {made[2]}")
        keys = Keys.read()
        assert [keys.name_of(key) for key in made] == ["key-1", "bob", "key-3"]

    @pytest.mark.parametrize("entry", ["a-client-of-some-length=", "a-client-of-some-length=="])
    def test_a_name_without_a_key_is_refused_and_not_shown(
        self, entry: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("O1_RETRIEVER_API_KEYS", f"alice={KEY},{entry}")
        with pytest.raises(SettingsError, match="Entry 2 of the keys has a name and no key") as refusal:
            Keys.read()
        assert "a-client" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("alice kéy-of-some-length", "'alice' has characters that are not ASCII"),
            ("alice short", "has 5 characters; expected at least 16"),
            (f"alice {KEY}\nalice {KEY}x", "two keys named 'alice'"),
            (f"alice {KEY}\nbob {KEY}", "the same key under two names"),
            ("# nothing\n", "holds no key"),
        ],
    )
    def test_keys_that_cannot_be_used(self, tmp_path: Path, text: str, says: str) -> None:
        file = tmp_path / "keys"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match=says):
            Keys.read(file)


class TestBrowsers:
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[ThreadServer]:
        with serving(create_app(small_embedder(), settings=ServerSettings(max_body_bytes=1000))) as running:
            yield running

    def test_another_name_for_this_machine_is_not_answered(self, server: ThreadServer) -> None:
        with client(server) as http:
            for host, status in (
                ("localhost:8000", 200),
                ("[::1]:1", 200),
                ("evil.example", 400),
                ("127.0.0.1.evil", 400),
            ):
                assert http.get("/v1/models", headers={"Host": host}).status_code == status, host
            refused = http.get("/v1/models", headers={"Host": "evil.example"})
        assert refused.json()["error"]["param"] == "Host"
        assert refused.headers["X-Content-Type-Options"] == "nosniff"
        assert refused.headers["Cache-Control"] == "no-store"

    def test_pages_of_other_origins_are_told_nothing(self, server: ThreadServer) -> None:
        with client(server) as http:
            answer = http.get("/v1/models", headers={"Origin": "https://evil.example"})
            assert not any(name.startswith("access-control") for name in answer.headers)
            page = http.get("/")
        for found in (answer, page):
            assert "script-src 'self'" in found.headers["Content-Security-Policy"]
            assert "unsafe" not in found.headers["Content-Security-Policy"]
            assert found.headers["X-Content-Type-Options"] == "nosniff"
            assert "server" not in found.headers

    def test_origins_that_are_named_may_call(self) -> None:
        settings = ServerSettings(cors_origins=("https://ours.example",))
        with serving(create_app(small_embedder(), settings=settings)) as server, client(server) as http:
            asked = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
            answer = http.options("/v1/embeddings", headers=asked)
            assert answer.headers["Access-Control-Allow-Origin"] == "https://ours.example"

    def test_a_body_that_is_too_large(self, server: ThreadServer) -> None:
        with client(server) as http:
            answer = http.post("/v1/embeddings", json={"input": "a" * 2000})
            parts = http.post(
                "/v1/embeddings",
                content=iter([b'{"input": "', b"a" * 2000, b'"}']),
                headers={"Content-Type": "application/json"},
            )
        assert [answer.status_code, parts.status_code] == [413, 413]
        assert answer.json()["error"]["code"] == "too_large"


MANY = [None] * 2000
UNKNOWN = {f"unknown{number}": 0 for number in range(2000)}


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (EmbeddingRequest, {"input": MANY}),
        (EmbeddingRequest, {"input": [MANY]}),
        (EmbeddingRequest, {"input": [[-1]] * 2000}),
        (EmbeddingRequest, {"input": "a", "thought_settings": UNKNOWN}),
        (RerankRequest, {"query": "a", "documents": MANY}),
        (RerankRequest, {"query": "a", "texts": MANY}),
        (TextsRequest, {"query": "a", "texts": MANY}),
        (ThinkRequest, {"query": "a", "history": MANY}),
        (SearchRequest, {"query": "a", "thoughts": MANY}),
        (SearchRequest, {"query": "a", **UNKNOWN}),
    ],
)
def test_what_is_wrong_is_said_a_few_times_and_not_of_each_element(
    shape: type[BaseModel], body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as refusal:
        shape.model_validate(body)
    assert refusal.value.error_count() <= 5


class Slow:
    """A thinker that waits until it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()

    def __call__(self, queries: list[str], n_thoughts: int) -> list[list[str]]:
        self.asked += queries
        assert self.go.wait(30)
        return [["a thought"] * n_thoughts for _ in queries]


def slow_app(settings: ServerSettings | None = None) -> tuple[FastAPI, Slow]:
    slow = Slow()
    embedder = ThinkingEmbedder.from_parts(
        slow, bag_of_words, settings=ThoughtSettings(n_thoughts=1), cache=False
    )
    return create_app(embedder, name="slow", settings=settings), slow


def waiting(server: ThreadServer) -> float:
    value: float = server.service.metrics.registry.get_sample_value("o1_waiting")
    return value


class TestAdmission:
    def test_one_request_too_many_is_told_when_to_come_back(self) -> None:
        app, slow = slow_app(ServerSettings(max_waiting=3))
        with serving(app) as server, client(server) as http, ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(http.post, "/v1/embeddings", json={"input": f"q{place}"}) for place in range(3)
            ]
            until(lambda: waiting(server) == 3)
            refused = http.post("/v1/embeddings", json={"input": "q4"})
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert http.get("/health").status_code == 200
            slow.go.set()
            assert [each.result().status_code for each in asked] == [200] * 3
            assert http.post("/v1/embeddings", json={"input": "q5"}).status_code == 200

    def test_a_request_is_given_up_when_its_time_is_up(self) -> None:
        app, slow = slow_app(ServerSettings(max_seconds=30))
        with serving(app) as server, client(server) as http:
            late = http.post("/v1/embeddings", json={"input": "a"}, headers={"X-Request-Timeout": "0.05"})
            assert late.status_code == 504
            assert late.json()["error"]["code"] == "deadline_exceeded"
            assert waiting(server) == 0
            for wrong in ("soon", "-1", "nan", "0"):
                headers = {"X-Request-Timeout": wrong}
                assert http.post("/v1/embeddings", json={"input": "a"}, headers=headers).status_code == 400
            slow.go.set()

    def test_a_stream_whose_time_is_up_ends_with_an_error(self) -> None:
        app, slow = slow_app()
        with serving(app) as server, client(server) as http:
            late = http.post("/v1/think", json={"query": "a"}, headers={"X-Request-Timeout": "0.2"})
            assert late.status_code == 200
            name, _, data = late.text.strip().rpartition("\n")
            assert name == "event: error"
            assert json.loads(data.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
            assert waiting(server) == 0
            slow.go.set()

    @pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/think"])
    def test_a_client_that_hangs_up_takes_its_query_out(self, path: str) -> None:
        app, slow = slow_app()
        body = {"input": "second"} if path == "/v1/embeddings" else {"query": "second"}
        with serving(app) as server, client(server) as http, ThreadPoolExecutor(2) as pool:
            first = pool.submit(http.post, "/v1/embeddings", json={"input": "first"})
            until(lambda: slow.asked == ["first"])
            gone = hang_up(server, path, body)
            until(lambda: waiting(server) == 2)
            gone.close()
            until(lambda: waiting(server) == 1)
            slow.go.set()
            assert first.result().status_code == 200
            assert http.post("/v1/embeddings", json={"input": "third"}).status_code == 200
        assert slow.asked == ["first", "third"]

    def test_what_was_accepted_is_finished_before_the_end(self) -> None:
        app, slow = slow_app()
        with serving(app) as server, client(server) as http, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(http.post, "/v1/embeddings", json={"input": "accepted"})
            until(lambda: slow.asked == ["accepted"])
            server.end()
            threading.Timer(0.1, slow.go.set).start()
            assert asked.result().status_code == 200
            server.stop()
            with pytest.raises(httpx.ConnectError):
                http.get("/health")

    def test_the_health_is_told_while_the_model_computes(self) -> None:
        app, slow = slow_app()
        with serving(app) as server, client(server) as http, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(http.post, "/v1/embeddings", json={"input": "a"})
            until(lambda: slow.asked == ["a"])
            assert http.get("/health").status_code == 200
            assert http.get("/ready").status_code == 200
            slow.go.set()
            assert asked.result().status_code == 200


def hang_up(server: ThreadServer, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent and no answer is read."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}"
    )
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(f"{head}\r\n\r\n".encode() + content)
    return connection


class TestFailures:
    def test_the_client_gets_an_id_and_the_log_no_text(self, caplog: pytest.LogCaptureFixture) -> None:
        def broken(texts: list[str]) -> Any:
            if SECRET in texts:
                raise RuntimeError(f"failed on {texts}")
            return bag_of_words(texts)

        app = create_app(ThinkingEmbedder.from_parts(small_embedder().backend.thinker, broken, cache=False))  # type: ignore[attr-defined]
        with caplog.at_level(logging.INFO), serving(app) as server, client(server) as http:
            body = {"input": SECRET, "input_type": "document"}
            answer = http.post("/v1/embeddings", json=body, headers={"X-Request-ID": "r-7"})
        assert answer.status_code == 500
        assert "r-7" in answer.json()["error"]["message"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert SECRET not in answer.text
        assert SECRET not in caplog.text
        [record] = [json.loads(each.getMessage()) for each in caplog.records if each.levelname == "ERROR"]
        assert (record["id"], record["error"]) == ("r-7", "EncoderError")
        assert any("encoders.py" in place for place in record["where"])

    def test_mounted_in_another_application_it_gets_ready_by_itself(self) -> None:
        outer = FastAPI()
        outer.mount("/retriever", create_app(small_embedder(), name="small"))
        with serving(outer) as server, client(server) as http:
            until(lambda: http.get("/retriever/ready").status_code == 200)
            answer = http.post("/retriever/v1/embeddings", json={"input": "a"})
            assert answer.status_code == 200
            assert http.get("/retriever/page/page.css").status_code == 200

    def test_making_an_application_configures_no_logging(self) -> None:
        root = logging.getLogger()
        before = (list(root.handlers), root.level)
        create_app(small_embedder())
        assert (root.handlers, root.level) == before

    def test_what_the_library_warns_of_has_no_text_in_the_log(self) -> None:
        record = logging.makeLogRecord(
            {"name": "o1_retriever.thinking", "msg": "%d thoughts about %.60r failed", "args": (2, SECRET)}
        )
        said = json.loads(JsonLines(texts=False).format(record))
        assert said["message"] == "2 thoughts about '[not logged]' failed"
        assert SECRET in JsonLines(texts=True).format(record)
