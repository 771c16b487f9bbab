"""`o1-retriever serve` as a process: it begins, answers, logs and ends; what it refuses before loading."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

import httpx

from tests.support.commands import NOTES, ok, refused, save
from tests.support.http_server import until

PATIENCE = 120.0  # seconds until the process has begun, or has ended


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("O1_RETRIEVER_API_KEYS", raising=False)
    return tmp_path


@contextmanager
def process(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address; killed where it is still there at the end."""
    command = [sys.executable, "-m", "o1_retriever", "serve", "--port", "0", *arguments]
    environment = {**os.environ, **variables}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as started:
        try:
            said = ""
            for line in started.stderr or ():
                said += line
                if found := re.search(r"on (http://\S+)", line):
                    break
            else:
                pytest.fail(said)
            yield started, found[1]
        finally:
            started.kill()


@pytest.mark.long
def test_it_serves_an_index_and_ends_at_a_signal(tmp_path: Path) -> None:
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    model = save(tmp_path / "tiny-model")
    for name, text in NOTES.items():
        file = tmp_path / "notes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    ok("index", "notes", "--model", str(model))
    key = "a-key-of-some-length"
    with process("--model", str(model), "-n", "1", O1_RETRIEVER_API_KEYS=f"alice={key}") as (server, address):
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
            assert http.get("/ready").json()["indexes"] == ["o1-index"]
            assert http.post("/v1/search", json={"query": "Why?"}).status_code == 401
            http.headers["Authorization"] = f"Bearer {key}"
            assert http.get("/v1/models").json()["data"][0]["id"] == "tiny-model"
            found = http.post("/v1/search", json={"query": "Why do mirrors fog up?", "k": 2}).json()
            assert len(found["hits"]) == 2
            assert len(found["thoughts"]) == 1
        server.send_signal(signal.SIGTERM)
        said, _ = server.communicate(timeout=PATIENCE)
        assert server.returncode == 0
    records = [record for line in said.splitlines() if "path" in (record := json.loads(line))]
    assert [(each["path"], each["status"]) for each in records] == [
        ("/ready", 200),
        ("other", 401),
        ("/v1/models", 200),
        ("/v1/search", 200),
    ]
    assert records[-1]["key"] == "alice"
    assert "mirrors" not in said


@pytest.mark.long
def test_a_kill_under_load_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    model = save(tmp_path / "tiny-model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Mirrors\n\nSteam meets cold glass.\n")
    ok("index", "notes", "--model", str(model))
    answered: list[str] = []
    # The last round only looks at what the others have left.
    for attempt in range(3):
        with (
            process("--model", str(model)) as (server, address),
            httpx.Client(base_url=address, trust_env=False, timeout=60) as http,
        ):
            for query in answered:
                found = http.post("/v1/search", json={"query": query}).json()
                assert all(thought["cached"] for thought in found["thoughts"])
                assert found["hits"][0]["text"].endswith("Steam meets cold glass.")
            if attempt < 2:
                answered += killed_under_load(server, http, [f"query {attempt} {n}" for n in range(100)])
    assert len(answered) >= 2 * ENOUGH


ENOUGH = 10  # answers before the kill


def killed_under_load(server: subprocess.Popen[str], http: httpx.Client, queries: list[str]) -> list[str]:
    """The queries that were answered before the server was killed amid them."""
    answered: list[str] = []

    def ask(query: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            assert http.post("/v1/search", json={"query": query}).status_code == 200
            answered.append(query)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, query) for query in queries]
        until(lambda: len(answered) >= ENOUGH)
        server.kill()
        for each in asked:
            each.result()
    assert len(answered) < len(queries)
    return answered


class TestRefused:
    def test_an_address_that_others_reach_without_a_key(self) -> None:
        for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
            assert "and no key" in refused("serve", "--host", host)

    def test_a_file_of_keys_that_is_not_there(self) -> None:
        assert "cannot be read" in refused("serve", "--keys", "nowhere")

    def test_two_indexes_of_one_name(self) -> None:
        assert "two indexes named 'notes'" in refused("serve", "--index", "a/notes", "--index", "b/notes")

    def test_an_address_that_is_taken(self) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            assert f"Cannot listen on 127.0.0.1, port {port}" in refused("serve", "--port", port)

    @pytest.mark.long
    def test_an_index_that_is_not_there(self, tmp_path: Path) -> None:
        model = save(tmp_path / "tiny-model")
        said = refused("serve", "--port", "0", "--model", str(model), "--index", "nothing")
        assert "Found no index" in said
