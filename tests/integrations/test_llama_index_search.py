"""Pooling by the best thought, adaptive thinking and BM25 through the LlamaIndex retriever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra `llama-index`")

from llama_index.core import VectorStoreIndex
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import QueryBundle, TextNode

from llama_index_o1_retriever import O1Embedding, O1Retriever
from o1_retriever import Index, Retriever, ThoughtSettings
from o1_retriever.errors import SettingsError
from tests.support.adapters import (
    ALWAYS_WORTH_IT,
    BREAD,
    NEVER_WORTH_IT,
    OTHER,
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
from tests.support.llama_index import Events, hearing, ids, nodes, over, vector_index


@pytest.fixture
def events() -> Iterator[Events]:
    yield from hearing()


@pytest.fixture
def both(ours: Retriever | None) -> Any:
    return over(ours)


@pytest.fixture(params=["our index", "a VectorStoreIndex"])
def many(request: pytest.FixtureRequest, many_index: Index) -> Any:
    """Makes retrievers over enough nodes for the gate, and the mind that thinks."""
    mind = Mind()
    embedder = small_embedder(mind)
    if request.param == "our index":
        return lambda **options: O1Retriever(Retriever(embedder, many_index), **options), mind
    texts = [TextNode(id_=each.id, text=each.text) for each in many_documents()]
    index = VectorStoreIndex(texts, embed_model=O1Embedding(embedder))
    return lambda **options: O1Retriever(index, **options), mind


async def test_the_best_thought_counts(small_index: Index) -> None:
    embedder = of_two_minds()
    index = VectorStoreIndex(nodes(), embed_model=O1Embedding(embedder))
    for source in (Retriever(embedder, small_index), index):
        retriever = O1Retriever(source, similarity_top_k=4, pooling="best")
        found = retriever.retrieve(QUERY)
        assert ids(await retriever.aretrieve(QUERY)) == ids(found)
        scores = [each.score for each in found]
        assert scores == pytest.approx(best_cosines([each.node.get_content() for each in found]), abs=1e-5)
        assert sorted(ids(found)) == sorted(TEXTS)
        assert len(O1Retriever(source, similarity_top_k=2, pooling="best").retrieve(QUERY)) == 2


def test_the_best_of_several_strings_counts(both: Any) -> None:
    retriever = both(similarity_top_k=2, pooling="best", thinking="never")
    several = QueryBundle("", custom_embedding_strs=[f"{QUERY} {THOUGHT}", f"{QUERY} {OTHER}"])
    found = retriever.retrieve(several)
    assert [each.score for each in found] == pytest.approx(
        best_cosines([each.node.get_content() for each in found]), abs=1e-5
    )


async def test_custom_strings_are_thoughts_about_the_query(many: Any, events: Events) -> None:
    make, mind = many
    given = QueryBundle(QUERY, custom_embedding_strs=[BREAD, QUERY])  # as `HyDEQueryTransform` makes it
    for options in ({}, {"pooling": "best"}, {"thinking": "auto", "gate": ALWAYS_WORTH_IT}):
        found = make(similarity_top_k=1, **options).retrieve(given)
        assert ids(found) == ids(await make(similarity_top_k=1, **options).aretrieve(given)) == ["bread"]
    full, weighed, plain = (
        make(similarity_top_k=1, settings=settings).retrieve(given)[0].score
        for settings in (ThoughtSettings(doubt=3), ThoughtSettings(query_weight=3), None)
    )
    assert full == plain != weighed
    assert mind.asked == []
    thoughts = events.named("O1ThoughtsEvent")[0].thoughts
    assert [(each["text"], each["finish"], each["tokens"]) for each in thoughts] == [(BREAD, "given", 0)]
    assert ids(make(similarity_top_k=1).retrieve(QueryBundle(QUERY, custom_embedding_strs=[QUERY]))) == [
        "vapour"
    ]
    assert mind.asked == [QUERY]


def test_an_explanation_and_a_fusion_with_custom_strings(many_index: Index) -> None:
    pytest.importorskip("bm25s", reason="needs the extra `index`")
    retriever = O1Retriever(Retriever(small_embedder(), many_index), hybrid=True, similarity_top_k=1)
    given = QueryBundle(QUERY, custom_embedding_strs=[BREAD])
    assert ids(retriever.retrieve(given)) == ["bread"]
    assert [each.text for each in retriever.explain(given).result.thoughts] == [BREAD]
    with pytest.raises(SettingsError, match="several queries; expected a query_str"):
        retriever.explain(QueryBundle("", custom_embedding_strs=["a", "b"]))


async def test_thinking_is_decided_by_the_fast_ranking(many: Any, events: Events) -> None:
    make, mind = many
    clear = make(thinking="auto", similarity_top_k=1, gate=NEVER_WORTH_IT)
    assert ids(clear.retrieve(QUERY)) == ids(await clear.aretrieve(QUERY)) == ["mirror"]
    assert mind.asked == []
    assert [event.thoughts for event in events.named("O1ThoughtsEvent")] == [[], []]
    unclear = make(thinking="auto", similarity_top_k=1, gate=ALWAYS_WORTH_IT)
    assert ids(unclear.retrieve(QUERY)) == ids(await unclear.aretrieve(QUERY)) == ["vapour"]
    assert mind.asked == [QUERY, QUERY]
    told = events.named("O1ThoughtsEvent")[2:]
    assert [event.thoughts[0]["text"] for event in told] == [THOUGHT, THOUGHT]
    assert "leaves room" in told[0].decision["reason"]


def test_thinking_always_and_never(both: Any) -> None:
    assert ids(both(similarity_top_k=1, thinking="never").retrieve(QUERY)) == ["mirror"]
    assert ids(both(similarity_top_k=1, thinking="always").retrieve(QUERY)) == ["vapour"]
    with pytest.raises(SettingsError, match="thinking is 'sometimes'"):
        both(thinking="sometimes")


def test_our_index_is_fused_with_bm25_and_a_store_cannot_be(many_index: Index, events: Events) -> None:
    with pytest.raises(SettingsError, match="no ranking by words"):
        O1Retriever(vector_index(), hybrid=True)
    with pytest.raises(SettingsError, match="expected 'default' with pooling='best'"):
        O1Retriever(vector_index(), pooling="best", vector_store_query_mode="mmr")
    hybrid = O1Retriever(Retriever(small_embedder(), many_index), hybrid=True, similarity_top_k=3)
    several = QueryBundle("", custom_embedding_strs=["a", "b"])
    with pytest.raises(SettingsError, match="brings several queries"):
        hybrid.retrieve(several)
    pytest.importorskip("bm25s", reason="needs the extra `index`")
    found = hybrid.retrieve(QUERY)
    assert ids(found)[:2] == ["vapour", "mirror"]
    assert 0.5 < found[0].score <= 1
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    [told] = events.named("O1ThoughtsEvent")
    assert [hit["id"] for hit in told.hits] == ids(found)
    assert told.hits[0]["fused_score"] == pytest.approx(found[0].score, abs=1e-6)
    assert [hit["relevance"] for hit in told.hits] == [each.score for each in found]
    usual = SimilarityPostprocessor(similarity_cutoff=0.1)
    assert usual.postprocess_nodes(found) == found
    assert ids(hybrid.retrieve(QUERY))[0] == ids(usual.postprocess_nodes(hybrid.retrieve(QUERY)))[0]


async def test_a_store_of_another_dimension_says_what_it_was_searched_with() -> None:
    short = O1Retriever(vector_index(), embed_model=O1Embedding(small_embedder(), truncate_dim=8))
    with pytest.raises(ValueError, match="not aligned") as raised:
        short.retrieve(QUERY)
    assert "SimpleVectorStore was searched with a vector of 8 numbers" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match="not aligned") as raised:
        await short.aretrieve(QUERY)
    assert "SimpleVectorStore was searched with a vector of 8 numbers" in raised.value.__notes__[0]


def test_an_explanation_over_our_index(many_index):
    retriever = O1Retriever(Retriever(small_embedder(), many_index), similarity_top_k=3, pooling="best")
    found = retriever.explain(QUERY)
    assert [hit.id for hit in found.result] == [each.node.node_id for each in retriever.retrieve(QUERY)]
    assert found.result.how.pooling == "best"
    with pytest.raises(SettingsError, match="explain needs our own index"):
        O1Retriever(vector_index()).explain(QUERY)


async def test_what_is_not_likely_relevant_is_left_out(small_index: Index, events: Events) -> None:
    retriever = Retriever(of_two_minds(), small_index)
    ours = O1Retriever(retriever, min_relevance=0.5)
    with pytest.raises(SettingsError, match="was not calibrated"):
        ours.retrieve(QUERY)
    with calibrated(small_index):
        found = ours.retrieve(QUERY)
        assert 0 < len(found) < len(TEXTS)
        assert ids(await ours.aretrieve(QUERY)) == ids(found)
        assert O1Retriever(retriever, min_relevance=1.0).retrieve(QUERY) == []
        for bundle in (
            QueryBundle("", custom_embedding_strs=["a", "b"]),
            QueryBundle(QUERY, embedding=[1.0]),
        ):
            with pytest.raises(SettingsError, match="min_relevance"):
                ours.retrieve(bundle)
    with pytest.raises(SettingsError, match="only our own index is calibrated"):
        O1Retriever(vector_index(), min_relevance=0.5)
