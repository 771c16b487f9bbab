"""The server's vectors are the library's, for OpenAI's own client and for clients that speak plain HTTP."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

import httpx
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.backend import LocalBackend
from o1_retriever_server import ServerSettings, create_app
from tests.support.engine import exact_model
from tests.support.http_server import ThreadServer, serving

HOW = ThoughtSettings(n_thoughts=2, temperature=1.0, max_new_tokens=8)
QUERY = "why is the sky blue?"
TEXTS = ["a text", "another text", "x" * 40]


def embedder() -> ThinkingEmbedder:
    return ThinkingEmbedder(LocalBackend(exact_model("qwen2")), settings=HOW, cache=False)


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadServer]:
    settings = ServerSettings(max_texts=20, max_queries=8, max_tokens=2000, max_thoughts=3, token_ids="model")
    with serving(create_app(embedder(), name="tiny", settings=settings)) as running:
        yield running


@pytest.fixture(scope="module")
def openai(server: ThreadServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: ThreadServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


class TestOpenAI:
    def test_a_query_is_thought_about(self, openai: OpenAI) -> None:
        expected = embedder().embed_query(QUERY)
        found = openai.embeddings.create(model="tiny", input=QUERY)
        assert found.model == "tiny"
        assert np.allclose(found.data[0].embedding, expected.vector, atol=1e-4)
        assert found.usage.prompt_tokens == len(QUERY)  # a token a byte
        assert found.usage.total_tokens == len(QUERY) + expected.thought_tokens

    def test_numbers_and_base64_are_the_same(self, openai: OpenAI, http: httpx.Client) -> None:
        # The client asks for base64 by itself.
        numbers = openai.embeddings.create(model="tiny:document", input=TEXTS, encoding_format="float")
        decoded = openai.embeddings.create(model="tiny:document", input=TEXTS)
        rows = embedder().encode_documents(TEXTS)
        for place, (one, other) in enumerate(zip(numbers.data, decoded.data, strict=True)):
            assert one.index == other.index == place
            assert np.allclose(one.embedding, rows[place], atol=1e-4)
            assert np.allclose(other.embedding, rows[place], atol=1e-4)
        plain = {"model": "tiny:document", "input": TEXTS[0], "encoding_format": "base64"}
        row = http.post("/v1/embeddings", json=plain).json()["data"][0]["embedding"]
        assert np.allclose(np.frombuffer(base64.b64decode(row), "<f4"), rows[0], atol=1e-4)

    def test_names_say_how_a_text_is_embedded(self, openai: OpenAI) -> None:
        fast = embedder().embed_query(QUERY, settings=HOW.with_changes(thinking="never")).vector
        document = embedder().encode_documents(QUERY)
        for name, expected in (("tiny:fast", fast), ("tiny:document", document)):
            found = openai.embeddings.create(model=name, input=[QUERY])
            assert np.allclose(found.data[0].embedding, expected, atol=1e-4)
            assert found.usage.total_tokens == found.usage.prompt_tokens
        assert not np.allclose(fast, document, atol=1e-2)

    def test_vectors_are_cut_to_the_dimensions(self, openai: OpenAI) -> None:
        found = openai.embeddings.create(model="tiny", input=QUERY, dimensions=5).data[0].embedding
        assert np.allclose(found, embedder().embed_queries([QUERY], truncate_dim=5)[0].vector, atol=1e-4)
        with pytest.raises(BadRequestError, match="dimensions is 5000; expected at most 32"):
            openai.embeddings.create(model="tiny", input=QUERY, dimensions=5000)

    def test_token_ids_are_read_as_text(self, openai: OpenAI) -> None:
        tokenizer = exact_model("qwen2").template.tokenizer
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        rows = embedder().encode_documents(TEXTS)
        several = openai.embeddings.create(model="tiny:document", input=ids)
        assert np.allclose([each.embedding for each in several.data], rows, atol=1e-4)
        one = openai.embeddings.create(model="tiny:document", input=ids[0])
        assert np.allclose(one.data[0].embedding, rows[0], atol=1e-4)
        with pytest.raises(BadRequestError, match="Input 1 has the token id 99999; expected ids below"):
            openai.embeddings.create(model="tiny:document", input=[ids[0], [1, 99999]])

    def test_thoughts_come_with_the_vector(self, openai: OpenAI) -> None:
        more: dict[str, Any] = {"thoughts": True, "thought_settings": {"n_thoughts": 3, "seed": 5}}
        found = openai.embeddings.create(model="tiny", input=[QUERY], extra_body=more).data[0]
        expected = embedder().embed_query(QUERY, settings=HOW.with_changes(n_thoughts=3, seed=5))
        written = found.model_extra["thoughts"]  # type: ignore[index]
        assert [each["text"] for each in written] == [each.text for each in expected.thoughts]
        assert np.allclose(found.embedding, expected.vector, atol=1e-4)

    async def test_many_at_once_share_batches_and_are_not_mixed_up(self, server: ThreadServer) -> None:
        queries = [f"query {number}" for number in range(12)]
        expected = embedder().encode_queries(queries)
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            found = await asyncio.gather(
                *(client.embeddings.create(model="tiny", input=query) for query in queries)
            )
        rows = [each.data[0].embedding for each in found]
        assert np.allclose(rows, expected, atol=1e-4)

    def test_models_are_listed(self, openai: OpenAI) -> None:
        names = [model.id for model in openai.models.list()]
        assert names == ["tiny", "tiny:fast", "tiny:document"]
        model = openai.models.retrieve("tiny:fast")
        assert model.model_extra is not None
        assert (model.model_extra["thinks"], model.model_extra["dimension"]) == (False, 32)
        with pytest.raises(NotFoundError, match="expected one of tiny, tiny:fast, tiny:document"):
            openai.models.retrieve("gpt")


class TestTypes:
    @pytest.mark.parametrize(
        ("model", "kind", "same"),
        [
            ("tiny", "query", "tiny"),
            ("tiny", "search_query", "tiny"),
            ("tiny", "document", "tiny:document"),
            ("tiny", "search_document", "tiny:document"),
            ("tiny", "clustering", "tiny:document"),
            ("tiny:fast", "query", "tiny:fast"),
        ],
    )
    def test_input_types_of_voyage_and_cohere(self, openai: OpenAI, model: str, kind: str, same: str) -> None:
        found = openai.embeddings.create(model=model, input="a text", extra_body={"input_type": kind})
        expected = openai.embeddings.create(model=same, input="a text")
        assert np.allclose(found.data[0].embedding, expected.data[0].embedding, atol=1e-5)

    def test_a_query_of_the_model_for_documents_is_a_contradiction(self, openai: OpenAI) -> None:
        with pytest.raises(BadRequestError, match="'tiny:document' with input_type 'query'"):
            openai.embeddings.create(model="tiny:document", input="a", extra_body={"input_type": "query"})


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "status", "says"),
        [
            ({"input": []}, 400, "no text"),
            ({"input": [[]]}, 400, "query 0 is empty"),
            ({"input": ["a", " "]}, 400, "query 1 is only whitespace"),
            ({"input": "a", "model": "other"}, 404, "expected one of tiny, tiny:fast"),
            ({"input": ["a"] * 21}, 413, "Found 21 texts; expected at most 20"),
            ({"input": ["a"] * 9}, 413, "name the model tiny:document"),
            ({"input": "a" * 2001}, 413, "Found 2,001 tokens"),
            ({"input": "a", "thought_settings": {"n_thoughts": 4}}, 400, "this server allows at most 3"),
            (
                {"input": "a", "thought_settings": {"seeds": 4}},
                422,
                "body.thought_settings.seeds: Extra inputs are not permitted. The page /docs has",
            ),
            ({"input": 3}, 422, "body.input"),
            ({}, 422, "body.input: Field required"),
        ],
    )
    def test_what_cannot_be_used_is_named_in_the_shape_of_openai(
        self, http: httpx.Client, body: dict[str, Any], status: int, says: str
    ) -> None:
        answer = http.post("/v1/embeddings", json=body)
        assert answer.status_code == status
        problem = answer.json()["error"]
        assert says in problem["message"]
        assert set(problem) == {"message", "type", "code", "param"}

    def test_a_body_that_is_no_json(self, http: httpx.Client) -> None:
        json = {"Content-Type": "application/json"}
        broken = http.post("/v1/embeddings", content=b"{", headers=json)
        assert (broken.status_code, "enclosed in double quotes" in broken.text) == (422, True)
        assert "Found GET; expected POST." in http.get("/v1/embeddings").text
        # What a page of another origin can send without being asked whether it may.
        plain = {"Content-Type": "text/plain"}
        unread = http.post("/v1/embeddings", content=b'{"input": "a"}', headers=plain)
        assert (unread.status_code, "Content-Type: application/json" in unread.text) == (422, True)
        assert http.get("/nowhere").json()["error"]["code"] == "not_found"
        assert http.get("/v1/embeddings").json()["error"]["code"] == "method_not_allowed"


def test_tokens_of_openai_are_read_by_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    encoding = tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([each]): each for each in range(256)},
        special_tokens={},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {"cl100k_base": encoding}.__getitem__)
    with serving(create_app(embedder(), name="tiny")) as server:
        body = {"input": [list(b"a text"), [98]], "model": "tiny:document"}
        found = httpx.post(f"{server.url}/v1/embeddings", json=body, trust_env=False).json()["data"]
        assert np.allclose(
            [each["embedding"] for each in found], embedder().encode_documents(["a text", "b"]), atol=1e-4
        )
        # A cut between ids may be within a character, as LangChain's is.
        cut = "äaé".encode()
        body["input"] = [list(cut[1:-1]), list(cut[:1])]
        found = httpx.post(f"{server.url}/v1/embeddings", json=body, trust_env=False).json()["data"]
        expected = embedder().encode_documents(["a", "\ufffd"])
        assert np.allclose([each["embedding"] for each in found], expected, atol=1e-4)
        body["input"] = [list(b"a\xffb")]
        assert httpx.post(f"{server.url}/v1/embeddings", json=body, trust_env=False).status_code == 400
        body["input"] = [[5000]]
        refused = httpx.post(f"{server.url}/v1/embeddings", json=body, trust_env=False)
        assert refused.status_code == 400
        assert "check_embedding_ctx_length=False" in refused.json()["error"]["message"]
