"""The demo, on the repository's own collection with a tiny model, and what it says about thinking."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from o1_retriever.cli.demo_view import _conclusion
from o1_retriever.cli.everyday import Quality, find_everyday, measure, rank_of_answer, read_everyday
from o1_retriever.index.hits import Hit
from o1_retriever.search.retriever import SearchResult
from o1_retriever.thought import QueryEmbedding
from tests.support.commands import ok, refused


@pytest.fixture
def clone(root, here):
    source = root / "cookbook" / "data" / "everyday"
    if not source.is_dir():
        pytest.skip("the source distribution has no cookbook")
    return shutil.copytree(source, here / "cookbook" / "data" / "everyday")


def test_the_demo_from_end_to_end(clone, other_model):
    said = ok("demo", "-k", "1", "--max-new-tokens", "3")
    dev = [line.split("\t")[0] for line in (clone / "qrels" / "dev.tsv").read_text().splitlines()[1:]]
    text = {row["_id"]: row["text"] for row in map(json.loads, (clone / "queries.jsonl").open())}
    first = list(dict.fromkeys(dev))[:5]
    flat = " ".join(said.split())
    places = [flat.index(text[question]) for question in first]
    assert places == sorted(places)
    assert len(re.findall(r"Right passage: (rank \d+|not among the first 10) with thinking, ", flat)) == 5
    assert re.search(r"dev 20 without thinking \d+% 0\.\d{3} with thinking", flat)
    assert re.search(r"test 40 without thinking", flat)
    assert re.search(r"Over all 60 questions thinking (helped|hurt|made no clear difference): nDCG@10 ", flat)
    assert "o1-retriever index FOLDER" in said
    assert "from the cache" not in said
    again = ok("demo", "-k", "1", "--max-new-tokens", "3")
    assert "The thoughts came from the cache of an earlier run." in " ".join(again.split())
    assert again.split("Over all")[0] == said.split("Over all")[0]
    index = re.search(r"--index (\S+)", said)[1]
    assert "Hits" in ok("search", "Why?", "--fast", "--index", index)
    # Another model: the demo makes its own index anew instead of complaining.
    assert "Over all 60" in ok("demo", "-k", "1", "--max-new-tokens", "1", "--model", str(other_model))


def test_a_collection_that_has_been_damaged_is_named(clone):
    (clone / "queries.jsonl").write_text("{not json\n")
    assert "queries.jsonl" in refused("demo")


def test_the_collection_is_found_in_the_clone_that_the_package_lies_in(root, here):
    if not (root / "cookbook").is_dir():
        pytest.skip("the source distribution has no cookbook")
    assert find_everyday() == root / "cookbook" / "data" / "everyday"


def test_documents_keep_their_title_and_their_id(clone):
    everyday = read_everyday(clone)
    document = next(one for one in everyday.documents if one.id == "dew-point")
    assert document.text.startswith(f"{document.metadata['title']} ")
    assert everyday.answers("q20") == {"dew-point"}
    assert len(everyday.questions) == 60


def result(*ids: str) -> SearchResult:
    vector = np.ones(2, np.float32)
    hits = [Hit(id=name, text=name, score=1 - rank / 10, rank=rank) for rank, name in enumerate(ids, 1)]
    embedding = QueryEmbedding(query="?", thoughts=(), vectors=vector[None], vector=vector)
    return SearchResult(embedding=embedding, hits=tuple(hits))


def test_quality_of_rankings():
    judgments = {"q1": {"a": 2, "b": 1}, "q2": {"c": 2}, "q3": {"d": 2, "e": 1}}
    found = {"q1": result("a", "b"), "q2": result("x", "y"), "q3": result("e", "d")}
    quality = measure(judgments, found)
    assert quality.first == {"q1": 1.0, "q2": 0.0, "q3": 0.0}  # helping is not answering
    swapped = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert quality.gain == pytest.approx({"q1": 1.0, "q2": 0.0, "q3": swapped})
    assert rank_of_answer({"d"}, found["q3"]) == 2
    assert rank_of_answer({"c"}, found["q2"]) is None


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.5, 0.1, -0.3], "thinking helped: nDCG@10 +0.100; better on 2, worse on 1, the same on 0."),
        ([-0.5, 0.0], "thinking hurt: nDCG@10 -0.250; better on 0, worse on 1, the same on 1."),
        ([0.5, -0.1, -0.1], "made no clear difference: nDCG@10 +0.100; better on 1, worse on 2,"),
        ([0.02, 0.0, 0.0], "made no clear difference: nDCG@10 +0.007; better on 1, worse on 0,"),
        ([0.0], "made no clear difference: nDCG@10 +0.000; better on 0, worse on 0, the same on 1."),
    ],
)
def test_the_conclusion_is_what_was_seen(gains, expected):
    fast = Quality(first={}, gain={str(number): 0.5 for number in range(len(gains))})
    thinking = Quality(first={}, gain={str(number): 0.5 + gain for number, gain in enumerate(gains)})
    assert expected in _conclusion([(fast, thinking)])
