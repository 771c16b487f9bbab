"""Thoughts that the caller brings: composed and cached as written ones are, and nobody is asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from o1_retriever import Index, Retriever, ThinkingEmbedder, Thought, ThoughtSettings
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import InputError, ThinkerError
from o1_retriever.query import Query, as_queries
from o1_retriever.ranking.bm25 import Bm25
from tests.support.adapters import (
    ALWAYS_WORTH_IT,
    BREAD,
    FAST,
    NEVER_WORTH_IT,
    QUERY,
    THOUGHT,
    Mind,
    bag_of_words,
    many_documents,
)
from tests.support.tiny import tiny_model


class Unasked:
    """A thinker that nobody may ask."""

    @property
    def identity(self) -> str:
        raise AssertionError("asked for its name")

    def think(self, queries: Any, *, settings: ThoughtSettings, start: int = 0) -> Any:
        raise AssertionError(f"asked about {queries}")


class Doubted:
    """A small thinker, beside whose own thoughts the query counts three times."""

    identity = None
    default_settings: ClassVar[dict[str, Any]] = {"query_weight": 3.0, "n_thoughts": 2}

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        return [[Thought(text=text) for text in (THOUGHT, BREAD)][start:] for _ in queries]


WEIGHED = ThoughtSettings(n_thoughts=2, query_weight=3.0)
ENCODER = CallableEncoder(bag_of_words, name="bag of words")


def embedder(thinker: Any, cache: Any = False) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_parts(thinker, ENCODER, settings=ThoughtSettings(n_thoughts=2), cache=cache)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    index = Index(tmp_path_factory.mktemp("index"), embedder(Unasked()))
    index.add(many_documents())
    return index


class TestEmbedding:
    @pytest.mark.parametrize("settings", [None, FAST, ThoughtSettings(n_thoughts=1, query_weight=0.5)])
    async def test_they_are_embedded_as_written_ones_are(self, settings: ThoughtSettings | None) -> None:
        written = embedder({QUERY: [THOUGHT, BREAD]})
        weight = None if settings is None else settings.query_weight
        expected = written.embed_query(QUERY, settings=written.settings.with_changes(query_weight=weight))
        unasked = embedder(Unasked())
        found = unasked.embed_query(QUERY, thoughts=[THOUGHT, BREAD], settings=settings)
        awaited = await embedder(Mind()).aembed_query(QUERY, thoughts=[THOUGHT, BREAD], settings=settings)
        for each in (found, awaited):
            np.testing.assert_array_equal(each.vector, expected.vector)
            np.testing.assert_array_equal(each.vectors, expected.vectors)
            assert [(thought.text, thought.finish) for thought in each.thoughts] == [
                (THOUGHT, "given"),
                (BREAD, "given"),
            ]
            assert each.thought_tokens == each.prompt_tokens == 0

    async def test_they_count_in_full_where_the_thinker_is_doubted_unless_a_weight_is_named(self) -> None:
        def made() -> ThinkingEmbedder:
            return ThinkingEmbedder.from_parts(Doubted(), ENCODER, cache=False)

        in_full = embedder({QUERY: [THOUGHT, BREAD]}).embed_query(QUERY)
        weighed = embedder({QUERY: [THOUGHT, BREAD]}).embed_query(QUERY, settings=WEIGHED)
        assert not np.allclose(in_full.vector, weighed.vector, atol=1e-3)
        np.testing.assert_array_equal(made().embed_query(QUERY).vector, weighed.vector)
        queries, thoughts = [QUERY, QUERY], [[THOUGHT, BREAD], None]
        for own, written in (
            made().embed_queries(queries, thoughts=thoughts),
            await made().aembed_queries(queries, thoughts=thoughts),
        ):
            np.testing.assert_array_equal(own.vector, in_full.vector)
            np.testing.assert_array_equal(written.vector, weighed.vector)
        named = made().embed_query(QUERY, thoughts=[THOUGHT, BREAD], settings=WEIGHED)
        np.testing.assert_array_equal(named.vector, weighed.vector)

    async def test_some_queries_bring_theirs_and_some_do_not(self) -> None:
        mind = Mind()
        queries = [QUERY, QUERY, "Tides?"]
        given = [[BREAD], None, []]
        found = embedder(mind).embed_queries(queries, thoughts=given)
        awaited = await embedder(Mind()).aembed_queries(queries, thoughts=given)
        for some in (found, awaited):
            texts = [[thought.text for thought in each.thoughts] for each in some]
            assert texts == [[BREAD], [THOUGHT, THOUGHT], []]
        assert mind.asked == [QUERY]
        alone = embedder(mind).embed_query("Tides?", settings=FAST)
        np.testing.assert_array_equal(found[2].vector, alone.vector)

    def test_thoughts_of_an_embedding_can_be_brought_again_without_those_that_failed(self) -> None:
        before = embedder({QUERY: [None, THOUGHT]}).embed_query(QUERY)
        after = embedder(Unasked()).embed_query(QUERY, thoughts=before.thoughts)
        np.testing.assert_array_equal(after.vector, before.vector)
        assert [thought.text for thought in after.thoughts] == [THOUGHT]

    def test_a_model_that_does_both_embeds_them(self) -> None:
        model, tokenizer = tiny_model("qwen2", layout="paper")
        local = ThinkingEmbedder.from_model(
            model, tokenizer, settings=ThoughtSettings(n_thoughts=1), cache=False
        )
        fast = local.embed_query("mirror", settings=FAST)
        some, others = (local.embed_query("mirror", thoughts=[text]) for text in ("steam", "bread and dough"))
        assert not np.allclose(some.vector, fast.vector, atol=1e-4)
        assert not np.allclose(some.vector, others.vector, atol=1e-4)
        np.testing.assert_allclose(local.embed_query("mirror", thoughts=[]).vector, fast.vector, atol=1e-6)

    def test_think_and_a_stream_hand_them_back(self) -> None:
        (query,) = as_queries([QUERY], thoughts=[[BREAD]])
        assert [thought.text for thought in embedder(Unasked()).think([query])[0]] == [BREAD]
        pieces = list(embedder(Unasked()).stream_thoughts(query))
        assert [(piece.text, piece.thought.text) for piece in pieces if piece.thought] == [(BREAD, BREAD)]


class TestCache:
    def test_their_vectors_are_kept_and_they_are_not(self, tmp_path: Path) -> None:
        asked: list[str] = []

        def encode(texts: list[str]) -> np.ndarray:
            asked.extend(text for text in texts if text.startswith(QUERY))
            return bag_of_words(texts)

        def made() -> ThinkingEmbedder:
            encoder = CallableEncoder(encode, name="counted")
            settings = ThoughtSettings(n_thoughts=1)
            return ThinkingEmbedder.from_parts({QUERY: [THOUGHT]}, encoder, settings=settings, cache=tmp_path)

        given = made().embed_query(QUERY, thoughts=[BREAD])
        again = made().embed_query(QUERY, thoughts=[BREAD])
        np.testing.assert_array_equal(given.vector, again.vector)
        assert asked == [f"{QUERY} {BREAD}"]
        # They are not taken for the thinker's, nor its for theirs.
        cache = made().cache
        assert cache is not None
        assert cache.info().thoughts == 0
        assert made().embed_query(QUERY).thoughts[0].text == THOUGHT
        assert made().embed_query(QUERY, thoughts=[BREAD]).thoughts[0].text == BREAD
        # A thought that was written has the vector that it had when it was brought.
        assert made().embed_query(QUERY, thoughts=[THOUGHT]).thoughts[0].finish == "given"
        assert asked == [f"{QUERY} {BREAD}", f"{QUERY} {THOUGHT}"]


class TestSearching:
    async def test_a_loop_does_not_wait_until_the_words_are_imported(
        self, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("bm25s", reason="needs the extra `index`")
        threads, real = [], Bm25.identity
        named = staticmethod(lambda: threads.append(threading.current_thread()) or real())
        monkeypatch.setattr(Bm25, "identity", named)
        await Retriever(embedder(Mind()), index, hybrid=True).asearch(QUERY, k=1)
        assert threads[0] is not threading.main_thread()

    @pytest.mark.parametrize("options", [{}, {"pooling": "best"}, {"thinking": "never"}, {"hybrid": True}])
    async def test_a_search_finds_what_they_lead_to(self, index: Index, options: dict[str, Any]) -> None:
        if options.get("hybrid"):
            pytest.importorskip("bm25s", reason="needs the extra `index`")
        retriever = Retriever(embedder(Unasked()), index, **options)
        found = retriever.search(QUERY, k=1, thoughts=[BREAD])
        assert [hit.id for hit in found] == ["bread"]
        assert (found.decision.think, found.decision.reason) == (True, "1 thought given")
        many = retriever.search_many([QUERY, QUERY], k=1, thoughts=[[BREAD], [THOUGHT]])
        assert [hit.id for result in many for hit in result] == ["bread", "vapour"]
        awaited = await Retriever(embedder(Mind()), index, **options).asearch(QUERY, k=1, thoughts=[BREAD])
        assert [hit.id for hit in awaited] == ["bread"]
        assert not retriever.search(QUERY, k=1, thoughts=[]).decision.think

    async def test_bm25_reads_them_in_full_where_the_thinker_is_doubted(self, index: Index) -> None:
        pytest.importorskip("bm25s", reason="needs the extra `index`")
        doubted = ThinkingEmbedder.from_parts(Doubted(), ENCODER, cache=False)
        retriever = Retriever(doubted, index, hybrid=True)

        def scores(found: Any) -> list[float]:
            return [hit.lexical_score for hit in found]

        written, own = retriever.search_many([QUERY, QUERY], thoughts=[None, [THOUGHT, BREAD]])
        awaited = await retriever.asearch(QUERY, thoughts=[THOUGHT, BREAD])
        plain = Retriever(embedder({QUERY: [THOUGHT, BREAD]}), index, hybrid=True)
        assert scores(own) == scores(awaited) == scores(plain.search(QUERY)) != scores(written)

    def test_the_gate_decides_about_the_others_alone(self, index: Index) -> None:
        mind = Mind()
        retriever = Retriever(embedder(mind), index, thinking="auto", gate=NEVER_WORTH_IT)
        first, second = retriever.search_many([QUERY, QUERY], k=1, thoughts=[None, [BREAD]])
        assert (first.decision.think, second.decision.think) == (False, True)
        assert ([hit.id for hit in first], [hit.id for hit in second]) == (["mirror"], ["bread"])
        assert mind.asked == []
        retriever.search_many([QUERY, QUERY], k=1, thoughts=[None, [BREAD]], gate=ALWAYS_WORTH_IT)
        assert mind.asked == [QUERY]

    @pytest.mark.parametrize("thinking", ["always", "auto", "never"])
    async def test_an_explanation_compares_with_the_query_alone(self, index: Index, thinking: Any) -> None:
        retriever = Retriever(embedder(Mind()), index, thinking=thinking)
        for found in (
            retriever.explain(QUERY, k=1, thoughts=[BREAD, THOUGHT]),
            await retriever.aexplain(QUERY, k=1, thoughts=[BREAD, THOUGHT]),
        ):
            assert [hit.id for hit in found.without] == ["mirror"]
            assert [[hit.id for hit in hits] for _, hits in found.per_thought] == [["bread"], ["vapour"]]
            assert "2 thoughts given" in str(found)

    def test_a_record_tells_that_they_were_given(self, index: Index) -> None:
        record = Retriever(embedder(Unasked()), index).search(QUERY, thoughts=[BREAD]).to_dict()
        assert record["thoughts"][0] == {
            "text": BREAD, "finish": "given", "error": None, "dropped": None, "tokens": 0, "cached": False
        }  # fmt: skip
        assert record["thought_tokens"] == 0


class TestNobodyThinks:
    def test_an_encoder_alone_takes_them(self, index: Index) -> None:
        alone = ThinkingEmbedder.from_parts(None, ENCODER, cache=False)
        retriever = Retriever(alone, index)
        assert [hit.id for hit in retriever.search(QUERY, k=1)] == ["mirror"]
        assert [hit.id for hit in retriever.search(QUERY, k=1, thoughts=[THOUGHT])] == ["vapour"]
        with pytest.raises(ThinkerError, match="no thinker; expected one") as raised:
            retriever.search(QUERY, thinking="always")
        assert "thoughts=" in str(raised.value)


@pytest.mark.parametrize(
    ("thoughts", "message"),
    [
        ("Glass is cold.", "The thoughts are one str; expected a list"),
        ({"a": 1}, "The thoughts are a dict; expected a list"),
        ([""], "thought 0 is empty"),
        ([THOUGHT, 3], "thought 1 is int 3"),
        ([None], "thought 0 is None"),
        ([np.zeros(2)], "thought 0 is ndarray"),
        ([THOUGHT, "\ud800"], "thought 1 has a lone surrogate"),
    ],
)
def test_what_cannot_be_a_thought_is_refused(thoughts: Any, message: str) -> None:
    unasked = embedder(Unasked())
    with pytest.raises(InputError, match=message):
        unasked.embed_query(QUERY, thoughts=thoughts)
    with pytest.raises(InputError, match=f"Query 1: {message}") as raised:
        unasked.embed_queries(["a", QUERY], thoughts=[None, thoughts])
    assert raised.value.position == 1


def test_there_is_one_list_for_each_query() -> None:
    unasked = embedder(Unasked())
    with pytest.raises(InputError, match="Found 1 list of thoughts for 2 queries; expected one each"):
        unasked.embed_queries(["a", "b"], thoughts=[[THOUGHT]])
    with pytest.raises(InputError, match="thoughts is a str; expected a list with one list of thoughts"):
        unasked.embed_queries(["a"], thoughts=THOUGHT)


def test_a_failure_stays_out_and_a_thought_keeps_its_text_alone() -> None:
    theirs = Thought(text=BREAD, token_ids=(1, 2), completion_tokens=9)
    found = embedder(Unasked()).embed_query(QUERY, thoughts=[Thought.failure("no"), theirs])
    assert found.thoughts == (Thought(text=BREAD, finish="given"),)


def test_a_thought_without_a_word_is_handed_on_as_none() -> None:
    theirs = [Thought(text="", finish="eos"), Thought(text=BREAD)]
    assert [each.text for each in embedder(Unasked()).embed_query(QUERY, thoughts=theirs).thoughts] == [BREAD]
