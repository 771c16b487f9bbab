"""Pooling by the best thought, adaptive thinking and BM25 through the LangChain retriever."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")

from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_o1_retriever import THOUGHTS, O1Embeddings, O1Retriever
from o1_retriever import Index, Retriever, ThoughtSettings
from o1_retriever.errors import InputError, SettingsError
from tests.support.adapters import (
    ALWAYS_WORTH_IT,
    BREAD,
    NEVER_WORTH_IT,
    QUERY,
    TEXTS,
    THOUGHT,
    Mind,
    best_cosines,
    calibrated,
    many_documents,
    of_two_minds,
    small_embedder,
)
from tests.support.langchain import ByVector, Heard, ids, in_memory, over


@pytest.fixture
def both(ours: Retriever | None) -> Any:
    return over(ours)


@pytest.fixture(params=["our index", "a store"])
def many(request: pytest.FixtureRequest, many_index: Index) -> Any:
    """Makes retrievers over enough documents for the gate, and the mind that thinks."""
    mind = Mind()
    embedder = small_embedder(mind)
    if request.param == "our index":
        return lambda **options: O1Retriever(retriever=Retriever(embedder, many_index), **options), mind
    store = InMemoryVectorStore(O1Embeddings(embedder))
    store.add_documents([Document(id=each.id, page_content=each.text) for each in many_documents()])
    return lambda **options: O1Retriever(vectorstore=store, **options), mind


async def test_the_best_thought_counts(small_index: Index) -> None:
    embedder = of_two_minds()
    for retriever in (
        O1Retriever(retriever=Retriever(embedder, small_index), pooling="best"),
        O1Retriever(vectorstore=in_memory(O1Embeddings(embedder)), pooling="best"),
    ):
        found = retriever.invoke(QUERY)
        assert ids(await retriever.ainvoke(QUERY)) == ids(found)
        scores = [document.metadata["relevance_score"] for document in found]
        assert scores == pytest.approx(best_cosines([each.page_content for each in found]), abs=1e-5)
        assert scores == sorted(scores, reverse=True)
        assert sorted(map(str, ids(found))) == sorted(TEXTS)
        mean = retriever.invoke(QUERY, pooling="mean")
        assert mean[0].metadata["relevance_score"] != pytest.approx(scores[0], abs=1e-3)
        assert len(retriever.invoke(QUERY, k=2)) == 2
        assert len(retriever.invoke(QUERY, score_threshold=scores[1])) == 2


async def test_thinking_is_decided_by_the_fast_ranking(many: Any) -> None:
    make, mind = many
    retriever = make(thinking="auto", k=1, search_kwargs={"gate": NEVER_WORTH_IT})
    for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY)):
        assert ids(found) == ["mirror"]
    assert mind.asked == []
    heard = Heard()
    for found in (
        retriever.invoke(QUERY, {"callbacks": [heard]}, gate=ALWAYS_WORTH_IT),
        await retriever.ainvoke(QUERY, gate=ALWAYS_WORTH_IT),
    ):
        assert ids(found) == ["vapour"]
    assert mind.asked == [QUERY, QUERY]
    [told] = heard.told
    assert told["thoughts"][0]["text"] == THOUGHT
    assert told["decision"]["think"] is True
    assert "leaves room" in told["decision"]["reason"]


def test_thinking_always_and_never(both: Any) -> None:
    assert ids(both(k=1, thinking="never").invoke(QUERY)) == ["mirror"]
    assert ids(both(k=1, thinking="never").invoke(QUERY, thinking="always")) == ["vapour"]
    with pytest.raises(SettingsError, match="thinking is 'sometimes'"):
        both().invoke(QUERY, thinking="sometimes")
    with pytest.raises(SettingsError, match="pooling is 'median'"):
        both().invoke(QUERY, pooling="median")


def test_our_index_is_fused_with_bm25_and_a_store_cannot_be(many_index: Index) -> None:
    hybrid = O1Retriever(retriever=Retriever(small_embedder(), many_index), hybrid=True, k=3)
    store = O1Retriever(vectorstore=in_memory(O1Embeddings(small_embedder())), hybrid=True)
    with pytest.raises(SettingsError, match="no ranking by words"):
        store.invoke(QUERY)
    pytest.importorskip("bm25s", reason="needs the extra `index`")
    found = hybrid.invoke(QUERY)
    assert ids(found)[:2] == ["vapour", "mirror"]
    fused = [document.metadata["fused_score"] for document in found]
    assert fused == sorted(fused, reverse=True)
    scale = [document.metadata["relevance_score"] for document in found]
    assert scale == pytest.approx(fused, abs=1e-6)
    assert len(hybrid.invoke(QUERY, score_threshold=0.1)) == 3, "a usual cut-off keeps what was found"
    assert 0 < found[0].metadata["cosine"] < scale[0]


@pytest.mark.parametrize("option", [{"pooling": "best"}, {"thinking": "auto"}])
async def test_a_store_without_scores_says_so(option: dict[str, Any]) -> None:
    retriever = O1Retriever(vectorstore=ByVector(O1Embeddings(of_two_minds())), **option)
    with pytest.raises(SettingsError, match="gives no scores for a search by vector"):
        retriever.invoke(QUERY)
    with pytest.raises(SettingsError, match="gives no scores for a search by vector"):
        await retriever.ainvoke(QUERY)


def test_an_explanation_over_our_index(many_index):
    retriever = O1Retriever(retriever=Retriever(small_embedder(), many_index), k=2, pooling="best")
    found = retriever.explain(QUERY, k=3)
    assert [hit.id for hit in found.result] == [each.id for each in retriever.invoke(QUERY, k=3)]
    assert found.result.how.pooling == "best"
    assert len(found.without) == 3
    store = O1Retriever(vectorstore=in_memory(O1Embeddings(small_embedder())))
    with pytest.raises(SettingsError, match="InMemoryVectorStore; explain needs our own index"):
        store.explain(QUERY)


async def test_thoughts_of_the_caller_are_used_and_none_is_written(many: Any) -> None:
    make, mind = many
    config: RunnableConfig = {"metadata": {THOUGHTS: [BREAD]}}
    for options in ({}, {"pooling": "best"}, {"thinking": "auto", "gate": ALWAYS_WORTH_IT}):
        retriever = make(k=1, thoughts_in_metadata=True, **options)
        chain = RunnableLambda(lambda query: {"query": query}) | RunnableLambda(
            lambda row, found=retriever: found.invoke(row["query"])
        )
        for found in (
            retriever.invoke(QUERY, thoughts=[BREAD]),
            await retriever.ainvoke(QUERY, thoughts=[BREAD]),
            retriever.invoke(QUERY, config),
            chain.invoke(QUERY, config),
        ):
            assert ids(found) == ["bread"]
            assert found[0].metadata["thoughts"] == BREAD
    assert ids(make(k=1).invoke(QUERY, config, thoughts=[THOUGHT])) == ["vapour"]
    full, weighed = (
        make(k=1, settings=ThoughtSettings(**each)) for each in ({"doubt": 3}, {"query_weight": 3})
    )
    scores = [each.invoke(QUERY, config)[0].metadata["relevance_score"] for each in (full, weighed)]
    assert scores[0] == make(k=1).invoke(QUERY, config)[0].metadata["relevance_score"] != scores[1]
    assert mind.asked == []
    assert ids(make(k=1).invoke(QUERY)) == ["vapour"]
    assert mind.asked == [QUERY]


def test_an_explanation_reads_them_too(many_index: Index) -> None:
    retriever = O1Retriever(retriever=Retriever(small_embedder(), many_index), k=1)
    found = retriever.explain(QUERY, thoughts=[BREAD])
    assert ([hit.id for hit in found.result], found.result.thoughts[0].finish) == (["bread"], "given")
    with pytest.raises(InputError, match="The thoughts are one str; expected a list"):
        retriever.invoke(QUERY, thoughts=BREAD)


async def test_what_is_not_likely_relevant_is_left_out(small_index: Index) -> None:
    retriever = Retriever(of_two_minds(), small_index)
    ours = O1Retriever(retriever=retriever, min_relevance=0.5)
    with pytest.raises(SettingsError, match="was not calibrated"):
        ours.invoke(QUERY)
    with calibrated(small_index):
        found = ours.invoke(QUERY)
        assert 0 < len(found) < len(TEXTS)
        assert ids(await ours.ainvoke(QUERY)) == ids(found)
        assert all(document.metadata["probability"] >= 0.5 for document in found)
        assert ours.invoke(QUERY, min_relevance=1.0) == []
        assert ours.invoke(QUERY, min_relevance=1.0, search_type="mmr") == []
    store = O1Retriever(vectorstore=in_memory(O1Embeddings(of_two_minds())), min_relevance=0.5)
    with pytest.raises(SettingsError, match="only our own index is calibrated"):
        store.invoke(QUERY)
