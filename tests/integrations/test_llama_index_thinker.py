"""A LlamaIndex LLM as the one who thinks."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from o1_retriever.query import as_queries

pytest.importorskip("llama_index.core", reason="needs the extra `llama-index`")

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import MockLLM

from llama_index_o1_retriever import LLMThinker
from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.endpoint.exchange import RequestPolicy
from o1_retriever.errors import SettingsError
from tests.support.adapters import PATIENCE, QUERY, THOUGHT, bag_of_words


class Scripted(MockLLM):
    """Answers with what it is given, or raises it."""

    _answers: list[Any] = PrivateAttr(default_factory=list)
    _asked: list[Any] = PrivateAttr(default_factory=list)

    def chat(self, messages: Any, **_: Any) -> Any:
        self._asked.append(messages)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def scripted(*answers: Any) -> Scripted:
    llm = Scripted()
    llm._answers = list(answers)
    return llm


def said(text: str | None, **facts: Any) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role="assistant", content=text), additional_kwargs=facts)


def test_an_llm_is_asked_with_the_prompt_and_its_reasoning_is_dropped() -> None:
    llm = scripted(said(f"<think>Hm.</think>{THOUGHT}", prompt_tokens=5, completion_tokens=7))
    thinker = LLMThinker(llm, prompt="Answer: {query}")
    [[thought]] = thinker.think(as_queries([QUERY]), settings=ThoughtSettings(n_thoughts=1))
    assert [(message.role.value, message.content) for message in llm._asked[0]] == [
        ("user", f"Answer: {QUERY}")
    ]
    assert (thought.text, thought.prompt_tokens, thought.completion_tokens) == (THOUGHT, 5, 7)


def test_a_cut_thought_is_known_as_cut() -> None:
    raw = {"choices": [{"finish_reason": "length"}]}
    reply = ChatResponse(message=ChatMessage(role="assistant", content=THOUGHT), raw=raw)
    [[thought]] = LLMThinker(scripted(reply)).think(
        as_queries([QUERY]), settings=ThoughtSettings(n_thoughts=1)
    )
    assert thought.finish == "length"


def test_an_llm_of_llama_index_thinks_for_an_embedder() -> None:
    embedder = ThinkingEmbedder.from_parts(
        LLMThinker(MockLLM()), bag_of_words, settings=ThoughtSettings(n_thoughts=2), cache=False
    )
    thoughts = embedder.embed_query(QUERY).thoughts
    assert len(thoughts) == 2
    assert all(QUERY in thought.text for thought in thoughts)


def test_failures_are_tried_again_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    settings = ThoughtSettings(n_thoughts=1)
    flaky = LLMThinker(scripted(ValueError("overloaded"), said(THOUGHT)), policy=PATIENCE)
    assert (
        flaky.think(as_queries([QUERY]), settings=settings.with_changes(n_thoughts=1))[0][0].text == THOUGHT
    )
    broken = LLMThinker(scripted(RuntimeError("no"), RuntimeError("out of order")), policy=PATIENCE)
    with caplog.at_level(logging.WARNING):
        [[thought]] = broken.think(as_queries([QUERY]), settings=settings.with_changes(n_thoughts=1))
    assert thought.failed
    assert "the model failed (RuntimeError: out of order) (tried 2 times)" in str(thought.error)
    assert "LLMThinker('Scripted')" in caplog.text
    empty = LLMThinker(scripted(said(None), said("")), policy=PATIENCE)
    assert "reply is empty" in str(
        empty.think(as_queries([QUERY]), settings=settings.with_changes(n_thoughts=1))[0][0].error
    )


def test_an_llm_that_does_not_answer_is_given_up() -> None:
    answered = threading.Event()

    class Silent(MockLLM):
        def chat(self, messages: Any, **_: Any) -> Any:
            return said(str(answered.wait()))

    hasty = RequestPolicy(retries=0, timeout=0.1, deadline=0.2)
    # Whoever waited for the answer would wait for ever.
    [[thought]] = LLMThinker(Silent(), policy=hasty).think(
        as_queries([QUERY]), settings=ThoughtSettings(n_thoughts=1)
    )
    answered.set()
    assert "no complete answer within 0.2 s" in str(thought.error)


def test_names_and_what_is_refused() -> None:
    llm = MockLLM()
    assert LLMThinker(llm).identity is None
    named = LLMThinker(llm, name="mock 1")
    assert "mock 1" in str(named.identity)
    assert named.identity != LLMThinker(llm, name="mock 1", prompt="{query}").identity
    with pytest.raises(SettingsError, match="expected a LlamaIndex LLM"):
        LLMThinker("gpt")  # type: ignore[arg-type]
