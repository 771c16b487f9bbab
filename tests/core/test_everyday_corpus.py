"""The corpus in cookbook/data/everyday: its layout, its judgments, and how hard its questions are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "cookbook" / "data" / "everyday"
SPLITS = ("dev", "test")
HEADER = ["query-id", "corpus-id", "score"]

if not FOLDER.parents[1].is_dir():
    pytest.skip("the source distribution has no cookbook", allow_module_level=True)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


# Words that carry no subject of their own. Whatever else a question contains counts as a content word.
STOP_WORDS = frozenset(
    words(
        """
        a about after all an and any are as at away be been but by can come could did do does down each every
        everyone everything for from get give had has have he her his how i if in into is it its me more most
        much my no nor not nothing of off on once one only or our out over own s same she should so some still
        t than that the their them then there these they this those through to too two under until up was we
        were what when whenever where which while who whose why will with without would yet you your
        """
    )
)


def read_jsonl(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def read_judgments(split: str) -> list[tuple[str, str, int]]:
    header, *rows = (FOLDER / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == HEADER
    judgments = []
    for row in rows:
        query, passage, score = row.split("\t")
        judgments.append((query, passage, int(score)))
    return judgments


def stem(word: str) -> str:
    """Take common endings off, so that 'salted' and 'salt', or 'roads' and 'road', count as one word."""
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "ly", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word


def shared_words(question: str, passage: str) -> float:
    """The share of the question's content words that stand in the passage."""
    wanted = {stem(word) for word in words(question) if word not in STOP_WORDS}
    return len(wanted & {stem(word) for word in words(passage)}) / len(wanted)


@pytest.fixture(scope="module")
def corpus() -> list[dict]:
    return read_jsonl("corpus.jsonl")


@pytest.fixture(scope="module")
def queries() -> list[dict]:
    return read_jsonl("queries.jsonl")


@pytest.fixture(scope="module")
def judgments() -> dict[str, list[tuple[str, str, int]]]:
    return {split: read_judgments(split) for split in SPLITS}


def test_counts(corpus, queries):
    kinds = Counter(query["metadata"]["kind"] for query in queries)
    assert len(corpus) >= 120
    assert len(queries) >= 40
    assert set(kinds) == {"reasoning", "direct"}
    assert kinds["reasoning"] >= 25


def test_passages(corpus):
    for passage in corpus:
        assert set(passage) == {"_id", "title", "text"}
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", passage["_id"])
        assert passage["title"].strip() == passage["title"] != ""
        assert passage["text"] == " ".join(passage["text"].split())
        assert 40 <= len(passage["text"].split()) <= 90, passage["_id"]


def test_passages_are_distinct_and_in_order(corpus):
    ids = [passage["_id"] for passage in corpus]
    assert ids == sorted(set(ids))
    assert len({passage["title"] for passage in corpus}) == len(corpus)
    assert len({passage["text"] for passage in corpus}) == len(corpus)


def test_queries(queries):
    assert [query["_id"] for query in queries] == [f"q{number:02d}" for number in range(1, len(queries) + 1)]
    assert len({query["text"] for query in queries}) == len(queries)
    for query in queries:
        assert set(query) == {"_id", "text", "metadata"}
        assert set(query["metadata"]) == {"kind"}
        assert 5 <= len(query["text"].split()) <= 30


def test_judgments_name_what_exists(corpus, queries, judgments):
    passages = {passage["_id"] for passage in corpus}
    asked = {query["_id"] for query in queries}
    for split in SPLITS:
        rows = judgments[split]
        assert {query for query, _, _ in rows} <= asked
        assert {passage for _, passage, _ in rows} <= passages
        assert {score for _, _, score in rows} <= {1, 2}
        assert len({(query, passage) for query, passage, _ in rows}) == len(rows)


def test_every_query_is_judged_in_one_split(queries, judgments):
    members = {split: {query for query, _, _ in judgments[split]} for split in SPLITS}
    assert not members["dev"] & members["test"]
    assert members["dev"] | members["test"] == {query["_id"] for query in queries}
    per_query = Counter(query for split in SPLITS for query, _, _ in judgments[split])
    assert max(per_query.values()) <= 4


def test_every_query_has_an_answer(queries, judgments):
    answered = {query for split in SPLITS for query, _, score in judgments[split] if score == 2}
    assert answered == {query["_id"] for query in queries}


def test_the_test_split_has_questions_of_both_kinds(queries, judgments):
    kind = {query["_id"]: query["metadata"]["kind"] for query in queries}
    counts = Counter(kind[query] for query in {query for query, _, _ in judgments["test"]})
    assert counts["reasoning"] >= 25
    assert counts["direct"] >= 5


def test_reasoning_questions_share_few_words_with_their_answers(corpus, queries, judgments):
    text = {passage["_id"]: f"{passage['title']} {passage['text']}" for passage in corpus}
    answers: dict[str, list[str]] = {}
    for split in SPLITS:
        for query, passage, score in judgments[split]:
            if score == 2:
                answers.setdefault(query, []).append(passage)
    shares = {
        query["_id"]: max(shared_words(query["text"], text[passage]) for passage in answers[query["_id"]])
        for query in queries
        if query["metadata"]["kind"] == "reasoning"
    }
    assert {query: share for query, share in shares.items() if share > 0.34} == {}
    assert sum(shares.values()) / len(shares) < 0.2


def test_shared_words_counts_inflected_forms():
    assert shared_words("Why was the road salted?", "Roads are treated with salt.") == 1.0
    assert shared_words("Do batteries sag in winter?", "A battery sags when cold.") == pytest.approx(2 / 3)
    assert shared_words("Why is the kettle loud?", "The water is hot.") == 0.0
