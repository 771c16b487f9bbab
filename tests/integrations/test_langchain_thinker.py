"""A LangChain chat model as the one who thinks."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from o1_retriever.query import as_queries

pytest.importorskip("langchain_core", reason="needs the extra `langchain`")

from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from langchain_o1_retriever import ChatModelThinker
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.endpoint.exchange import RequestPolicy
from o1_retriever.errors import SettingsError
from tests.support.adapters import PATIENCE, QUERY, THOUGHT, bag_of_words


def thinking_with(model: Any, **options: Any) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_parts(
        ChatModelThinker(model, policy=PATIENCE, **options),
        bag_of_words,
        settings=ThoughtSettings(n_thoughts=2),
    )


def test_a_chat_model_thinks() -> None:
    embedder = thinking_with(FakeListChatModel(responses=[f"<think>Hm, glass?</think> {THOUGHT}"]))
    embedding = embedder.embed_query(QUERY)
    assert [thought.text for thought in embedding.thoughts] == [THOUGHT, THOUGHT]


def test_a_chat_model_is_asked_with_the_prompt_and_counts_tokens() -> None:
    asked = []

    def reply(messages: Any) -> AIMessage:
        asked.append(messages)
        blocks: Any = [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": THOUGHT}]
        usage: Any = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
        return AIMessage(blocks, usage_metadata=usage, response_metadata={"stop_reason": "max_tokens"})

    thinker = ChatModelThinker(RunnableLambda(reply), prompt="Answer: {query}")
    [[thought]] = thinker.think(as_queries([QUERY]), settings=ThoughtSettings(n_thoughts=1))
    assert asked == [[("user", f"Answer: {QUERY}")]]
    assert (thought.text, thought.finish) == (THOUGHT, "length")
    assert (thought.prompt_tokens, thought.completion_tokens) == (5, 7)


def test_a_chat_model_that_fails_is_recorded_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def flaky(messages: Any) -> str:
        calls.append(messages)
        if len(calls) == 1:
            raise ValueError("overloaded")
        return THOUGHT

    assert thinking_with(RunnableLambda(flaky)).embed_query(QUERY).thoughts[0].text == THOUGHT

    def broken(messages: Any) -> str:
        raise ValueError("out of order")

    with caplog.at_level(logging.WARNING):
        embedding = thinking_with(RunnableLambda(broken)).embed_query("dough")
    assert all(thought.failed for thought in embedding.thoughts)
    assert "the model failed (ValueError: out of order)" in str(embedding.thoughts[0].error)
    assert "ChatModelThinker('RunnableLambda')" in caplog.text
    assert "tried 2 times" in caplog.text


def test_a_chat_model_that_does_not_answer_is_given_up() -> None:
    answered = threading.Event()
    hasty = RequestPolicy(retries=0, timeout=0.1, deadline=0.2)
    # Whoever waited for the answer would wait for ever.
    thinker = ChatModelThinker(RunnableLambda(lambda _: str(answered.wait())), policy=hasty)
    [[thought]] = thinker.think(as_queries([QUERY]), settings=ThoughtSettings(n_thoughts=1))
    answered.set()
    assert thought.failed
    assert "no complete answer within 0.2 s" in str(thought.error)


def test_a_named_chat_model_is_cached_and_a_nameless_one_is_not() -> None:
    model = FakeListChatModel(responses=["one", "two", "three", "four"])
    assert ChatModelThinker(model).identity is None
    named = ChatModelThinker(model, name="fake 1")
    assert named.identity is not None
    assert "fake 1" in named.identity
    assert named.identity != ChatModelThinker(model, name="fake 1", prompt="{query}").identity
    embedder = thinking_with(model, name="fake 1")
    first = embedder.embed_query(QUERY).thoughts
    second = embedder.embed_query(QUERY).thoughts
    assert [thought.text for thought in first] == [thought.text for thought in second]
    assert all(thought.cached for thought in second)
    with pytest.raises(SettingsError, match="expected a LangChain chat model"):
        ChatModelThinker("gpt")  # type: ignore[arg-type]
