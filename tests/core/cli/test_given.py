"""`o1-retriever search --thought`: thoughts from the command line, and no thinker."""

from __future__ import annotations

import json

from tests.support.commands import ok, refused, run

OWN = ("--thought", "Steam condenses on cold glass.", "--thought", "Mirrors are cold.")


def test_they_are_used_and_none_is_written(indexed):
    found = json.loads(ok("search", "Why?", *OWN, "--json"))
    assert [each["text"] for each in found["thoughts"]] == list(OWN[1::2])
    assert {each["finish"] for each in found["thoughts"]} == {"given"}
    assert found["thought_tokens"] == found["prompt_tokens"] == 0
    assert "2 thoughts given" in ok("search", "Why?", *OWN, "--explain")
    assert "Mirrors are cold." in ok("search", "Why?", *OWN, "--hybrid", "--thinking", "auto")


def test_they_are_about_one_question(indexed):
    result = run("search", "-", *OWN, stdin="Why?\nHow?\n")
    assert result.exit_code == 2
    assert "thoughts and no question" in result.stderr
    assert "thought 0 is empty" in refused("search", "Why?", "--thought", "")
