"""LangChain's retrievers that combine others give over ours what they give over the store's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")
pytest.importorskip("langchain_classic", reason="needs langchain-classic")

from langchain_classic.indexes import SQLRecordManager, index
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MergerRetriever,
    MultiQueryRetriever,
    ParentDocumentRetriever,
)
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker, DocumentCompressorPipeline
from langchain_classic.retrievers.document_compressors.cross_encoder import BaseCrossEncoder
from langchain_classic.storage import InMemoryStore
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import CharacterTextSplitter

from langchain_o1_retriever import O1Embeddings, O1Retriever
from o1_retriever import Retriever
from o1_retriever.errors import SettingsError
from tests.support.adapters import QUERY, TEXTS, THOUGHT, small_embedder
from tests.support.langchain import ids

ASKED = [QUERY, "Why does the mirror fog up?", "Cold glass in a bathroom mirror"]


@pytest.fixture
def pair(store: InMemoryVectorStore, ours: Retriever | None) -> tuple[BaseRetriever, BaseRetriever]:
    """A retriever of ours, over our index or the store, and the store's own."""
    own = O1Retriever(retriever=ours, k=2) if ours is not None else O1Retriever(vectorstore=store, k=2)
    return own, store.as_retriever(search_kwargs={"k": 2})


def rewording(retriever: BaseRetriever) -> BaseRetriever:
    questions = RunnableLambda(lambda _: ASKED[1:])
    return MultiQueryRetriever(retriever=retriever, llm_chain=questions, include_original=True)


class Words(BaseCrossEncoder):
    """Scores by the letters that two texts share."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return [float(len(set(query) & set(text))) for query, text in text_pairs]


def filtered(retriever: BaseRetriever) -> BaseRetriever:
    reranker = CrossEncoderReranker(model=Words(), top_n=1)
    stages = DocumentCompressorPipeline(transformers=[CharacterTextSplitter(chunk_size=500), reranker])
    return ContextualCompressionRetriever(base_retriever=retriever, base_compressor=stages)


COMBINED: dict[str, Callable[[BaseRetriever], BaseRetriever]] = {
    "MultiQueryRetriever": rewording,
    "ContextualCompressionRetriever": filtered,
    "EnsembleRetriever": lambda one: EnsembleRetriever(retrievers=[one, one], weights=[0.7, 0.3]),
    "MergerRetriever": lambda one: MergerRetriever(retrievers=[one, one]),
}


@pytest.mark.parametrize("name", COMBINED)
async def test_a_retriever_of_retrievers_finds_the_same(name: str, pair: Any) -> None:
    ours, theirs = (COMBINED[name](each) for each in pair)
    expected = theirs.invoke(QUERY)
    assert {each.page_content for each in expected} & set(TEXTS.values())
    for found in (ours.invoke(QUERY), await ours.ainvoke(QUERY)):
        assert ids(found) == ids(expected)
        assert [each.page_content for each in found] == [each.page_content for each in expected]
        # What a splitter makes of a document has plain metadata.
        assert all(a.metadata.items() >= b.metadata.items() for a, b in zip(found, expected, strict=True))


async def test_one_document_of_several_queries_is_one_document(pair: Any) -> None:
    ours, theirs = map(rewording, pair)
    expected = ids(theirs.invoke(QUERY))
    assert len(expected) == len(set(expected)) < 2 * len(ASKED)
    assert ids(ours.invoke(QUERY)) == ids(await ours.ainvoke(QUERY)) == expected


def test_our_documents_and_the_stores_make_one_ensemble(pair: Any) -> None:
    ours, theirs = pair
    assert ids(EnsembleRetriever(retrievers=[ours, theirs]).invoke(QUERY)) == ["vapour", "mirror"]
    assert all(document in theirs.invoke(QUERY) for document in ours.invoke(QUERY))


def test_parents_of_the_passages_that_are_found() -> None:
    embeddings = O1Embeddings(small_embedder())
    children, parents = InMemoryVectorStore(embeddings), InMemoryStore()
    splitter = CharacterTextSplitter(separator=". ", chunk_size=40, chunk_overlap=0)
    retriever = ParentDocumentRetriever(vectorstore=children, docstore=parents, child_splitter=splitter)
    retriever.add_documents(
        [Document(page_content=f"{text} Moreover it is known. So it is said.") for text in TEXTS.values()]
    )
    found = retriever.invoke(QUERY)
    assert found[0].page_content.startswith(TEXTS["vapour"])
    passages = O1Retriever(vectorstore=children, k=4).invoke(QUERY)
    names = list(dict.fromkeys(passage.metadata["doc_id"] for passage in passages))
    assert [document.page_content for document in found] == [
        document.page_content for document in parents.mget(names) if document is not None
    ]


@pytest.mark.parametrize("lambda_mult", [0.5, 1.0])
async def test_varied_documents_are_those_of_the_store(lambda_mult: float, ours: Any, store: Any) -> None:
    asked = {"k": 2, "fetch_k": 4, "lambda_mult": lambda_mult}
    expected = ids(store.as_retriever(search_type="mmr", search_kwargs=asked).invoke(QUERY))
    source = {"retriever": ours} if ours is not None else {"vectorstore": store}
    retriever = O1Retriever(**source, search_type="mmr", search_kwargs=asked)
    assert ids(retriever.invoke(QUERY)) == ids(await retriever.ainvoke(QUERY)) == expected
    assert ids(O1Retriever(**source).invoke(QUERY, search_type="mmr", **asked)) == expected


async def test_a_score_threshold_is_that_of_the_store(ours: Any, store: Any) -> None:
    source = {"retriever": ours} if ours is not None else {"vectorstore": store}
    for threshold in (0.05, 0.3, 0.99):
        theirs = store.as_retriever(
            search_type="similarity_score_threshold", search_kwargs={"score_threshold": threshold}
        )
        by_name = O1Retriever(
            **source,
            search_type="similarity_score_threshold",
            search_kwargs={"score_threshold": threshold},
        )
        plain = O1Retriever(**source, score_threshold=threshold)
        expected = [each for each, score in store.similarity_search_with_score(QUERY) if score >= threshold]
        assert ids(by_name.invoke(QUERY)) == ids(await plain.ainvoke(QUERY)) == ids(expected)
        if hasattr(type(store), "_select_relevance_score_fn"):
            with pytest.raises(NotImplementedError):
                theirs.invoke(QUERY)


def test_ways_to_search_that_contradict_each_other_are_refused(ours: Any, store: Any) -> None:
    source = {"retriever": ours} if ours is not None else {"vectorstore": store}
    with pytest.raises(SettingsError, match="expected a score_threshold with it"):
        O1Retriever(**source).invoke(QUERY, search_type="similarity_score_threshold")
    with pytest.raises(SettingsError, match="takes no score_threshold"):
        O1Retriever(**source, search_type="mmr").invoke(QUERY, score_threshold=0.5)
    with pytest.raises(SettingsError, match="search_type is 'best'; expected one of 'similarity', 'mmr'"):
        O1Retriever(**source).invoke(QUERY, search_type="best")


@pytest.mark.parametrize("space", ["cosine"])
def test_over_chroma_varied_and_cut_off_as_its_own_retriever(space: str, tmp_path: Path) -> None:
    chroma = pytest.importorskip("langchain_chroma", reason="needs langchain-chroma")
    store = chroma.Chroma(
        embedding_function=O1Embeddings(small_embedder()),
        collection_configuration={"hnsw": {"space": space}},
        persist_directory=str(tmp_path),
    )
    store.add_texts(list(TEXTS.values()), ids=list(TEXTS))
    for search_type, asked in (
        ("mmr", {"k": 2, "fetch_k": 4, "lambda_mult": 0.1}),
        ("similarity_score_threshold", {"score_threshold": 0.3}),
        ("similarity", {"k": 3}),
    ):
        theirs = store.as_retriever(search_type=search_type, search_kwargs=asked).invoke(QUERY)
        ours = O1Retriever(vectorstore=store, search_type=search_type, search_kwargs=asked).invoke(QUERY)
        assert [each.page_content for each in ours] == [each.page_content for each in theirs]
        assert ours == theirs


def test_found_documents_go_into_another_store(pair: Any, tmp_path: Path) -> None:
    chroma = pytest.importorskip("langchain_chroma", reason="needs langchain-chroma")
    second = chroma.Chroma(embedding_function=O1Embeddings(small_embedder()), persist_directory=str(tmp_path))
    ours = pair[0].model_copy(update={"thoughts_in_metadata": True})
    second.add_documents(ours.invoke(QUERY))
    kept = second.get()["metadatas"]
    assert {each["thoughts"] for each in kept} == {f"{THOUGHT}\n{THOUGHT}"}
    assert all(0 < each["relevance_score"] < 1 for each in kept)


def test_the_indexing_interface_knows_what_it_has_seen(tmp_path: Path) -> None:
    records = SQLRecordManager("o1", db_url=f"sqlite:///{tmp_path / 'records.db'}")
    records.create_schema()
    store = InMemoryVectorStore(O1Embeddings(small_embedder()))
    documents = [Document(page_content=text, metadata={"source": name}) for name, text in TEXTS.items()]
    how: dict[str, Any] = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(documents, records, store, **how)["num_added"] == 4
    assert index(documents, records, store, **how)["num_skipped"] == 4
    retriever = O1Retriever(vectorstore=store, k=2)
    expected = store.as_retriever(search_kwargs={"k": 2}).invoke(QUERY)
    assert ids(retriever.invoke(QUERY)) == ids(expected)
    plain = O1Retriever(vectorstore=store, k=2, scores_in_metadata=False).invoke(QUERY)
    found = [Document(page_content=each.page_content, metadata=each.metadata) for each in plain]
    assert index(found, records, store, **how)["num_skipped"] == 2


async def test_in_a_graph_whose_state_is_kept(pair: Any) -> None:
    pytest.importorskip("langgraph", reason="needs langgraph")
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict, total=False):
        question: str
        found: list[Document]

    def graph(retriever: BaseRetriever) -> Any:
        builder = StateGraph(State)
        builder.add_node("search", lambda state: {"found": retriever.invoke(state["question"])})
        builder.add_edge(START, "search")
        builder.add_edge("search", END)
        return builder.compile(checkpointer=InMemorySaver())

    ours, theirs = map(graph, pair)
    for each in (ours, theirs):
        each.invoke({"question": QUERY}, {"configurable": {"thread_id": "1"}})
    kept, expected = (
        each.get_state({"configurable": {"thread_id": "1"}}).values["found"] for each in (ours, theirs)
    )
    assert ids(kept) == ids(expected) == ["vapour", "mirror"]
    assert 0 < kept[0].metadata["relevance_score"] < 1
    again = await ours.ainvoke({"question": "dough"}, {"configurable": {"thread_id": "2"}})
    assert ids(again["found"])[0] == "bread"


def test_documents_are_json(pair: Any) -> None:
    tool = create_retriever_tool(pair[0], "find", "Finds.", response_format="content_and_artifact")
    call = {"name": "find", "args": {"query": QUERY}, "id": "1", "type": "tool_call"}
    [first, _] = tool.invoke(call).artifact
    plain = json.loads(json.dumps(first.model_dump()))
    assert plain["metadata"]["relevance_score"] == first.metadata["relevance_score"]
    assert Document(**plain) == first
