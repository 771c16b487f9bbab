"""The retriever over stores that other people wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")


from langchain_o1_retriever import O1Embeddings, O1Retriever
from o1_retriever.errors import SettingsError
from tests.support.adapters import METADATA, QUERY, TEXTS, small_embedder
from tests.support.langchain import ByVector, TextOnly, ids, in_memory


def test_over_chroma_with_filters_scores_and_another_dimension(tmp_path: Path) -> None:
    chroma = pytest.importorskip("langchain_chroma", reason="needs langchain-chroma")
    cosine = {"hnsw": {"space": "cosine"}}
    embeddings = O1Embeddings(small_embedder())
    store = chroma.Chroma(
        embedding_function=embeddings, collection_configuration=cosine, persist_directory=str(tmp_path)
    )
    store.add_texts(list(TEXTS.values()), metadatas=list(METADATA.values()), ids=list(TEXTS))
    retriever = O1Retriever(vectorstore=store, k=2)
    found = retriever.invoke(QUERY)
    memory = O1Retriever(vectorstore=in_memory(embeddings), k=2).invoke(QUERY)
    assert ids(found) == ids(memory)
    scores = [[each.metadata["relevance_score"] for each in each_found] for each_found in (found, memory)]
    assert np.allclose(scores[0], scores[1], atol=1e-5)
    assert set(ids(retriever.invoke(QUERY, filter={"topic": "home"}))) == {"mirror", "bread"}
    assert ids(retriever.invoke(QUERY, where_document={"$contains": "Tides"})) == ["moon"]
    own = O1Retriever(vectorstore=store, relevance_score_fn=lambda distance: -distance)
    assert own.invoke(QUERY)[0].metadata["relevance_score"] == pytest.approx(scores[0][0] - 1, abs=1e-5)
    short = O1Retriever(vectorstore=store, embeddings=O1Embeddings(small_embedder(), truncate_dim=8))
    with pytest.raises(Exception, match=r"dimension of 256, got 8"):
        short.invoke(QUERY)


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_scores_over_chroma_are_on_one_scale_whatever_its_space(space: str, tmp_path: Path) -> None:
    chroma = pytest.importorskip("langchain_chroma", reason="needs langchain-chroma")
    embeddings = O1Embeddings(small_embedder())
    store = chroma.Chroma(
        embedding_function=embeddings,
        collection_configuration={"hnsw": {"space": space}},
        persist_directory=str(tmp_path),
    )
    store.add_texts(list(TEXTS.values()), ids=list(TEXTS))
    memory = O1Retriever(vectorstore=in_memory(embeddings)).invoke(QUERY)
    expected = [each.metadata["relevance_score"] for each in memory]
    found = O1Retriever(vectorstore=store).invoke(QUERY)
    assert [each.metadata["relevance_score"] for each in found] == pytest.approx(expected, abs=1e-5)


async def test_stores_with_less_to_offer() -> None:
    embeddings = O1Embeddings(small_embedder())
    plain = O1Retriever(vectorstore=ByVector(embeddings), k=2)
    found = plain.invoke(QUERY)
    assert [each.page_content for each in found] == ["256", "256"]
    assert "relevance_score" not in found[0].metadata
    assert plain.invoke(QUERY) == found
    assert [each.page_content for each in await plain.ainvoke(QUERY)] == ["async", "async"]
    with pytest.raises(SettingsError, match="gives no scores"):
        plain.invoke(QUERY, score_threshold=0.5)
    with pytest.raises(SettingsError, match="TextOnly cannot search by vector"):
        O1Retriever(vectorstore=TextOnly(embeddings)).invoke(QUERY)


async def test_a_store_of_another_dimension_says_what_it_was_searched_with() -> None:
    store = in_memory(O1Embeddings(small_embedder()))
    short = O1Retriever(vectorstore=store, embeddings=O1Embeddings(small_embedder(), truncate_dim=8))
    for found in (lambda: short.invoke(QUERY), lambda: asyncio.run(short.ainvoke(QUERY))):
        with pytest.raises(ValueError, match="must be the same") as raised:
            await asyncio.to_thread(found)
        assert "InMemoryVectorStore was searched with a vector of 8 numbers" in raised.value.__notes__[0]
