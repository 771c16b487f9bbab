"""LangChain's own test suites over our classes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")
pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_o1_retriever import O1Embeddings, O1Retriever
from o1_retriever import Retriever
from tests.support.adapters import QUERY, TEXTS, small_embedder


class TestO1EmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return O1Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embedder": small_embedder()}


class TestO1EmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return O1Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"embedder": small_embedder()}


class TestO1RetrieverOverOurIndex(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _over(self, small_retriever: Retriever) -> None:
        self.over = small_retriever

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return O1Retriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.over}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestO1RetrieverOverAStore(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return O1Retriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        store = InMemoryVectorStore.from_texts(list(TEXTS.values()), O1Embeddings(small_embedder()))
        return {"vectorstore": store}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestChromaWithO1Embeddings(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Generator[VectorStore, None, None]:
        chroma = pytest.importorskip("langchain_chroma", reason="needs langchain-chroma")
        store = chroma.Chroma(embedding_function=self.get_embeddings())
        try:
            yield store
        finally:
            store.delete_collection()

    @staticmethod
    def get_embeddings() -> Embeddings:
        return O1Embeddings(small_embedder())
