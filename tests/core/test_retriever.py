"""Retriever: questions to hits, with their thoughts, over a real index."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import FingerprintError, InputError, SettingsError
from o1_retriever.search.result import SearchResult
from o1_retriever.thought import QueryEmbedding, Thought

WORDS = ("mirror", "steam", "kettle", "bubble", "tulip", "cold", "battery", "ski")
TEXTS = {
    "mirrors": "steam steam cold",
    "kettles": "kettle bubble bubble",
    "tulips": "tulip cold",
    "phones": "battery cold ski",
}
THOUGHTS = {"mirror": "steam meets cold", "phone": "a battery in the cold"}
FAST = ThoughtSettings(thinking="never")


def count_words(texts: list[str]) -> np.ndarray:
    """A vector space that everybody can see through: how often each of the words occurs."""
    return np.array([[0.01 + text.count(word) for word in WORDS] for text in texts], dtype=np.float32)


class Thinker:
    """Says what is in THOUGHTS, and counts how often it was asked."""

    identity = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def think(self, queries, *, settings, start=0):
        self.asked += [query.text for query in queries]
        count = settings.n_thoughts - start
        return [
            [Thought(text=THOUGHTS[query.text], completion_tokens=3)] * count
            if query.text in THOUGHTS
            else [Thought.failure("nothing comes to mind")] * count
            for query in queries
        ]


@pytest.fixture
def thinker():
    return Thinker()


@pytest.fixture
def embedder(thinker):
    encoder = CallableEncoder(count_words, name="words")
    return ThinkingEmbedder.from_parts(thinker, encoder, cache=False, settings=ThoughtSettings(n_thoughts=2))


@pytest.fixture
def retriever(embedder, tmp_path):
    with Index(tmp_path / "index", embedder) as index:
        index.add(
            Document(id=name, text=text, metadata={"source": f"{name}.md", "length": len(text)})
            for name, text in TEXTS.items()
        )
        yield Retriever(embedder, index)


def test_thinking_finds_what_the_question_does_not_say(retriever):
    thinking = retriever.search("mirror", k=2)
    assert [hit.id for hit in thinking] == ["mirrors", "tulips"]
    assert [hit.rank for hit in thinking.hits] == [1, 2]
    assert [thought.text for thought in thinking.thoughts] == ["steam meets cold"] * 2
    fast = retriever.search("mirror", settings=FAST)
    assert fast.thoughts == ()
    assert fast.hits[0].score < 0.2 < thinking.hits[0].score
    assert len(fast) == len(TEXTS)


def test_many_questions_are_answered_as_one_by_one(retriever, thinker):
    queries = ["phone", "mirror", "nobody knows", "phone"]
    together = retriever.search_many(queries, k=3)
    assert sorted(thinker.asked) == ["mirror", "nobody knows", "phone"]
    alone = [retriever.search(query, k=3) for query in queries]
    assert [result.query for result in together] == queries
    for one, other in zip(together, alone, strict=True):
        assert [hit.id for hit in one] == [hit.id for hit in other]
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-5)
    assert together[0].hits[0].id == "phones"


def test_a_filter_bounds_the_hits(retriever):
    assert [hit.id for hit in retriever.search("mirror", where={"source": "kettles.md"})] == ["kettles"]
    long = retriever.search_many(["mirror", "phone"], where={"length": {"$gte": 16}}, settings=FAST)
    assert [{hit.id for hit in result} for result in long] == [{"mirrors", "kettles", "phones"}] * 2


def test_a_result_is_a_sequence_of_its_hits(retriever):
    result = retriever.search("mirror", k=3)
    assert isinstance(result, Sequence)
    assert result[0] is result.hits[0]
    assert result[-1] is list(result)[-1] is next(reversed(result))
    assert result[1] in result
    assert (len(result), result.index(result[2]), bool(result)) == (3, 2, True)
    with pytest.raises(IndexError):
        result[3]
    first = result[:2]
    assert (list(first), first.thoughts, first.query) == (list(result.hits[:2]), result.thoughts, "mirror")
    assert [hit.rank for hit in result[::-1]] == [3, 2, 1]
    nothing = retriever.search("mirror", where={"source": "none.md"})
    assert not nothing
    assert list(nothing[:5]) == []


def test_no_questions_no_results(retriever):
    assert retriever.search_many([]) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"queries": ["mirror", ""]}, InputError),
        ({"queries": ["mirror", None]}, InputError),
        ({"queries": "mirror"}, InputError),
        ({"queries": ["mirror"], "k": 0}, SettingsError),
        ({"queries": ["mirror"], "k": True}, SettingsError),
        ({"queries": ["mirror"], "where": {"source": {"$nonsense": 1}}}, InputError),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anybody_thinks(retriever, thinker, arguments, error):
    with pytest.raises(error) as raised:
        retriever.search_many(**arguments)
    assert thinker.asked == []
    if len(arguments["queries"]) == 2:
        assert raised.value.position == 1


def test_one_question_must_be_text(retriever):
    with pytest.raises(InputError, match="The query is only whitespace"):
        retriever.search("  \n")


def test_an_index_of_another_space_is_refused(embedder, tmp_path):
    other = ThinkingEmbedder.from_parts(Thinker(), CallableEncoder(count_words, name="others"), cache=False)
    with (
        Index(tmp_path / "index", embedder),
        Index(tmp_path / "index", create=False) as index,
        pytest.raises(FingerprintError, match=other.space.fingerprint),
    ):
        Retriever(other, index)


def test_an_index_that_was_opened_without_an_embedder_can_be_searched(retriever, embedder, tmp_path):
    with Index(tmp_path / "index", create=False) as index:
        assert Retriever(embedder, index).search("mirror").hits[0].id == "mirrors"


def test_the_record_of_a_result(retriever):
    record = retriever.search("nobody knows", k=1).to_dict()
    assert json.loads(json.dumps(record)) == record
    failed = {"text": "", "finish": "failed", "error": "nothing comes to mind", "dropped": None}
    assert record["thoughts"] == [{**failed, "tokens": 0, "cached": False}] * 2
    assert list(record["hits"][0]) == ["rank", "relevance", "score", "id", "source", "text", "metadata"]
    record = retriever.search("mirror", k=1).to_dict()
    assert record["thought_tokens"] == 6
    assert record["hits"][0]["metadata"] == {"source": "mirrors.md", "length": 16}
    assert set(record["timings"]) == {"think_ms", "embed_ms", "search_ms"}


def test_timings_add_up(retriever):
    result = retriever.search("mirror")
    timings = result.embedding.timings
    assert result.total_ms == pytest.approx(timings.think_ms + timings.embed_ms + result.search_ms)
    assert result.search_ms > 0


def test_a_result_without_hits_is_false():
    vector = np.ones(2, np.float32)
    embedding = QueryEmbedding(query="why?", thoughts=(), vectors=vector[None], vector=vector)
    empty = SearchResult(embedding=embedding, hits=())
    assert not empty
    assert list(empty) == []
