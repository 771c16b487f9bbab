"""The wrappers that LangChain and LlamaIndex have for OpenAI's embeddings, unchanged, against the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("llama_index.embeddings.openai", reason="type: pip install llama-index-embeddings-openai")
pytest.importorskip("langchain_openai", reason="type: pip install langchain-openai")

import llama_index.core
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding

from o1_retriever_server import create_app
from tests.support.adapters import QUERY, TEXTS, small_embedder
from tests.support.http_server import ThreadServer, serving

DOCUMENTS = list(TEXTS.values())
FAST = small_embedder().settings.with_changes(thinking="never")


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadServer]:
    with serving(create_app(small_embedder(), name="small")) as running:
        yield running


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain and the server read OpenAI's vocabulary, of which LlamaIndex brings a copy."""
    cache = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


def test_langchain(server: ThreadServer) -> None:
    """It sends token ids by itself."""
    asked = {"base_url": f"{server.url}/v1", "api_key": "none"}
    queries, documents = (
        OpenAIEmbeddings(model="small", **asked),
        OpenAIEmbeddings(model="small:document", **asked),
    )
    expected = small_embedder().embed_query(QUERY).vector
    assert np.allclose(queries.embed_query(QUERY), expected, atol=1e-4)
    assert np.allclose(
        documents.embed_documents(DOCUMENTS), small_embedder().encode_documents(DOCUMENTS), atol=1e-4
    )
    plain = OpenAIEmbeddings(model="small", check_embedding_ctx_length=False, **asked)
    assert np.allclose(plain.embed_query(QUERY), expected, atol=1e-4)


def test_a_store_of_langchain_has_one_object_for_both(server: ThreadServer) -> None:
    """As docs/serving.md shows it: what kind a text is goes along with each call."""
    from langchain_core.vectorstores import InMemoryVectorStore

    class Served(OpenAIEmbeddings):
        def embed_documents(self, texts: list[str], *args: Any, **kwargs: Any) -> list[list[float]]:
            kwargs.setdefault("extra_body", {"input_type": "document"})
            return super().embed_documents(texts, *args, **kwargs)

        def embed_query(self, text: str, **kwargs: Any) -> list[float]:
            return super().embed_query(text, extra_body={"input_type": "query"}, **kwargs)

    served = Served(model="small", base_url=f"{server.url}/v1", api_key="none")
    store = InMemoryVectorStore.from_texts(DOCUMENTS, served)
    rows = [each["vector"] for each in store.store.values()]
    assert np.allclose(rows, small_embedder().encode_documents(DOCUMENTS), atol=1e-4)
    [first] = store.similarity_search(QUERY, k=1)
    assert first.page_content == TEXTS["vapour"], "it is found by its thought alone"


async def test_llama_index(server: ThreadServer) -> None:
    asked = {"api_base": f"{server.url}/v1", "api_key": "none"}
    queries = OpenAIEmbedding(model_name="small:fast", **asked)
    documents = OpenAIEmbedding(model_name="small:document", **asked)
    fast = small_embedder().embed_query(QUERY, settings=FAST).vector
    assert np.allclose(queries.get_query_embedding(QUERY), fast, atol=1e-4)
    assert np.allclose(await queries.aget_query_embedding(QUERY), fast, atol=1e-4)
    rows = small_embedder().encode_documents(DOCUMENTS)
    assert np.allclose(documents.get_text_embedding_batch(DOCUMENTS), rows, atol=1e-4)


def test_an_index_of_llama_index_is_asked_by_another_name_than_it_is_made(server: ThreadServer) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    asked = {"api_base": f"{server.url}/v1", "api_key": "none"}
    documents = OpenAIEmbedding(model_name="small:document", **asked)
    queries = OpenAIEmbedding(model_name="small", **asked)
    index = VectorStoreIndex([TextNode(text=text) for text in DOCUMENTS], embed_model=documents)
    [first] = index.as_retriever(embed_model=queries, similarity_top_k=1).retrieve(QUERY)
    assert first.text == TEXTS["vapour"]
    [first] = index.as_retriever(similarity_top_k=1).retrieve(QUERY)
    assert first.text == TEXTS["mirror"], "without its thought it is found by its own words"
