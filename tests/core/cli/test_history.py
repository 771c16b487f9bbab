"""`o1-retriever search --history` and `think --history`: the conversation before a query, from a file."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import ok, refused

TURNS = [{"role": "user", "content": "My mirror is cold."}, {"role": "assistant", "content": "I see."}]


@pytest.fixture
def chat(here):
    (here / "chat.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in TURNS), encoding="utf-8")
    return "chat.jsonl"


def test_the_thoughts_are_written_after_it(indexed, chat):
    plain = json.loads(ok("search", "Why?", "--json"))
    after = json.loads(ok("search", "Why?", "--history", chat, "--json"))
    assert after["history"] == TURNS
    assert "history" not in plain
    assert after["prompt_tokens"] > plain["prompt_tokens"]
    assert [each["text"] for each in after["thoughts"]] != [each["text"] for each in plain["thoughts"]]
    again = json.loads(ok("search", "Why?", "--history", chat, "--json"))
    assert all(thought["cached"] for thought in again["thoughts"])


def test_it_is_said_in_the_terminal(indexed, chat):
    assert "after 2 turns of conversation" in ok("search", "Why?", "--history", chat)
    assert "conversation" not in ok("search", "Why?")
    assert "conversation" not in ok("search", "Why?", "--history", chat, "--fast")


def test_questions_from_standard_input_have_it_too(indexed, chat):
    lines = ok("search", "-", "--history", chat, "--json", stdin="Why?\nHow?\n").splitlines()
    assert [json.loads(line)["history"] for line in lines] == [TURNS, TURNS]


def test_think_reads_it_too(indexed, chat):
    plain = json.loads(ok("think", "Why?", "--json"))
    after = json.loads(ok("think", "Why?", "--history", chat, "--json"))
    assert [each["text"] for each in after["thoughts"]] != [each["text"] for each in plain["thoughts"]]
    searched = json.loads(ok("search", "Why?", "--history", chat, "--json"))
    assert [each["text"] for each in searched["thoughts"]] == [each["text"] for each in after["thoughts"]]


def test_a_file_that_cannot_be_used_is_refused_before_anything_is_loaded(indexed):
    assert "There is no file none.jsonl" in refused("search", "Why?", "--history", "none.jsonl")
    (indexed / "bad.jsonl").write_text('{"role": "wizard", "content": "x"}', encoding="utf-8")
    message = refused("search", "Why?", "--history", "bad.jsonl", "--index", "no-such-index")
    assert "Turn 0 of the history has the role 'wizard'" in message
