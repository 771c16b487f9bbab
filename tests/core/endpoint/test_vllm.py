"""A thinker behind vLLM: replies in the shapes of its API, from a server on the loopback interface."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o1_retriever import ThinkingEmbedder
from o1_retriever.thinkers import OpenAIThinker
from tests.support.adapters import bag_of_words
from tests.support.asking import SETTINGS, think_one
from tests.support.chat_server import Answer, as_json

REPLIES = json.loads((Path(__file__).parent / "vllm_replies.json").read_text(encoding="utf-8"))
THOUGHT = "Water vapour condenses on cold glass."
MODEL = "Qwen/Qwen3-8B"


def replies(name: str, status: int = 200):
    return lambda body, number: as_json(REPLIES[name], status=status)


@pytest.mark.parametrize("name", ["plain", "stopped_by_token", "reasoning_parser"])
def test_a_reply_of_vllm_is_a_thought(server, thinker, name):
    server.answer = replies(name)
    thought = think_one(thinker(MODEL))
    assert (thought.text, thought.finish) == (THOUGHT, "eos")
    usage = REPLIES[name]["usage"]
    assert (thought.prompt_tokens, thought.completion_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def test_the_model_is_found_by_its_address_alone(server):
    server.models = [REPLIES["models"]["data"][0]["id"]]
    server.answer = replies("plain")
    from o1_retriever.thinkers import as_thinker

    think_one(as_thinker(server.url))
    assert server.bodies[0]["model"] == MODEL


def test_sampling_goes_as_vllm_takes_it(server, thinker):
    server.answer = replies("plain")
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "repetition_penalty": 1.1}
    think_one(thinker(MODEL, extra_body=extra))
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["top_p"]) == (
        MODEL,
        SETTINGS.temperature,
        SETTINGS.top_p,
    )
    assert isinstance(body["seed"], int)
    assert SETTINGS.max_new_tokens in (body.get("max_tokens"), body.get("max_completion_tokens"))
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["repetition_penalty"] == 1.1


def test_reasoning_without_an_answer_is_a_failure_or_the_thought_on_request(server, thinker):
    server.answer = replies("reasoning_only")
    thought = think_one(thinker(MODEL))
    assert thought.failed
    assert "max_new_tokens" in thought.error
    asked = OpenAIThinker(MODEL, base_url=server.url, api_key="none", reasoning="thought")
    assert think_one(asked).text == REPLIES["reasoning_only"]["choices"][0]["message"]["reasoning"]
    asked.close()


@pytest.mark.parametrize("name", ["too_long_before", "too_long"])
def test_a_prompt_that_is_too_long_is_said_as_vllm_says_it(server, thinker, name):
    server.answer = replies(name, 400)
    thought = think_one(thinker(MODEL))
    assert thought.failed
    assert "maximum context length is 2048 tokens" in thought.error
    assert len(server.bodies) == 1  # to ask again would not help


def test_a_model_that_it_does_not_serve_is_named(server, thinker):
    server.answer = replies("no_such_model", 404)
    try:
        said = think_one(thinker("other")).error
    except Exception as error:
        said = str(error)
    assert "other" in said


def test_what_it_streams_is_heard_and_the_reasoning_is_no_thought(server, thinker):
    events = "".join(f"data: {json.dumps(each)}\n\n" for each in REPLIES["stream"]) + "data: [DONE]\n\n"
    server.answer = lambda body, number: Answer(
        events.encode(), headers={"Content-Type": "text/event-stream; charset=utf-8"}
    )
    embedder = ThinkingEmbedder.from_parts(
        thinker(MODEL), bag_of_words, settings=SETTINGS.with_changes(n_thoughts=1), cache=False
    )
    pieces = list(embedder.stream_thoughts("why?"))
    assert "".join(piece.text for piece in pieces).endswith(THOUGHT)
    assert pieces[-1].thought.text == THOUGHT
    assert pieces[-1].thought.completion_tokens == 8
