"""`o1-retriever calibrate`: questions with their passages in, a weight out."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import NOTES, ok, refused, run

pytest.importorskip("ir_measures", reason="needs the extra `eval`")


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_a_weight_is_found_and_said(indexed):
    names = [*NOTES]
    rows = [{"query": f"Notiz {n}?", "relevant": [names[n % len(names)]]} for n in range(12)]
    write(indexed / "questions.jsonl", rows)
    found = json.loads(ok("calibrate", "questions.jsonl", "--hybrid", "-n", "1", "--json"))
    assert found["questions"] == 12
    assert set(found["by_weight"]) == {"0", "0.5", "1", "2", "3", "6"}
    assert found["low"] <= found["gain"] <= found["high"]
    shown = ok("calibrate", "questions.jsonl", "-n", "1")
    assert "For o1-retriever.toml:" in shown
    assert "the query alone" in shown


BAD = ['{"query": "a"}', '{"query": 1, "relevant": ["a"]}', "[", '{"query": "a", "relevant": "b"}']


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_cannot_be_used_is_named(indexed, line):
    (indexed / "questions.jsonl").write_text(f"\n{line}\n")
    result = run("calibrate", "questions.jsonl")
    assert result.exit_code != 0
    assert "line 2" in result.stderr
    assert '"relevant"' in result.stderr


def test_a_file_that_is_not_there_is_named(indexed):
    result = run("calibrate", "nothing.jsonl")
    assert result.exit_code != 0
    assert "nothing.jsonl" in result.stderr


def test_the_weight_is_an_option_and_a_line_of_the_file(indexed):
    (indexed / "o1-retriever.toml").write_text("query_weight = 3\n")
    asked = ("search", "Nebel", "-n", "1", "--no-guard", "--json")
    one, other = (json.loads(ok(*asked, *more)) for more in ((), ("--query-weight", "0")))
    assert one["dropped"] == 0
    assert [hit["score"] for hit in one["hits"]] != [hit["score"] for hit in other["hits"]]


def test_what_is_not_likely_relevant_is_left_out(indexed):
    assert "o1-retriever calibrate questions.jsonl" in refused("search", "Nebel", "--min-relevance", "0.5")
    rows = [{"query": f"Notiz {n}?", "relevant": [[*NOTES][n % len(NOTES)]]} for n in range(12)]
    rows += [{"query": f"Nichts {n}?", "relevant": []} for n in range(4)]
    write(indexed / "questions.jsonl", rows)
    shown = ok("calibrate", "questions.jsonl", "-n", "1")
    assert "--min-relevance: of other questions the probabilities are off by 0." in shown
    found = json.loads(ok("search", "Nebel", "-n", "1", "--min-relevance", "0", "--json"))
    assert all(0 <= hit["probability"] <= 1 for hit in found["hits"])
    assert "nothing relevant: " in ok("search", "Nebel", "-n", "1", "--min-relevance", "1")
    explained = ok("search", "Nebel", "-n", "1", "--min-relevance", "1", "--explain")
    assert "and min_relevance is 1)" in explained
