"""A conversation through the LlamaIndex retriever, query engine and LLM that thinks."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra `llama-index`")

from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import QueryBundle, TextNode

from llama_index_o1_retriever import ConversationBundle, O1Embedding, O1Retriever
from o1_retriever import Index, Retriever
from o1_retriever.errors import InputError
from o1_retriever.query import Conversation
from tests.support.adapters import ALWAYS_WORTH_IT, TEXTS, TURNS, last_turn_embedder

CHAT = [
    ChatMessage(role=MessageRole.SYSTEM, content="Answer briefly."),
    ChatMessage(role=MessageRole.USER, content="Where does the vapour go?"),
    ChatMessage(role=MessageRole.TOOL, content="[]"),
    ChatMessage(role=MessageRole.ASSISTANT, content="Water vapour condenses as droplets."),
]


@pytest.fixture(params=["our index", "the framework's"])
def source(request: pytest.FixtureRequest, small_index: Index) -> Any:
    if request.param == "our index":
        return Retriever(last_turn_embedder(), small_index)
    nodes = [TextNode(id_=name, text=text) for name, text in TEXTS.items()]
    return VectorStoreIndex(nodes, embed_model=O1Embedding(last_turn_embedder()))


def test_chat_messages_are_read() -> None:
    assert Conversation.of(CHAT) == Conversation.of(TURNS)
    memory = ChatMemoryBuffer.from_defaults(chat_history=CHAT[:2])
    assert Conversation.of(memory.get()) == Conversation.of(TURNS[:2])


async def test_the_thought_is_written_after_the_messages(source: Any) -> None:
    retriever = O1Retriever(source, similarity_top_k=1)
    plain = retriever.retrieve(QueryBundle("And then?"))
    bundle = ConversationBundle("And then?", history=CHAT)
    for found in (retriever.retrieve(bundle), await retriever.aretrieve(bundle)):
        assert [each.node.node_id for each in found] == ["vapour"]
    assert [each.node.node_id for each in plain] != ["vapour"]
    assert [each.node.node_id for each in retriever.retrieve(ConversationBundle("And then?"))] == [
        each.node.node_id for each in plain
    ]


def test_several_strings_and_adaptive_thinking_read_it(source: Any) -> None:
    several = ConversationBundle("", custom_embedding_strs=["And then?", "And it?"], history=CHAT)
    assert O1Retriever(source, similarity_top_k=1).retrieve(several)[0].node.node_id == "vapour"
    auto = O1Retriever(source, similarity_top_k=1, thinking="auto", gate=ALWAYS_WORTH_IT)
    found = auto.retrieve(ConversationBundle("And then?", history=CHAT))
    assert found[0].node.node_id == "vapour"


def test_an_explanation_reads_it(small_index: Index) -> None:
    retriever = O1Retriever(Retriever(last_turn_embedder(), small_index), similarity_top_k=1)
    explanation = retriever.explain(ConversationBundle("And then?", history=CHAT))
    assert [hit.id for hit in explanation.result] == ["vapour"]
    assert explanation.result.embedding.history == Conversation.of(TURNS)


def test_a_query_engine_passes_it_on(source: Any) -> None:
    engine = RetrieverQueryEngine.from_args(O1Retriever(source, similarity_top_k=1), llm=MockLLM())
    answer = engine.query(ConversationBundle("And then?", history=CHAT))
    assert [each.node.node_id for each in answer.source_nodes] == ["vapour"]


def test_a_history_that_cannot_be_used(source: Any) -> None:
    with pytest.raises(InputError, match="history is a str"):
        O1Retriever(source).retrieve(ConversationBundle("And then?", history="vapour"))
