"""Haystack's pipelines, stores and files with the components that think."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("haystack", reason="needs the extra `haystack`")

from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.errors import SerializationError
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_o1_retriever import O1DocumentEmbedder, O1Retriever, O1TextEmbedder
from o1_retriever import Index, ThinkingEmbedder
from o1_retriever.errors import SettingsError
from tests.support.adapters import (
    BREAD,
    METADATA,
    QUERY,
    TEXTS,
    THOUGHT,
    TURNS,
    Mind,
    last_turn_embedder,
    small_embedder,
)


def documents() -> list[Document]:
    return [Document(id=name, content=text, meta=METADATA[name]) for name, text in TEXTS.items()]


def written(embedder: ThinkingEmbedder) -> InMemoryDocumentStore:
    """Haystack's own store, filled by a pipeline."""
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    pipeline = Pipeline()
    pipeline.add_component("embedder", O1DocumentEmbedder(embedder))
    pipeline.add_component("writer", DocumentWriter(store))
    pipeline.connect("embedder", "writer")
    pipeline.run({"embedder": {"documents": documents()}})
    return store


def test_a_pipeline_over_haystacks_own_store_thinks_about_queries_alone() -> None:
    mind = Mind()
    embedder = small_embedder(mind)
    store = written(embedder)
    assert mind.asked == []
    search = Pipeline()
    search.add_component("embedder", O1TextEmbedder(embedder))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    search.connect("embedder.embedding", "retriever.query_embedding")
    found = search.run({"embedder": {"text": QUERY}}, include_outputs_from={"embedder"})
    assert [each.id for each in found["retriever"]["documents"]] == ["vapour", "mirror"]
    assert found["retriever"]["documents"][0].meta == METADATA["vapour"]
    assert found["embedder"]["thoughts"] == [THOUGHT, THOUGHT]
    assert mind.asked == [QUERY]
    fast = O1TextEmbedder(embedder, settings={"thinking": "never"}).run(QUERY)
    assert fast["thoughts"] == []
    assert store.embedding_retrieval(fast["embedding"], top_k=1)[0].id == "mirror"


def test_documents_are_copied_and_their_fields_embedded_on_request() -> None:
    given = documents()
    embedder = small_embedder()
    plain = O1DocumentEmbedder(embedder, truncate_dim=8).run(given)["documents"]
    assert [each.embedding for each in given] == [None] * 4
    assert [(each.id, each.content, len(each.embedding)) for each in plain] == [
        (each.id, each.content, 8) for each in given
    ]
    [with_topic] = O1DocumentEmbedder(embedder, meta_fields_to_embed=["topic", "none"]).run(given[:1])[
        "documents"
    ]
    assert with_topic.embedding == embedder.encode_documents(f"physics\n{TEXTS['vapour']}").tolist()


def test_the_retriever_over_our_index_in_a_pipeline_with_another(small_index: Index) -> None:
    embedder = small_embedder()
    own = O1Retriever(embedder, small_index, top_k=2)
    found = own.run(QUERY)
    assert [each.id for each in found["documents"]] == ["vapour", "mirror"]
    assert found["documents"][0].content == TEXTS["vapour"]
    assert found["documents"][0].meta == METADATA["vapour"]
    assert found["thoughts"] == [THOUGHT, THOUGHT]
    scores = [each.score for each in found["documents"]]
    assert 1 >= scores[0] > scores[1] > 0
    joined = Pipeline()
    joined.add_component("embedder", O1TextEmbedder(embedder))
    joined.add_component("theirs", InMemoryEmbeddingRetriever(written(embedder), top_k=2))
    joined.add_component("ours", own)
    joined.add_component("joiner", DocumentJoiner(join_mode="reciprocal_rank_fusion"))
    joined.connect("embedder.embedding", "theirs.query_embedding")
    joined.connect("theirs", "joiner")
    joined.connect("ours.documents", "joiner.documents")
    together = joined.run({"embedder": {"text": QUERY}, "ours": {"query": QUERY}})["joiner"]["documents"]
    assert [each.id for each in together] == ["vapour", "mirror"]
    assert len(own.run(QUERY, top_k=4)["documents"]) == 4


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"field": "meta.topic", "operator": "==", "value": "home"}, {"mirror", "bread"}),
        ({"field": "page", "operator": ">=", "value": 3}, {"bread", "moon"}),
        ({"field": "meta.page", "operator": "not in", "value": [1, 2]}, {"bread", "moon"}),
        (
            {
                "operator": "AND",
                "conditions": [
                    {"field": "meta.topic", "operator": "==", "value": "home"},
                    {
                        "operator": "OR",
                        "conditions": [
                            {"field": "meta.page", "operator": "in", "value": [3, 4]},
                            {"field": "meta.page", "operator": "<", "value": 2},
                        ],
                    },
                ],
            },
            {"bread"},
        ),
        (None, set(TEXTS)),
    ],
)
def test_filters_find_what_haystacks_own_store_finds(
    filters: Any, expected: set[str], small_index: Index
) -> None:
    embedder = small_embedder()
    found = O1Retriever(embedder, small_index, filters=filters).run(QUERY)["documents"]
    theirs = written(embedder).filter_documents(filters)
    assert {each.id for each in found} == {each.id for each in theirs} == expected
    by_call = O1Retriever(embedder, small_index).run(QUERY, filters=filters)["documents"]
    assert by_call == found
    with pytest.raises(SettingsError, match="operator 'like'"):
        O1Retriever(embedder, small_index, filters={"field": "a", "operator": "like", "value": 1}).run(QUERY)


def test_a_pipeline_is_saved_and_loaded_with_its_model(root: Path, tmp_path: Path) -> None:
    model = str(root / "models" / "o1-embedder-22m")
    settings = {"n_thoughts": 1, "max_new_tokens": 4}
    with Index(tmp_path / "index", ThinkingEmbedder.from_pretrained(model)) as index:
        index.add(["Yeast makes dough rise.", "Tides follow the moon."])
    pipeline = Pipeline()
    pipeline.add_component(
        "retriever", O1Retriever(model, str(tmp_path / "index"), top_k=1, settings=settings)
    )
    pipeline.add_component("embedder", O1DocumentEmbedder(model))
    again = Pipeline.loads(pipeline.dumps())
    again.warm_up()
    found = again.run({"retriever": {"query": "What makes dough rise?"}, "embedder": {"documents": []}})
    assert [each.content for each in found["retriever"]["documents"]] == ["Yeast makes dough rise."]
    assert len(found["retriever"]["thoughts"]) == 1
    unsaved = Pipeline()
    unsaved.add_component("embedder", O1TextEmbedder(small_embedder()))
    with pytest.raises(SerializationError, match="unsupported value of type 'ThinkingEmbedder'"):
        unsaved.dumps()


def test_the_chat_before_the_query_is_read(small_index: Index) -> None:
    chat = [getattr(ChatMessage, f"from_{role}")(text) for role, text in TURNS]
    embedder = last_turn_embedder()
    assert O1TextEmbedder(embedder).run(QUERY, history=chat)["thoughts"] == [TURNS[-1][1]]
    found = O1Retriever(embedder, small_index, top_k=1).run(QUERY, history=chat)
    assert (found["thoughts"], found["documents"][0].id) == ([TURNS[-1][1]], "vapour")


def test_thoughts_of_the_caller_are_used(small_index: Index) -> None:
    mind = Mind()
    embedder = small_embedder(mind)
    assert O1TextEmbedder(embedder).run(QUERY, thoughts=[BREAD])["thoughts"] == [BREAD]
    found = O1Retriever(embedder, small_index, top_k=1).run(QUERY, thoughts=[BREAD])
    assert [document.id for document in found["documents"]] == ["bread"]
    assert mind.asked == []
