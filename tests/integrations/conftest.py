"""Our own index of four documents, as the adapters find it."""

from __future__ import annotations

from typing import Any

import pytest

from o1_retriever import Index, Retriever
from o1_retriever.documents import Document
from tests.support.adapters import METADATA, TEXTS, many_documents, small_embedder


@pytest.fixture(scope="session")
def small_index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    index = Index(tmp_path_factory.mktemp("index"), small_embedder())
    index.add([Document(id=name, text=text, metadata=METADATA[name]) for name, text in TEXTS.items()])
    return index


@pytest.fixture(scope="session")
def many_index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    index = Index(tmp_path_factory.mktemp("many"), small_embedder())
    index.add(many_documents())
    return index


@pytest.fixture
def small_retriever(small_index: Index) -> Retriever:
    return Retriever(small_embedder(), small_index)


@pytest.fixture
def store() -> Any:
    """A vector store of LangChain's with the same documents."""
    from langchain_o1_retriever import O1Embeddings
    from tests.support.langchain import in_memory

    return in_memory(O1Embeddings(small_embedder()))


@pytest.fixture(params=["our index", "the framework's"])
def ours(request: pytest.FixtureRequest, small_retriever: Retriever) -> Retriever | None:
    """Our own retriever, and then None: the test is to run over the framework's own vectors as well."""
    return small_retriever if request.param == "our index" else None
