"""Retriever: fusion, pooling and adaptive thinking over a real index, and what a result says about them."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import SettingsError
from o1_retriever.guard import Decision, Gate, calibrate, features
from o1_retriever.ranking.bm25 import Reading
from o1_retriever.search.result import SearchSettings
from o1_retriever.thought import Thought

WORDS = ("mirror", "steam", "kettle", "bubble", "tulip", "cold", "battery", "ski")
# Worth 1 where the query has none of the words, so that all documents are alike to it; else about 0.
GATE = Gate(weights=(-2.0, 0.0, 0.0, 0.0), bias=1.0, threshold=0.5)


def count_words(texts: list[str]) -> np.ndarray:
    """How often each word occurs, and a little that is each text's own, so that no two are alike."""
    counts = np.array([[0.1 + text.count(word) for word in WORDS] for text in texts], dtype=np.float32)
    own = [np.random.default_rng(zlib.crc32(text.encode())).uniform(0, 0.05, len(WORDS)) for text in texts]
    return (counts + np.array(own)).astype(np.float32)


class Thinker:
    """Thinks two different thoughts about everything, and remembers what it was asked."""

    identity = "two-thoughts"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def think(self, queries, *, settings, start=0):
        self.asked += [query.text for query in queries]
        thoughts = [Thought(text="steam steam cold"), Thought(text="tulip tulip bubble")]
        return [(thoughts * settings.n_thoughts)[start : settings.n_thoughts] for _ in queries]


@pytest.fixture
def thinker():
    return Thinker()


@pytest.fixture
def embedder(thinker, tmp_path):
    encoder = CallableEncoder(count_words, name="words")
    settings = ThoughtSettings(n_thoughts=2)
    return ThinkingEmbedder.from_parts(thinker, encoder, cache=tmp_path / "cache", settings=settings)


@pytest.fixture
def index(embedder, tmp_path):
    draw = np.random.default_rng(1)
    with Index(tmp_path / "index", embedder) as index:
        index.add(
            Document(id=f"d{n:03d}", text=" ".join(draw.choice(WORDS, size=6)), metadata={"n": n})
            for n in range(60)
        )
        yield index


def ids(result) -> list[str]:
    return [hit.id for hit in result.hits]


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "best"])
@pytest.mark.parametrize("where", [None, {"n": {"$gte": 20}}])
def test_pooling_and_fusion_are_those_of_their_definitions(embedder, index, hybrid, pooling, where):
    retriever = Retriever(embedder, index, hybrid=hybrid, pooling=pooling)
    queries = ["mirror battery", "ski", "kettle tulip", "ski"]
    together = retriever.search_many(queries, k=7, where=where)
    for query, result in zip(queries, together, strict=True):
        embedding = embedder.embed_query(query)
        assert len(embedding.vectors) == 2
        group = embedding.vectors if pooling == "best" else embedding.vector[None]
        texts = [Reading.of(query, embedding.thoughts)] if hybrid else None
        (expected,) = index.search_groups([group], texts=texts, k=7, where=where)
        assert ids(result) == [hit.id for hit in expected]
        assert ids(retriever.search(query, k=7, where=where)) == ids(result)
        every = index.vectors(ids(result)) @ group.T
        assert [hit.score for hit in result] == pytest.approx(every.max(axis=1).tolist(), abs=1e-5)
        assert (result.hits[0].fused_score is not None) == hybrid
        assert (result.how.pooling, result.how.hybrid) == (pooling, hybrid)


def test_the_best_thought_finds_what_the_mean_does_not(embedder, index):
    retriever = Retriever(embedder, index)
    mean, best = (retriever.search("ski", k=60, pooling=pooling) for pooling in ("mean", "best"))
    assert ids(mean) != ids(best)
    vectors = embedder.embed_query("ski").vectors
    brute = (index.vectors(sorted(index.ids())) @ vectors.T).max(axis=1)
    assert [hit.score for hit in best] == pytest.approx(sorted(brute.tolist(), reverse=True), abs=1e-5)


def test_bm25_reads_the_thoughts_too(embedder, index, thinker):
    retriever = Retriever(embedder, index, hybrid=True)
    assert any(hit.lexical_rank for hit in retriever.search("unheard", k=60))
    assert not any(hit.lexical_rank for hit in retriever.search("unheard", k=60, thinking="never"))
    assert thinker.asked == ["unheard"]


def test_auto_thinks_where_the_fast_ranking_is_unclear(embedder, index, thinker):
    retriever = Retriever(embedder, index, thinking="auto", gate=GATE)
    clear, unclear, again = retriever.search_many(["mirror mirror", "unheard", "unheard"], k=5)
    assert thinker.asked == ["unheard"]
    assert (clear.decision.think, unclear.decision.think) == (False, True)
    assert clear.thoughts == ()
    assert clear.decision.worth < GATE.threshold <= unclear.decision.worth
    assert ids(clear) == ids(retriever.search("mirror mirror", k=5, thinking="never"))
    assert ids(unclear) == ids(again) == ids(retriever.search("unheard", k=5, thinking="always"))
    assert unclear.embedding.thought_about
    assert clear.search_ms > 0


@pytest.mark.parametrize("threshold", [-np.inf, np.inf])
@pytest.mark.parametrize("hybrid", [False, True])
def test_auto_is_between_always_and_never(embedder, index, threshold, hybrid):
    retriever = Retriever(embedder, index, hybrid=hybrid, pooling="best")
    gate = Gate(threshold=threshold)
    mode = "always" if threshold < 0 else "never"
    queries = ["mirror", "ski cold", "unheard"]
    auto = retriever.search_many(queries, thinking="auto", gate=gate)
    plain = retriever.search_many(queries, thinking=mode)
    assert [ids(result) for result in auto] == [ids(result) for result in plain]
    assert [len(result.thoughts) for result in auto] == [len(result.thoughts) for result in plain]


def test_a_second_auto_search_runs_no_model(embedder, index, thinker):
    retriever = Retriever(embedder, index, thinking="auto", gate=GATE)
    first = retriever.search("unheard")
    assert retriever.search("unheard").thoughts == first.thoughts
    assert thinker.asked == ["unheard"]


def test_few_documents_say_little_and_are_thought_about(embedder, index):
    gate = Gate(threshold=np.inf)
    result = Retriever(embedder, index).search("mirror", where={"n": {"$lt": 5}}, thinking="auto", gate=gate)
    assert result.decision == Decision(
        think=True, reason="the fast ranking has only 5 documents", threshold=np.inf
    )
    assert len(result.hits) == 5


def test_who_says_never_last_is_heard(embedder, index, thinker):
    never = ThoughtSettings(thinking="never")
    for options in ({}, {"thinking": "always"}, {"thinking": "auto"}):
        result = Retriever(embedder, index, **options).search("mirror", settings=never)
        assert not result.decision.think
        assert result.thoughts == ()
    assert thinker.asked == []
    assert Retriever(embedder, index).search("ski", settings=never, thinking="always").thoughts
    embedder.settings = never
    assert not Retriever(embedder, index).search("mirror").thoughts
    assert (
        Retriever(embedder, index, thinking="always").search("mirror").decision.reason == "thinking='always'"
    )


def test_the_record_says_what_was_done(embedder, index):
    result = Retriever(embedder, index, hybrid=True, thinking="auto", gate=GATE).search("unheard", k=2)
    record = result.to_dict()
    assert json.loads(json.dumps(record)) == record
    how = {"hybrid": True, "pooling": "mean", "rounds": 1}
    assert record["search"] == {**how, **result.decision.to_dict()}
    assert list(record["hits"][0])[:3] == ["rank", "relevance", "score"]
    assert list(record["hits"][0])[-3:] == ["dense_rank", "lexical_rank", "lexical_score"]


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "max"},
        {"thinking": "sometimes"},
        {"hybrid": 1},
        {"depth": 0},
        {"gate": 0.5},
        {"fusion": True},
    ],
)
def test_settings_that_cannot_be_are_refused_before_anybody_thinks(embedder, index, thinker, options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        Retriever(embedder, index, **options)
    with pytest.raises(SettingsError, match=next(iter(options))):
        Retriever(embedder, index).search("mirror", **options)
    assert thinker.asked == []


def test_the_bare_embedder_says_where_auto_belongs():
    with pytest.raises(SettingsError, match="Retriever\\(embedder, index, thinking='auto'\\)"):
        ThoughtSettings(thinking="auto")


def test_settings_as_json():
    record = SearchSettings(hybrid=True, pooling="best").to_dict()
    assert json.loads(json.dumps(record))["pooling"] == "best"


def test_features_do_not_depend_on_the_scale_of_an_encoder():
    scores = np.sort(np.random.default_rng(0).uniform(0.2, 0.8, 100))[::-1]
    assert features(scores * 7) == pytest.approx(features(scores))
    assert features(scores + 3)[1:] == pytest.approx(features(scores)[1:])
    for flat in (np.ones(100), np.zeros(20)):
        assert np.isfinite(features(flat)).all()


def test_calibration_finds_what_makes_thinking_worth_it():
    draw = np.random.default_rng(0)
    rankings, gains = [], []
    for number in range(200):
        scores = np.sort(draw.normal(0.4, 0.02, 100))[::-1].copy()
        if number % 2:
            scores[0] = 0.8  # one document stands out: thinking adds nothing
        rankings.append(scores)
        gains.append(0.0 if number % 2 else 0.3)
    gate = calibrate(rankings, gains)
    thinks = np.array([gate.decide(scores).think for scores in rankings])
    assert sum(np.array(gains)[thinks]) >= 0.95 * sum(gains)
    assert thinks.mean() <= 0.5
    with pytest.raises(SettingsError, match="200 rankings and 199 gains"):
        calibrate(rankings, gains[1:])
    with pytest.raises(SettingsError, match="keep"):
        calibrate(rankings, gains, keep=0)


def test_no_gain_no_threshold():
    scores = [np.linspace(1, 0, 100)] * 20
    assert calibrate(scores, [0.0] * 20).threshold < np.inf
