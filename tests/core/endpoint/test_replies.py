"""Replies of all kinds: what is a thought, what is asked again, and what is a failure."""

from __future__ import annotations

import errno
import logging
import re

import pytest

from o1_retriever.endpoint.exchange import diagnose
from o1_retriever.errors import SettingsError, ThinkerError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import OpenAIThinker
from tests.support.asking import SETTINGS, in_turn, think_one
from tests.support.chat_server import Answer, as_json, completion, refusal


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>hm, well</think>\n\nA thought.", "A thought."),
        ("<THINK>hm</THINK>A thought.", "A thought."),
        ("hm, the template opened it</think> A thought.", "A thought."),
        ("<think>a<think>b</think>c</think> A thought.", "A thought."),
        ("[THINK]hm[/THINK]A thought.", "A thought."),
        ("A <think>hm</think>thought.", "A thought."),
        ("A thought about the <think> tag.", "A thought about the <think> tag."),
        ([{"type": "thinking", "thinking": []}, {"type": "text", "text": "A thought."}], "A thought."),
    ],
)
def test_reasoning_is_no_part_of_the_thought(server, thinker, content, text):
    server.answer = lambda body, number: completion(content)
    thought = think_one(thinker())
    assert (thought.text, thought.finish) == (text, "eos")


def test_reasoning_in_a_field_of_its_own_is_left_out(server, thinker):
    server.answer = lambda body, number: completion("A thought.", reasoning_content="hm")
    assert think_one(thinker()).text == "A thought."


@pytest.mark.parametrize(
    "answer",
    [
        completion("<think>hm, so I sho", finish="length"),
        completion("<think>hm.", finish="stop"),
        completion("A thought. <think>hm", finish="length"),
        completion("", finish="length", reasoning_content="hm"),
        completion(None, finish="length", reasoning="hm"),
    ],
)
def test_tokens_spent_on_reasoning_are_a_failure_that_says_so_and_is_counted(server, thinker, answer):
    server.answer = lambda body, number: answer
    thought = think_one(thinker())
    assert thought.failed
    assert thought.text == ""
    assert "50 tokens" in thought.error
    assert "max_new_tokens" in thought.error
    assert (thought.prompt_tokens, thought.completion_tokens) == (11, 7)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "answer",
    [
        completion("<think>hm, boats", finish="length"),
        completion("<think>hm, boats</think>"),
        completion(None, reasoning_content="hm, boats"),
        completion("", reasoning="hm, boats", finish="length"),
        completion([{"type": "thinking", "thinking": [{"type": "text", "text": "hm, boats"}]}]),
    ],
)
def test_reasoning_is_the_thought_where_nothing_else_came_and_it_is_asked_for(server, answer):
    server.answer = lambda body, number: answer
    thinker = OpenAIThinker("m", base_url=server.url, reasoning="thought")
    assert think_one(thinker).text == "hm, boats"
    assert "reasoning thought" in thinker.identity


def test_an_error_with_the_status_200_that_the_caller_has_to_mend_says_what_to_change(server, thinker):
    server.answer = lambda body, number: as_json({"error": {"message": "Insufficient credits", "code": 402}})
    with pytest.raises(ThinkerError, match=r"Insufficient credits.*topped up"):
        think_one(thinker())


def test_an_unknown_way_to_take_reasoning_is_refused(server):
    with pytest.raises(SettingsError, match="reasoning is 'on'; expected 'off' or 'thought'"):
        OpenAIThinker("m", base_url=server.url, reasoning="on")


def test_a_thought_cut_by_its_length_says_so(server, thinker):
    server.answer = lambda body, number: completion("a thought that", finish="length")
    assert think_one(thinker()).finish == "length"


def test_of_several_choices_the_first_is_taken(server, thinker):
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("first", "second")]
    server.answer = lambda body, number: as_json({"choices": choices})
    assert think_one(thinker()).text == "first"


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (Answer(drop=True), "no connection", 3),
        (Answer(b'{"choices": [', headers={"Content-Type": "application/json"}), "not valid JSON", 3),
        (
            Answer(b'{"choices": [', headers={"Content-Type": "application/json"}, missing=99),
            "no connection",
            3,
        ),
        (Answer(b"<html>Welcome</html>", headers={"Content-Type": "text/html"}), "<html>Welcome</html>", 3),
        (Answer(b"\xff\xfe", headers={"Content-Type": "application/json"}), "not valid JSON", 3),
        (as_json({"choices": []}), "without choices", 3),
        (as_json({"choices": None}), "without choices", 3),
        (as_json({"choices": "text"}), "without choices", 3),
        (as_json(["a", "list"]), "no chat completion", 3),
        (as_json({"choices": [{}]}), "empty", 3),
        (as_json({"choices": [None]}), "empty", 3),
        (as_json({"choices": [{"message": {"content": 5}}]}), "empty", 3),
        (completion("  \n "), "empty", 3),
        (completion("<think>hm</think>"), "empty", 3),
        (completion(None, refusal="I will not."), "refused: I will not", 1),
        (completion([{"type": "refusal", "refusal": "I can't"}]), "refused: I can't", 1),
        (completion("I'm sorry, but I can't help with that."), "refused: I'm sorry", 1),
        (completion(None, finish="tool_calls", tool_calls=[{"id": "1"}]), "called a tool", 1),
        (completion(None, reasoning_content="hm"), "empty beside its reasoning; pass reasoning='thought'", 3),
        (completion("", finish="length"), "reasoning when its 50 tokens were spent", 1),
        (
            as_json({"error": {"message": "Rate limit exceeded", "code": 429}}),
            "200 with an error: Rate limit",
            3,
        ),
        (as_json({"error": {"message": "Provider overloaded", "code": "502"}}), "Provider overloaded", 3),
        (as_json({"error": {"message": "bad prompt", "code": 400}}), "bad prompt", 1),
        (as_json({"error": "model is overloaded"}), "model is overloaded", 3),
        (as_json({"choices": [{"error": {"message": "upstream died", "code": 502}}]}), "upstream died", 3),
        (as_json({"message": {"content": "hm"}, "done": True}), "without choices: .*done", 3),
        (completion("", finish="content_filter"), "content filter", 1),
        (Answer(b"oops", status=500), "500: oops", 3),
        (refusal(503, "loading model"), "503: loading model", 3),
        (refusal(400, "context is too long"), "400: context is too long", 1),
        (refusal(413, "too large"), "413: too large", 1),
        (as_json({"detail": "another model"}, status=400), "400: another model", 1),
        (as_json({"error": "in plain words"}, status=400), "400: in plain words", 1),
        (as_json(["odd"], status=400), r"400: \['odd'\]", 1),
        (
            Answer(b"<h1>Bad Gateway</h1>", status=502, headers={"Content-Type": "text/html"}),
            "502: <h1>Bad Gateway",
            3,
        ),
    ],
)
def test_a_bad_answer_is_a_recorded_failure_with_its_reason(
    server, thinker, caplog, answer, reason, requests
):
    server.answer = lambda body, number: answer
    thought = think_one(thinker())
    assert thought.failed
    assert re.search(reason, thought.error), thought.error
    assert len(server.bodies) == requests
    (record,) = [
        each for each in caplog.records if each.levelno == logging.WARNING and "o1_retriever" in each.name
    ]
    assert "1 of 1 thought could not be written" in record.getMessage()


def test_all_attempts_of_a_failure_are_counted(server, thinker):
    server.answer = lambda body, number: completion("  ")
    thought = think_one(thinker(retries=2))
    assert (thought.prompt_tokens, thought.completion_tokens) == (33, 21)


def test_of_a_name_with_several_addresses_the_first_cause_is_told():
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 9)")
    error = ConnectionError("All connection attempts failed")
    error.__cause__ = ExceptionGroup("multiple connection attempts failed", [refused, OSError("other")])
    assert "Connection refused" in diagnose(error, timeout=1).reason


def test_a_failure_that_passes_leaves_no_trace(server, thinker, caplog):
    server.answer = in_turn(Answer(drop=True), Answer(status=500), completion())
    assert think_one(thinker()).text == "a thought"
    assert len(server.bodies) == 3
    assert not [each for each in caplog.records if each.name.startswith("o1_retriever")]


def test_one_bad_query_does_not_spoil_the_others(server, thinker):
    def answer(body, number):
        return refusal(400, "too long") if body["messages"][-1]["content"] == "b" else completion()

    server.answer = answer
    rows = thinker().think(as_queries(["a", "b", "c"]), settings=SETTINGS.with_changes(n_thoughts=2))
    assert [[thought.failed for thought in row] for row in rows] == [[False] * 2, [True] * 2, [False] * 2]
