"""What LangChain's own suites do not ask: thoughts, scores, filters, settings, threads."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_o1_retriever import O1Embeddings, O1Retriever
from o1_retriever import Retriever, ThoughtSettings
from o1_retriever.errors import InputError, SettingsError
from tests.support.adapters import (
    FAST,
    METADATA,
    QUERY,
    TEXTS,
    THOUGHT,
    Mind,
    bag_of_words,
    beside_the_loop,
    small_embedder,
)
from tests.support.langchain import Heard, ids, in_memory, over


@pytest.fixture
def both(ours: Retriever | None) -> Any:
    return over(ours)


def test_queries_are_thought_about_and_documents_are_not() -> None:
    mind = Mind()
    embeddings = O1Embeddings(small_embedder(mind))
    embeddings.embed_documents(list(TEXTS.values()))
    assert mind.asked == []
    vector = embeddings.embed_query(QUERY)
    assert mind.asked == [QUERY]
    expected = bag_of_words([f"{QUERY} {THOUGHT}"])[0]
    assert np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
    assert [thought.text for thought in embeddings.think(QUERY).thoughts] == [THOUGHT, THOUGHT]


async def test_async_embeddings_are_the_same_and_leave_the_loop_alone() -> None:
    mind = Mind()
    embeddings = O1Embeddings(small_embedder(mind))
    vector = await beside_the_loop(mind, embeddings.aembed_query(QUERY))
    assert vector == embeddings.embed_query(QUERY)
    assert await embeddings.aembed_documents(["a", "b"]) == embeddings.embed_documents(["a", "b"])


def test_settings_and_dimension_are_the_callers() -> None:
    embeddings = O1Embeddings(small_embedder(), settings=ThoughtSettings(n_thoughts=3), truncate_dim=8)
    assert len(embeddings.think(QUERY).thoughts) == 3
    assert len(embeddings.embed_query(QUERY)) == len(embeddings.embed_documents(["a"])[0]) == 8


def test_texts_that_cannot_be_embedded_are_refused() -> None:
    embeddings = O1Embeddings(small_embedder())
    with pytest.raises(InputError, match="query is empty"):
        embeddings.embed_query("")
    with pytest.raises(InputError, match="document 1"):
        embeddings.embed_documents(["a", " "])


def test_thoughts_decide_and_are_in_the_metadata_on_request(both: Any) -> None:
    found = both(k=2).invoke(QUERY)
    assert ids(found) == ["vapour", "mirror"]
    assert ids(both(k=1, settings=FAST).invoke(QUERY)) == ["mirror"]
    first = found[0]
    assert first.page_content == TEXTS["vapour"]
    assert first.metadata.items() >= METADATA["vapour"].items()
    assert "thoughts" not in first.metadata
    shown = both(k=2, thoughts_in_metadata=True).invoke(QUERY)
    assert [document.metadata["thoughts"] for document in shown] == [f"{THOUGHT}\n{THOUGHT}"] * 2
    plain = both(k=2, scores_in_metadata=False).invoke(QUERY)
    assert [dict(document.metadata) for document in plain] == [METADATA["vapour"], METADATA["mirror"]]


def test_what_a_search_adds_is_flat_and_no_part_of_the_document(both: Any) -> None:
    retriever = both(k=4, thoughts_in_metadata=True)
    first, second = retriever.invoke(QUERY), retriever.invoke("Cold glass")
    added = {key for document in first for key in document.metadata} - {"topic", "page"}
    assert {"relevance_score", "thoughts"} <= added <= {"relevance_score", "thoughts", "cosine"}
    for document in first:
        assert all(isinstance(value, str | int | float) for value in document.metadata.values())
        [again] = [each for each in second if each.id == document.id]
        assert document.metadata["relevance_score"] != again.metadata["relevance_score"]
        assert document == again
        plain = Document(id=document.id, page_content=document.page_content, metadata=METADATA[document.id])
        assert document == plain
        assert plain == document
        assert document != plain.model_copy(update={"metadata": {"page": 9}})
    assert first[0] != first[1]


def test_scores_are_cosines(both: Any) -> None:
    found = both(k=4).invoke(QUERY)
    rows = bag_of_words([f"{QUERY} {THOUGHT}", *(document.page_content for document in found)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = [document.metadata["relevance_score"] for document in found]
    assert np.allclose(scores, rows[1:] @ rows[0], atol=1e-5)
    assert scores == sorted(scores, reverse=True)


def test_threshold_k_and_settings_in_the_constructor_and_in_a_call(both: Any) -> None:
    scores = [document.metadata["relevance_score"] for document in both(k=4).invoke(QUERY)]
    between = (scores[0] + scores[1]) / 2
    assert ids(both(k=4, score_threshold=between).invoke(QUERY)) == ["vapour"]
    retriever = both(k=1)
    assert ids(retriever.invoke(QUERY, k=4, score_threshold=between)) == ["vapour"]
    assert len(retriever.invoke(QUERY, k=3)) == 3
    assert ids(retriever.invoke(QUERY, settings=FAST)) == ["mirror"]
    with pytest.raises(SettingsError, match="k is 0"):
        retriever.invoke(QUERY, k=0)
    with pytest.raises(SettingsError, match="score_threshold is 'high'"):
        retriever.invoke(QUERY, score_threshold="high")


def test_metadata_filters(small_retriever: Retriever, store: InMemoryVectorStore) -> None:
    over_index = O1Retriever(retriever=small_retriever, filter={"topic": "home"})
    assert set(ids(over_index.invoke(QUERY))) == {"mirror", "bread"}
    assert ids(over_index.invoke(QUERY, filter={"page": {"$gte": 4}})) == ["moon"]
    over_store = O1Retriever(vectorstore=store, filter=lambda each: each.metadata["topic"] == "home")
    assert set(ids(over_store.invoke(QUERY))) == {"mirror", "bread"}


async def test_async_finds_the_same_and_leaves_the_loop_alone(small_retriever: Retriever, both: Any) -> None:
    assert await both().ainvoke(QUERY) == both().invoke(QUERY)
    mind = Mind()
    slow = small_embedder(mind)
    store = in_memory(O1Embeddings(slow))
    for retriever in (
        O1Retriever(retriever=Retriever(slow, small_retriever.index)),
        O1Retriever(vectorstore=store),
    ):
        found = await beside_the_loop(mind, retriever.ainvoke(QUERY))
        assert found[0].id == "vapour"
    several = await O1Retriever(vectorstore=store).abatch([QUERY, "dough"])
    assert [found[0].id for found in several] == ["vapour", "bread"]


def test_a_stores_documents_are_not_changed(store: InMemoryVectorStore) -> None:
    O1Retriever(vectorstore=store).invoke(QUERY)
    assert store.get_by_ids(["vapour"])[0].metadata == METADATA["vapour"]


def test_a_thought_that_could_not_be_had_is_said_so(both: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        heard = Heard()
        found = both(k=1, thoughts_in_metadata=True).invoke("unthinkable moon", {"callbacks": [heard]})
    assert ids(found) == ["moon"]
    assert found[0].metadata["thoughts"] == ""
    [told] = heard.told
    assert {record["finish"] for record in told["thoughts"]} == {"failed"}
    assert told["thoughts"][0]["error"]
    assert "No thought could be written" in caplog.text


def test_what_cannot_work_is_refused_when_it_is_made(
    small_retriever: Retriever, store: InMemoryVectorStore
) -> None:
    with pytest.raises(ValueError, match="both or none"):
        O1Retriever()
    with pytest.raises(ValueError, match="both or none"):
        O1Retriever(retriever=small_retriever, vectorstore=store)
    with pytest.raises(ValueError, match="brings its own embedder"):
        O1Retriever(retriever=small_retriever, embeddings=O1Embeddings(small_embedder()))
    other = InMemoryVectorStore(DeterministicFakeEmbedding(size=256))
    with pytest.raises(ValueError, match="DeterministicFakeEmbedding; expected O1Embeddings"):
        O1Retriever(vectorstore=other)
    assert O1Retriever(vectorstore=other, embeddings=small_embedder()).invoke(QUERY) == []
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        O1Retriever(vectorstore=store, k=0)
