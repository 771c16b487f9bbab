"""What the tests of the LangChain adapter share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from langchain_o1_retriever import THOUGHTS_EVENT, O1Embeddings, O1Retriever
from o1_retriever import Retriever
from tests.support.adapters import METADATA, TEXTS, small_embedder


def in_memory(embeddings: O1Embeddings) -> InMemoryVectorStore:
    """LangChain's own store with the four documents."""
    store = InMemoryVectorStore(embeddings)
    store.add_documents(
        [Document(id=name, page_content=text, metadata=METADATA[name]) for name, text in TEXTS.items()]
    )
    return store


def over(ours: Retriever | None) -> Callable[..., O1Retriever]:
    """Makes retrievers over our index, or over LangChain's own store with the same documents."""
    if ours is not None:
        return lambda **options: O1Retriever(retriever=ours, **options)
    store = in_memory(O1Embeddings(small_embedder()))
    return lambda **options: O1Retriever(vectorstore=store, **options)


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


class TextOnly(VectorStore):
    """A store that searches by text alone."""

    def __init__(self, embeddings: Any) -> None:
        self._embeddings = embeddings

    @property
    def embeddings(self) -> Any:
        return self._embeddings

    @classmethod
    def from_texts(cls, texts: Any, embedding: Any, metadatas: Any = None, **_: Any) -> TextOnly:
        return cls(embedding)

    def similarity_search(self, query: str, k: int = 4, **_: Any) -> list[Document]:
        return [Document(query)] * k


class ByVector(TextOnly):
    """A store that searches by vector, without scores, and natively async."""

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **_: Any) -> list[Document]:
        return [Document(str(len(embedding)))] * k

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **_: Any
    ) -> list[Document]:
        return [Document("async")] * k


class Heard(BaseCallbackHandler):
    """What callbacks are told of the thoughts."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        assert name == THOUGHTS_EVENT
        self.told.append(data)
