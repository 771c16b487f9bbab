"""A conversation through the LangChain retriever and a chat model that thinks."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")

from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda

from langchain_o1_retriever import ChatModelThinker, O1Embeddings, O1Retriever
from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.errors import InputError
from o1_retriever.query import Conversation
from tests.support.adapters import ALWAYS_WORTH_IT, NEVER_WORTH_IT, TURNS, bag_of_words, last_turn_embedder
from tests.support.langchain import in_memory

CALL = {"name": "look_up", "args": {}, "id": "1"}
CHAT = [
    SystemMessage("Answer briefly."),
    HumanMessage("Where does the vapour go?"),
    AIMessage("", tool_calls=[CALL]),
    ToolMessage("[]", tool_call_id="1"),
    AIMessage([{"type": "text", "text": "Water vapour condenses as droplets."}]),
]


@pytest.fixture(params=["our index", "the framework's"])
def retriever(request: pytest.FixtureRequest, small_index: Index) -> O1Retriever:
    if request.param == "our index":
        return O1Retriever(
            retriever=Retriever(last_turn_embedder(), small_index), k=1, thoughts_in_metadata=True
        )
    return O1Retriever(
        vectorstore=in_memory(O1Embeddings(last_turn_embedder())), k=1, thoughts_in_metadata=True
    )


def test_messages_of_langchain_are_read() -> None:
    assert Conversation.of(CHAT) == Conversation.of(TURNS)
    assert Conversation.of([ChatMessage("hello", role="user")]) == Conversation.of([("user", "hello")])


async def test_the_thought_is_written_after_the_messages(retriever: O1Retriever) -> None:
    [plain] = retriever.invoke("And then?")
    assert plain.metadata["thoughts"] == "Tides."
    for history in (CHAT, TURNS):
        for found in (
            retriever.invoke("And then?", history=history),
            await retriever.ainvoke("And then?", history=history),
        ):
            assert [document.id for document in found] == ["vapour"]
            assert found[0].metadata["thoughts"] == "Water vapour condenses as droplets."


def test_a_question_that_ends_the_messages_is_not_said_twice(retriever: O1Retriever) -> None:
    [found] = retriever.invoke("And then?", history=[*CHAT, HumanMessage("And then?")])
    assert found.metadata["thoughts"] == "Water vapour condenses as droplets."


def test_adaptive_thinking_reads_it_where_it_thinks(many_index: Index) -> None:
    retriever = O1Retriever(
        retriever=Retriever(last_turn_embedder(), many_index), k=1, thinking="auto", thoughts_in_metadata=True
    )
    [found] = retriever.invoke("And then?", gate=ALWAYS_WORTH_IT, history=CHAT)
    assert found.id == "vapour"
    [found] = retriever.invoke("And the moon?", gate=NEVER_WORTH_IT, history=CHAT)
    assert (found.id, found.metadata.get("thoughts", "")) == ("moon", "")


def test_adaptive_thinking_over_a_store_reads_it_too(retriever: O1Retriever) -> None:
    [found] = retriever.invoke("And then?", thinking="auto", gate=ALWAYS_WORTH_IT, history=CHAT)
    assert found.id == "vapour"


def test_a_history_that_cannot_be_used(retriever: O1Retriever) -> None:
    with pytest.raises(InputError, match="history is a str"):
        retriever.invoke("And then?", history="We spoke about vapour.")


def test_a_chat_model_is_sent_the_turns() -> None:
    asked = []

    def reply(messages: Any) -> str:
        asked.append(messages)
        return "a thought"

    thinker = ChatModelThinker(RunnableLambda(reply), prompt="About: {query}")
    made = ThinkingEmbedder.from_parts(
        thinker, bag_of_words, settings=ThoughtSettings(n_thoughts=1), cache=False
    )
    made.embed_query("And then?", history=CHAT)
    assert asked == [[*TURNS, ("user", "About: And then?")]]
