"""LangChain's machinery around the retriever: callbacks, tracers, event streams, an agent, a chain."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.tracers.base import BaseTracer
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_o1_retriever import THINKING_RUN, THOUGHTS_EVENT, O1Retriever
from o1_retriever import Retriever, ThinkingEmbedder
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import EncoderError
from tests.support.adapters import QUERY, TEXTS, THOUGHT, Mind, bag_of_words, small_embedder
from tests.support.langchain import over


@pytest.fixture
def both(ours: Retriever | None) -> Any:
    return over(ours)


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.started: dict[str, Any] = {}
        self.ended: Any = None

    def on_retriever_start(self, serialized: Any, query: str, *, metadata: Any, **_: Any) -> None:
        self.started = metadata

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append((name, data))

    def on_retriever_end(self, documents: Any, **_: Any) -> None:
        self.ended = documents


def test_callbacks_see_thoughts_documents_and_langsmith_parameters(both: Any) -> None:
    listener = Listener()
    found = both(score_threshold=2.0).invoke(QUERY, {"callbacks": [listener]})
    assert found == listener.ended == []
    [(name, data)] = listener.events
    assert (name, data["query"]) == (THOUGHTS_EVENT, QUERY)
    assert [record["text"] for record in data["thoughts"]] == [THOUGHT, THOUGHT]
    assert listener.started["ls_retriever_name"] == "o1"
    assert listener.started["ls_embedding_provider"] == "o1-retriever"
    assert listener.started["ls_embedding_model"] == small_embedder().space.fingerprint
    assert listener.started["ls_vector_store_provider"] in ("o1-retriever", "InMemoryVectorStore")


class Runs(BaseTracer):
    """Keeps the tree of runs, as LangSmith's tracer would send it."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Any] = []

    def _persist_run(self, run: Any) -> None:
        self.roots.append(run)


async def test_tracers_see_the_thinking_as_a_run_of_its_own(both: Any) -> None:
    tracer = Runs()
    both(k=1).invoke(QUERY, {"callbacks": [tracer]})
    await both(k=1).ainvoke(QUERY, {"callbacks": [tracer]})
    assert len(tracer.roots) == 2
    for root in tracer.roots:
        [child] = root.child_runs
        assert (child.name, child.inputs) == (THINKING_RUN, {"query": QUERY})
        assert [record["text"] for record in child.outputs["thoughts"]] == [THOUGHT, THOUGHT]
        assert "thoughts" not in root.outputs["documents"][0].metadata


async def test_tracers_see_why_thinking_failed(store: InMemoryVectorStore) -> None:
    def broken(texts: list[str]) -> Any:
        if any(QUERY in text for text in texts):
            raise RuntimeError("out of memory")
        return bag_of_words(texts)

    embedder = ThinkingEmbedder.from_parts(Mind(), CallableEncoder(broken, name="broken"), cache=False)
    retriever = O1Retriever(vectorstore=store, embeddings=embedder)
    tracer = Runs()
    with pytest.raises(EncoderError, match="out of memory"):
        retriever.invoke(QUERY, {"callbacks": [tracer]})
    with pytest.raises(EncoderError, match="out of memory"):
        await retriever.ainvoke(QUERY, {"callbacks": [tracer]})
    assert ["out of memory" in root.child_runs[0].error for root in tracer.roots] == [True, True]


async def test_async_callbacks_and_event_streams_see_the_thoughts(both: Any) -> None:
    class Async(AsyncCallbackHandler):
        seen: Any = None

        async def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
            self.seen = data

    listener = Async()
    await both().ainvoke(QUERY, {"callbacks": [listener]})
    assert listener.seen["thoughts"][0]["text"] == THOUGHT
    events = [event async for event in both().astream_events(QUERY, version="v2")]
    custom = [event for event in events if event["event"] == "on_custom_event"]
    assert custom[0]["data"]["thoughts"][0]["text"] == THOUGHT


class Scripted(BaseChatModel):
    """Searches for what the user said, then repeats what was found."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        assert [tool.name for tool in tools] == ["search_home"]
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        if isinstance(messages[-1], ToolMessage):
            reply = AIMessage(messages[-1].content)
        else:
            call = {"name": "search_home", "args": {"query": messages[-1].content}, "id": "1"}
            reply = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=reply)])


async def test_as_a_tool_of_an_agent(both: Any) -> None:
    agents = pytest.importorskip("langchain.agents", reason="needs langchain")
    search = create_retriever_tool(
        both(k=1, thoughts_in_metadata=True),
        "search_home",
        "Searches household facts.",
        response_format="content_and_artifact",
    )
    assert search.invoke({"query": QUERY}) == TEXTS["vapour"]
    agent = agents.create_agent(Scripted(), tools=[search])
    question = {"messages": [{"role": "user", "content": QUERY}]}
    for answer in (agent.invoke(question), await agent.ainvoke(question)):
        asked, found, said = answer["messages"][1:]
        assert asked.tool_calls[0]["args"] == {"query": QUERY}
        assert found.artifact[0].metadata["thoughts"].splitlines() == [THOUGHT, THOUGHT]
        assert said.content == TEXTS["vapour"]


def test_in_a_chain(both: Any) -> None:
    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    seen = []

    def answer(messages: Any) -> AIMessage:
        seen.append(messages.to_string())
        return AIMessage("It is vapour.")

    def join(documents: list[Document]) -> str:
        return "\n".join(each.page_content for each in documents)

    chain = (
        {"context": both(k=1) | join, "question": RunnablePassthrough()}
        | prompt
        | RunnableLambda(answer)
        | StrOutputParser()
    )
    assert chain.invoke(QUERY) == "It is vapour."
    assert TEXTS["vapour"] in seen[0]
