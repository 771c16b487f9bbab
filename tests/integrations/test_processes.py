"""Programs of others that copy, pickle and fork what they are given: LangChain, LlamaIndex, gunicorn."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset  # type: ignore[import-untyped]
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document as LlamaDocument
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline

from langchain_o1_retriever import O1Embeddings
from langchain_o1_retriever import O1Retriever as LangChainRetriever
from llama_index_o1_retriever import O1Embedding
from llama_index_o1_retriever import O1Retriever as LlamaIndexRetriever
from o1_retriever import Index, Retriever, ThinkingEmbedder
from o1_retriever.errors import NotSendableError
from tests.support import process_work as work
from tests.support.engine import one_batch
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    place = tmp_path_factory.mktemp("model")
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def embedder(folder: Path) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_pretrained(folder, cache=False, settings=work.SHORT)


def lambdas() -> ThinkingEmbedder:
    return ThinkingEmbedder.from_parts(
        lambda queries, n: work.thoughts(queries, n), work.letters, cache=False
    )


@pytest.fixture(params=[pickle.dumps, copy.deepcopy], ids=["pickle", "deepcopy"])
def sent(request: pytest.FixtureRequest) -> Any:
    """From a thing to what arrives."""
    return (
        copy.deepcopy if request.param is copy.deepcopy else lambda thing: pickle.loads(pickle.dumps(thing))
    )


class TestLangChain:
    def test_embeddings_and_a_store_that_holds_them(self, embedder: ThinkingEmbedder, sent: Any) -> None:
        embeddings = O1Embeddings(embedder)
        store = InMemoryVectorStore(embeddings)
        store.add_documents([Document(page_content=text) for text in work.TEXTS])
        retriever = LangChainRetriever(vectorstore=store, k=2)
        assert sent(embeddings).embedder.backend is embedder.backend
        assert np.allclose(sent(embeddings).embed_query(work.QUERY), embeddings.embed_query(work.QUERY))
        found = [each.page_content for each in retriever.invoke(work.QUERY)]
        assert [each.page_content for each in sent(retriever).invoke(work.QUERY)] == found

    def test_a_retriever_over_our_index(self, embedder: ThinkingEmbedder, tmp_path: Path, sent: Any) -> None:
        with Index(tmp_path, embedder) as index:
            index.add([work.Document(id=str(place), text=text) for place, text in enumerate(work.TEXTS)])
            retriever = LangChainRetriever(retriever=Retriever(embedder, index), k=2)
            found = [each.id for each in retriever.invoke(work.QUERY)]
            arrived = sent(retriever)
            assert [each.id for each in arrived.invoke(work.QUERY)] == found
            assert arrived.retriever is not None
            if arrived.retriever.index is not index:
                arrived.retriever.index.close()

    def test_what_cannot_travel_says_so(self, embedder: ThinkingEmbedder) -> None:
        store = InMemoryVectorStore(O1Embeddings(embedder))
        with pytest.raises(NotSendableError, match="The filter of O1Retriever"):
            pickle.dumps(LangChainRetriever(vectorstore=store, filter=lambda document: True))
        with pytest.raises(NotSendableError, match="The function of CallableThinker"):
            pickle.dumps(O1Embeddings(lambdas()))

    async def test_awaited_queries_share_batches(self, embedder: ThinkingEmbedder) -> None:
        embeddings = O1Embeddings(embedder)
        queries = [f"query {number}" for number in range(20)]
        expected = [embeddings.embed_query(query) for query in queries]
        before = embedder.backend.local.model.calls = []  # type: ignore[attr-defined]
        handle = embedder.backend.local.model.register_forward_pre_hook(  # type: ignore[attr-defined]
            lambda _module, _arguments, given: before.append(given["input_ids"].shape[0]), with_kwargs=True
        )
        try:
            async with one_batch(embedder, 20):
                several = [asyncio.ensure_future(embeddings.aembed_query(query)) for query in queries]
            found = await asyncio.gather(*several)
        finally:
            handle.remove()
        assert np.allclose(found, expected, atol=1e-5)
        assert max(before) == 40, "two thoughts about each"


class TestLlamaIndex:
    def test_an_embedding_model(self, embedder: ThinkingEmbedder, sent: Any) -> None:
        model = O1Embedding(embedder, truncate_dim=8)
        arrived = sent(model)
        assert arrived.embedder.backend is embedder.backend
        assert arrived.fingerprint == model.fingerprint
        assert np.allclose(
            arrived.get_query_embedding(work.QUERY), model.get_query_embedding(work.QUERY), atol=1e-6
        )
        assert len(arrived.get_text_embedding("a text")) == 8

    def test_what_cannot_travel_says_so(self) -> None:
        with pytest.raises(NotSendableError, match="The function of CallableThinker"):
            pickle.dumps(O1Embedding(lambdas()))

    @pytest.mark.long
    def test_a_pipeline_of_several_processes(self, folder: Path) -> None:
        model = O1Embedding(folder)
        documents = [LlamaDocument(text=text) for text in work.TEXTS]
        nodes = IngestionPipeline(transformations=[model]).run(documents=documents, num_workers=2)
        expected = model.get_text_embedding_batch(work.TEXTS)
        found = {node.get_content(): node.embedding for node in nodes}
        for text, vector in zip(work.TEXTS, expected, strict=True):
            assert np.allclose(found[text], vector, atol=1e-5)

    async def test_awaited_queries_give_what_calls_give(self, embedder: ThinkingEmbedder) -> None:
        model = O1Embedding(embedder)
        index = VectorStoreIndex.from_documents(
            [LlamaDocument(text=text) for text in work.TEXTS], embed_model=model
        )
        retriever = LlamaIndexRetriever(index, similarity_top_k=2)
        queries = [f"query {number}" for number in range(6)]
        expected = [[each.node_id for each in retriever.retrieve(query)] for query in queries]
        found = await asyncio.gather(*(retriever.aretrieve(query) for query in queries))
        assert [[each.node_id for each in nodes] for nodes in found] == expected
        texts = await model.aget_text_embedding_batch(work.TEXTS)
        assert np.allclose(texts, model.get_text_embedding_batch(work.TEXTS), atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_datasets_map_in_two_processes(
    embedder: ThinkingEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ)  # for which `map` leaves a copy that nobody else knows

    def embed(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"vector": np.asarray(embedder.encode_documents(batch["text"])).tolist()}

    rows = Dataset.from_dict({"text": [*work.TEXTS, *work.TEXTS]})
    mapped = rows.map(embed, batched=True, batch_size=1, num_proc=2)
    assert np.allclose(mapped["vector"], np.asarray(embedder.encode_documents(rows["text"])), atol=1e-5)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_gunicorn_with_a_model_that_was_loaded_before_the_fork(root: Path) -> None:
    pytest.importorskip("gunicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}"]
    server = subprocess.Popen(
        [sys.executable, *command, "--timeout", "200", "tests.support.gunicorn_app:application"],
        cwd=root,
        env={**os.environ, "MODEL": str(root / "models" / "o1-embedder-22m")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        say = answer(f"http://127.0.0.1:{port}/", server)
    finally:
        server.terminate()
        server.communicate(timeout=200)
    assert say["process"] != server.pid
    assert np.allclose(say["vector"], say["expected"], atol=1e-4)


def answer(url: str, server: subprocess.Popen[str]) -> Any:
    """What the server answers, once it has started."""
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=200) as reply:
                return json.loads(reply.read())
        except ConnectionError:
            time.sleep(0.2)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(0.2)
    pytest.fail("the server did not start")
