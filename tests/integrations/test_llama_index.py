"""The LlamaIndex adapter in LlamaIndex's own machinery."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="needs the extra `llama-index`")

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_o1_retriever import O1Embedding, O1Retriever, O1ThoughtsEvent
from o1_retriever import Retriever, ThoughtSettings
from o1_retriever.errors import InputError, SettingsError
from o1_retriever.index.folder import sync_folder
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
from tests.support.llama_index import Events, hearing, ids, nodes, over, vector_index


@pytest.fixture
def both(ours: Retriever | None) -> Any:
    return over(ours)


@pytest.fixture
def events() -> Iterator[Events]:
    yield from hearing()


def test_classes_are_where_llama_index_looks_for_them() -> None:
    assert BaseEmbedding in O1Embedding.__mro__
    assert BaseRetriever in O1Retriever.__mro__
    assert O1Embedding.class_name() == "O1Embedding"


async def test_queries_are_thought_about_and_texts_are_not() -> None:
    mind = Mind()
    model = O1Embedding(small_embedder(mind))
    texts = list(TEXTS.values())
    vectors = model.get_text_embedding_batch(texts)
    assert vectors == await model.aget_text_embedding_batch(texts)
    assert vectors[0] == pytest.approx(await model.aget_text_embedding(texts[0]))
    assert mind.asked == []
    vector = model.get_query_embedding(QUERY)
    assert mind.asked == [QUERY]
    expected = bag_of_words([f"{QUERY} {THOUGHT}"])[0]
    assert np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
    assert await model.aget_query_embedding(QUERY) == vector
    mean = model.get_agg_embedding_from_queries([QUERY, "dough"])
    assert mind.asked[-2:] == [QUERY, "dough"]
    assert mean == pytest.approx(await model.aget_agg_embedding_from_queries([QUERY, "dough"]))
    assert np.allclose(mean, (np.array(vector) + model.get_query_embedding("dough")) / 2, atol=1e-6)


async def test_async_methods_leave_the_loop_alone(small_retriever: Retriever) -> None:
    mind = Mind()
    slow = small_embedder(mind)
    model = O1Embedding(slow)
    await beside_the_loop(mind, model.aget_query_embedding(QUERY))
    for source in (Retriever(slow, small_retriever.index), VectorStoreIndex(nodes(), embed_model=model)):
        found = await beside_the_loop(mind, O1Retriever(source).aretrieve(QUERY))
        assert ids(found)[0] == "vapour"


def test_what_the_embedding_refuses_and_shows() -> None:
    embedder = small_embedder()
    with pytest.raises(SettingsError, match="cannot tell a query from a text"):
        O1Embedding(embedder, embeddings_cache=SimpleKVStore())
    with pytest.raises(InputError, match="query 0 is empty"):
        O1Embedding(embedder).get_query_embedding("")
    model = O1Embedding(embedder, truncate_dim=8, settings=ThoughtSettings(n_thoughts=3))
    assert len(model.get_query_embedding(QUERY)) == len(model.get_text_embedding("a")) == 8
    assert model.to_payload()["fingerprint"] == embedder.space.fingerprint
    assert len(model.think([QUERY])[0].thoughts) == 3
    assert model.model_dump()["fingerprint"] == embedder.space.fingerprint


def test_thoughts_decide_and_are_told_to_the_handlers(both: Any, events: Events) -> None:
    found = both(similarity_top_k=2).retrieve(QUERY)
    assert ids(found) == ["vapour", "mirror"]
    [event] = events.named("O1ThoughtsEvent")
    assert isinstance(event, O1ThoughtsEvent)
    assert event.query == QUERY
    assert [record["text"] for record in event.thoughts] == [THOUGHT, THOUGHT]
    assert len(events.named("RetrievalEndEvent")) == 1
    assert found[0].node.get_content() == TEXTS["vapour"]
    assert found[0].node.metadata == METADATA["vapour"]
    assert ids(both(similarity_top_k=1, settings=FAST).retrieve(QUERY)) == ["mirror"]
    assert events.named("O1ThoughtsEvent")[1].thoughts == []


def test_thoughts_are_in_the_metadata_on_request_and_not_in_prompts(both: Any) -> None:
    for each in both(similarity_top_k=2, thoughts_in_metadata=True).retrieve(QUERY):
        assert each.node.metadata == {**METADATA[each.node.node_id], "thoughts": f"{THOUGHT}\n{THOUGHT}"}
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert THOUGHT not in each.node.get_content(metadata_mode=mode)
    again = both(similarity_top_k=2).retrieve(QUERY)
    assert [each.node.metadata for each in again] == [METADATA[each.node.node_id] for each in again]
    [given] = both(similarity_top_k=1, thoughts_in_metadata=True).retrieve(
        QueryBundle(QUERY, embedding=small_embedder().encode_documents(TEXTS["moon"]).tolist())
    )
    assert given.node.metadata["thoughts"] == ""


def test_what_is_ours_is_kept_from_prompts_and_embeddings(tmp_path: Path) -> None:
    o1 = pytest.importorskip("o1_retriever", reason="needs the extra `index`")
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "glass.md").write_text(f"# Glass\n\n{TEXTS['vapour']}\n", encoding="utf-8")
    with o1.Index(tmp_path / "index", small_embedder()) as index:
        sync_folder(index, tmp_path / "notes")
        index.add([{"id": "own", "text": TEXTS["mirror"], "topic": "home", "root": "/home/someone"}])
        found = O1Retriever(Retriever(small_embedder(), index), similarity_top_k=5).retrieve(QUERY)
    assert len(found) == 2
    for each in found:
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            shown = each.node.get_content(metadata_mode=mode)
            assert not {"root", "source", "position"} & {line.split(":")[0] for line in shown.splitlines()}
            assert str(tmp_path) not in shown
            assert "/home" not in shown
        assert each.node.metadata["root"], "the application has it all the same"
    own = next(each.node for each in found if each.node.node_id == "own")
    assert own.get_content(metadata_mode=MetadataMode.LLM) == f"topic: home\n\n{TEXTS['mirror']}"


def test_plain_retrievers_of_llama_index_tell_the_thoughts_too(events: Events) -> None:
    assert ids(vector_index().as_retriever(similarity_top_k=1).retrieve(QUERY)) == ["vapour"]
    assert events.named("O1ThoughtsEvent")[0].thoughts[0]["text"] == THOUGHT


def cosines(found: list[NodeWithScore]) -> Any:
    rows = bag_of_words([f"{QUERY} {THOUGHT}", *(each.node.get_content() for each in found)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[1:] @ rows[0]


def test_scores_are_cosines_and_can_be_cut_off(both: Any) -> None:
    found = both(similarity_top_k=4).retrieve(QUERY)
    scores = [each.score for each in found]
    assert np.allclose(scores, cosines(found), atol=1e-5)
    between = (scores[0] + scores[1]) / 2
    assert ids(both(similarity_top_k=4, similarity_cutoff=between).retrieve(QUERY)) == ["vapour"]


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_scores_over_chroma_are_cosines(space: str, tmp_path: Path) -> None:
    chromadb = pytest.importorskip("chromadb", reason="needs the extra `index`")
    stores = pytest.importorskip("llama_index.vector_stores.chroma", reason="needs the store's package")
    from llama_index.core import StorageContext

    collection = chromadb.PersistentClient(str(tmp_path)).create_collection(
        "nodes", configuration={"hnsw": {"space": space}}, embedding_function=None
    )
    context = StorageContext.from_defaults(vector_store=stores.ChromaVectorStore(collection))
    index = vector_index(storage_context=context)
    found = O1Retriever(index, similarity_top_k=4).retrieve(QUERY)
    assert ids(found)[0] == "vapour"
    assert np.allclose([each.score for each in found], cosines(found), atol=1e-5)
    short = O1Retriever(index, embed_model=O1Embedding(small_embedder(), truncate_dim=8))
    with pytest.raises(Exception, match="dimension of 256, got 8"):
        short.retrieve(QUERY)


def test_metadata_filters(both: Any) -> None:
    def where(*filters: Any, **options: Any) -> set[str]:
        chosen = MetadataFilters(filters=list(filters), **options)
        return set(ids(both(similarity_top_k=4, filters=chosen).retrieve(QUERY)))

    home = MetadataFilter(key="topic", value="home")
    late = MetadataFilter(key="page", value=3, operator=">=")
    assert where(home) == {"mirror", "bread"}
    assert where(home, late) == {"bread"}
    assert where(home, late, condition="or") == {"mirror", "bread", "moon"}
    assert where(MetadataFilter(key="page", value=[1, 4], operator="in")) == {"vapour", "moon"}


def test_nested_metadata_filters_of_our_index(small_retriever: Retriever) -> None:
    home = MetadataFilter(key="topic", value="home")
    first = MetadataFilter(key="page", value=1)
    late = MetadataFilter(key="page", value=3, operator=">=")
    either = MetadataFilters(filters=[home, first], condition="or")
    chosen = MetadataFilters(filters=[either, late, MetadataFilters(filters=[])])
    assert ids(O1Retriever(small_retriever, filters=chosen).retrieve(QUERY)) == ["bread"]


FILTERS: dict[str, tuple[Any, str, Any]] = {
    "==": ("topic", "home", {"mirror", "bread"}),
    "!=": ("topic", "home", {"vapour", "moon"}),
    ">": ("page", 2, {"bread", "moon"}),
    ">=": ("page", 2, {"mirror", "bread", "moon"}),
    "<": ("page", 2, {"vapour"}),
    "<=": ("page", 2, {"vapour", "mirror"}),
    "in": ("page", [1, 4], {"vapour", "moon"}),
    "nin": ("page", [1, 4], {"mirror", "bread"}),
    "any": ("topic", ["hom", "none"], {"mirror", "bread"}),
    "all": ("topic", ["phys", "ics"], {"vapour", "moon"}),
    "contains": ("topic", "om", {"mirror", "bread"}),
    "text_match": ("topic", "hys", {"vapour", "moon"}),
    "text_match_insensitive": ("topic", "HYS", {"vapour", "moon"}),
    "is_empty": ("author", None, set(TEXTS)),
}


def test_every_operator_of_llama_index_is_tried() -> None:
    assert {each.value for each in FilterOperator} == set(FILTERS)


@pytest.mark.parametrize("operator", FILTERS)
def test_every_operator_finds_what_llama_indexs_own_store_finds(
    small_retriever: Retriever, operator: str
) -> None:
    key, value, expected = FILTERS[operator]
    each = MetadataFilter(key=key, value=value, operator=operator)
    options: dict[str, Any] = {"similarity_top_k": 4, "filters": MetadataFilters(filters=[each])}
    index = vector_index()
    assert set(ids(O1Retriever(small_retriever, **options).retrieve(QUERY))) == expected
    try:
        theirs = ids(index.as_retriever(**options).retrieve(QUERY))
    except ValueError as error:  # the store of earlier versions knows fewer
        if "Invalid operator" not in str(error):
            raise
    else:
        assert set(theirs) == set(ids(O1Retriever(index, **options).retrieve(QUERY))) == expected


def test_conditions_of_our_index(small_retriever: Retriever) -> None:
    def where(condition: str, *names: str) -> set[str]:
        filters = [MetadataFilter(key=FILTERS[n][0], value=FILTERS[n][1], operator=n) for n in names]
        chosen = MetadataFilters(filters=filters, condition=condition)
        return set(ids(O1Retriever(small_retriever, similarity_top_k=4, filters=chosen).retrieve(QUERY)))

    assert where("and", "contains", "<=") == {"mirror"}
    assert where("or", "contains", "<=") == {"vapour", "mirror", "bread"}
    assert where("not", "contains", "<=") == {"moon"}
    assert where("not", "contains") == {"vapour", "moon"}


def test_numbers_of_two_kinds_in_one_list_are_found(small_retriever: Retriever) -> None:
    mixed = MetadataFilter(key="page", value=[1, 2.0, 3.5], operator="in")
    found = O1Retriever(small_retriever, similarity_top_k=4, filters=MetadataFilters(filters=[mixed]))
    assert set(ids(found.retrieve(QUERY))) == {"vapour", "mirror"}
    several = Retriever.search(small_retriever, QUERY, where={"page": {"$in": [1, "2", 4.0, True]}})
    assert {hit.id for hit in several} == {"vapour", "moon"}


def test_lists_in_metadata_are_filtered_by_their_members(tmp_path: Path) -> None:
    o1 = pytest.importorskip("o1_retriever", reason="needs the extra `index`")
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    with o1.Index(tmp_path, small_embedder()) as index:
        index.add([{"id": "a", "text": "one", "tags": ["x", "y"]}, {"id": "b", "text": "two", "tags": ["y"]}])
        index.add([{"id": "c", "text": "three", "tags": []}, {"id": "d", "text": "four"}])
        source = Retriever(small_embedder(), index)

        def where(operator: str, value: Any) -> set[str]:
            chosen = MetadataFilters(filters=[MetadataFilter(key="tags", value=value, operator=operator)])
            return set(ids(O1Retriever(source, similarity_top_k=4, filters=chosen).retrieve("one")))

        assert where("contains", "y") == where("any", ["y", "z"]) == {"a", "b"}
        assert where("all", ["x", "y"]) == {"a"}
        assert where("is_empty", None) == {"c", "d"}


async def test_a_query_bundle_is_honoured(both: Any, events: Events) -> None:
    retriever = both(similarity_top_k=1)
    vector = small_embedder().encode_documents(TEXTS["moon"]).tolist()
    given = QueryBundle(QUERY, embedding=vector)
    assert ids(retriever.retrieve(given)) == ids(await retriever.aretrieve(given)) == ["moon"]
    assert events.named("O1ThoughtsEvent") == []
    several = QueryBundle("", custom_embedding_strs=["yeast dough", "dough rises"])
    assert ids(retriever.retrieve(several)) == ids(await retriever.aretrieve(several)) == ["bread"]
    assert [event.query for event in events.named("O1ThoughtsEvent")] == ["yeast dough", "dough rises"] * 2
    assert several.embedding is None


def test_a_thought_that_could_not_be_had_is_told(
    both: Any, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert ids(both(similarity_top_k=1).retrieve("unthinkable moon")) == ["moon"]
    records = events.named("O1ThoughtsEvent")[0].thoughts
    assert {record["finish"] for record in records} == {"failed"}
    assert records[0]["error"]


def test_in_a_query_engine(both: Any) -> None:
    engine = RetrieverQueryEngine.from_args(both(similarity_top_k=1), llm=MockLLM())
    response = engine.query(QUERY)
    assert ids(response.source_nodes) == ["vapour"]
    assert TEXTS["vapour"] in str(response)
    assert THOUGHT not in str(response)


async def test_in_a_fusion_of_retrievers(both: Any) -> None:
    fusion = QueryFusionRetriever(
        [both(similarity_top_k=4), both(similarity_top_k=4, settings=FAST)],
        llm=MockLLM(),
        num_queries=1,
        mode="reciprocal_rerank",
        similarity_top_k=3,
    )
    found = await fusion.aretrieve(QUERY)
    assert set(ids(found)) >= {"vapour", "mirror"}
    assert len(found) == 3


def test_as_the_embed_model_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    mind = Mind()
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = O1Embedding(small_embedder(mind))
    index = VectorStoreIndex(nodes())
    assert mind.asked == []
    assert ids(index.as_query_engine(llm=MockLLM(), similarity_top_k=1).query(QUERY).source_nodes) == [
        "vapour"
    ]
    assert ids(O1Retriever(index, similarity_top_k=1).retrieve(QUERY)) == ["vapour"]
    assert mind.asked == [QUERY, QUERY]


def test_what_cannot_work_is_refused_when_it_is_made(small_retriever: Retriever) -> None:
    other = VectorStoreIndex(nodes(), embed_model=MockEmbedding(embed_dim=256))
    with pytest.raises(SettingsError, match="MockEmbedding; expected an O1Embedding"):
        O1Retriever(other)
    assert len(O1Retriever(other, embed_model=small_embedder()).retrieve(QUERY)) == 2
    with pytest.raises(SettingsError, match="brings its own"):
        O1Retriever(small_retriever, embed_model=small_embedder())
    with pytest.raises(SettingsError, match="similarity_top_k is 0"):
        O1Retriever(small_retriever, similarity_top_k=0)
    with pytest.raises(SettingsError, match="source is a str"):
        O1Retriever("index")  # type: ignore[arg-type]
