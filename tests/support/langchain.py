"""What the tests of the LangChain adapter share."""

from __future__ import annotations

from collections.abc import Callable

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_o1_retriever import O1Embeddings, O1Retriever
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
