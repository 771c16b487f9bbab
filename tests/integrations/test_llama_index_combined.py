"""LlamaIndex's retrievers that combine others, postprocessors and persisted indexes, with ours in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra `llama-index`")

from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import HierarchicalNodeParser, get_leaf_nodes
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.retrievers import AutoMergingRetriever, QueryFusionRetriever, RecursiveRetriever
from llama_index.core.schema import IndexNode
from llama_index.core.tools import RetrieverTool

from llama_index_o1_retriever import O1Embedding, O1Retriever
from o1_retriever import Retriever
from tests.support.adapters import QUERY, TEXTS, THOUGHT, small_embedder
from tests.support.llama_index import ids, over, vector_index


@pytest.fixture
def both(ours: Retriever | None) -> Any:
    return over(ours)


@pytest.mark.parametrize("mode", ["simple", "reciprocal_rerank", "relative_score", "dist_based_score"])
@pytest.mark.parametrize("use_async", [False, True])
def test_a_fusion_finds_what_it_finds_with_the_indexs_own(both: Any, mode: str, use_async: bool) -> None:
    # LlamaIndex's own retriever writes the embedding into the query, which the next one then takes: so both
    # think alike here.
    index = vector_index()

    def fused(*retrievers: Any) -> Any:
        return QueryFusionRetriever(
            list(retrievers), llm=MockLLM(), num_queries=1, mode=mode, use_async=use_async
        ).retrieve(QUERY)

    found = fused(both(similarity_top_k=3), both(similarity_top_k=2))
    expected = fused(index.as_retriever(similarity_top_k=3), index.as_retriever(similarity_top_k=2))
    assert ids(found) == ids(expected)
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)


def test_nodes_of_a_store_leave_as_they_came(both: Any) -> None:
    index = vector_index()
    for each in O1Retriever(index, similarity_top_k=4).retrieve(QUERY):
        assert each.node == index.docstore.docs[each.node.node_id]


@pytest.mark.parametrize("options", [{}, {"pooling": "best"}, {"thinking": "never"}])
def test_a_usual_cut_off_keeps_what_is_found(both: Any, options: dict[str, Any]) -> None:
    found = both(similarity_top_k=2, **options).retrieve(QUERY)
    assert SimilarityPostprocessor(similarity_cutoff=0.1).postprocess_nodes(found) == found
    assert all(0 <= each.score <= 1 for each in found)


def test_leaves_are_merged_into_their_parents() -> None:
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[256, 64, 32])
    try:
        nodes = parser.get_nodes_from_documents([Document(text="Glass is cold. Water sits on it. " * 30)])
    except LookupError:  # earlier versions of LlamaIndex look for nltk's data on the network
        pytest.skip("needs the data of nltk")
    context = StorageContext.from_defaults()
    context.docstore.add_documents(nodes)
    index = VectorStoreIndex(
        get_leaf_nodes(nodes), storage_context=context, embed_model=O1Embedding(small_embedder())
    )
    merged = [
        ids(AutoMergingRetriever(retriever, context).retrieve("water"))
        for retriever in (O1Retriever(index, similarity_top_k=6), index.as_retriever(similarity_top_k=6))
    ]
    assert merged[0] == merged[1]
    assert set(merged[0]) - {node.node_id for node in get_leaf_nodes(nodes)}, "some are parents"


def test_an_index_that_was_persisted_is_searched(tmp_path: Path) -> None:
    vector_index().storage_context.persist(str(tmp_path))
    context = StorageContext.from_defaults(persist_dir=str(tmp_path))
    loaded = load_index_from_storage(context, embed_model=O1Embedding(small_embedder()))
    assert ids(O1Retriever(loaded, similarity_top_k=1).retrieve(QUERY)) == ["vapour"]


def test_a_node_that_stands_for_a_retriever_is_followed(both: Any) -> None:
    top = VectorStoreIndex(
        nodes=[IndexNode(text="about mirrors and vapour", index_id="below")],
        embed_model=O1Embedding(small_embedder()),
    )
    below = both(similarity_top_k=1)
    recursive = RecursiveRetriever("top", {"top": O1Retriever(top, similarity_top_k=1), "below": below})
    assert ids(recursive.retrieve(QUERY)) == ["vapour"]


async def test_as_a_tool(both: Any) -> None:
    tool = RetrieverTool.from_defaults(both(similarity_top_k=1), name="find", description="Finds.")
    for said in (str(tool.call(QUERY)), str(await tool.acall(QUERY))):
        assert TEXTS["vapour"] in said
        assert THOUGHT not in said
