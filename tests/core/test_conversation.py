"""A query with its history: what is read, what the thinker sees, and what stays as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from o1_retriever import Index, Retriever, ThinkingEmbedder, Thought, ThoughtSettings
from o1_retriever.cache import ThoughtCache, cache_key
from o1_retriever.documents import Document
from o1_retriever.errors import InputError, ThinkerError
from o1_retriever.query import Conversation, as_queries, as_query
from o1_retriever.search.result import SearchResult
from o1_retriever.thinkers import ChatPrompt, OpenAIThinker, RecordedThinker
from tests.support.adapters import ALWAYS_WORTH_IT, QUERY, TEXTS, bag_of_words
from tests.support.chat_server import chat_server, completion, refusal
from tests.support.tiny import tiny_model

SAID = [("human", "My mirror is in the bathroom."), {"role": "assistant", "content": "I see."}]
OTHER = [("user", "I bake bread."), ("ai", "Lovely.")]
SETTINGS = ThoughtSettings(n_thoughts=2, temperature=1.0, top_p=0.95, max_new_tokens=8, guard=False)


VAPOUR = [("user", "Where does the vapour go?"), ("assistant", "Warm water vapour condenses as droplets.")]


class Listener:
    """Thinks the last thing that was said, and remembers what it was asked."""

    identity = "listener"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def think(self, queries, *, settings, start=0):
        self.asked += [(query.text, len(query.history)) for query in queries]
        histories = [query.history.messages for query in queries]
        last = [history[-1].content if history else "nothing" for history in histories]
        return [[Thought(text=text)] * (settings.n_thoughts - start) for text in last]


def ids(result: SearchResult) -> list[str]:
    return [hit.id for hit in result]


def listening(cache: Any = False, listener: Listener | None = None) -> ThinkingEmbedder:
    from o1_retriever.encoders import CallableEncoder

    encoder = CallableEncoder(bag_of_words, name="bag of words")
    return ThinkingEmbedder.from_parts(listener or Listener(), encoder, settings=SETTINGS, cache=cache)


@pytest.fixture(scope="module", params=["paper", "released"])
def embedder(request: pytest.FixtureRequest) -> ThinkingEmbedder:
    model, tokenizer = tiny_model("qwen2", layout=request.param)
    return ThinkingEmbedder.from_model(model, tokenizer, settings=SETTINGS, cache=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    index = Index(tmp_path_factory.mktemp("index"), listening())
    index.add([Document(id=name, text=text) for name, text in TEXTS.items()])
    return index


class TestThinkingAfterIt:
    def test_the_thought_sees_it_and_the_embedding_shows_it(self) -> None:
        plain, after = listening().embed_query(QUERY), listening().embed_query(QUERY, history=SAID)
        assert [thought.text for thought in plain.thoughts] == ["nothing"] * 2
        assert [thought.text for thought in after.thoughts] == ["I see."] * 2
        assert plain.history == Conversation()
        assert after.history == Conversation.of(SAID)
        expected = bag_of_words([f"{QUERY} I see."])[0]
        np.testing.assert_allclose(after.vector, expected / np.linalg.norm(expected), rtol=1e-5)

    def test_each_query_of_a_batch_has_its_own(self) -> None:
        listener = Listener()
        rows = listening(listener=listener).embed_queries(
            ["a", "a", "b", "a"], histories=[SAID, None, OTHER, SAID]
        )
        assert [row.thoughts[0].text for row in rows] == ["I see.", "nothing", "Lovely.", "I see."]
        assert listener.asked == [("a", 2), ("a", 0), ("b", 2)]
        one_by_one = listening().embed_queries(["a", "b"], histories=[SAID, OTHER], batch_size=1)
        assert [row.thoughts[0].text for row in one_by_one] == ["I see.", "Lovely."]

    def test_histories_are_checked_before_anything_is_thought(self) -> None:
        listener = Listener()
        embedder = listening(listener=listener)
        with pytest.raises(InputError, match="Found 1 history for 2 queries"):
            embedder.embed_queries(["a", "b"], histories=[SAID])
        with pytest.raises(InputError, match="History 1: Turn 0") as caught:
            embedder.embed_queries(["a", "b"], histories=[SAID, ["x"]])
        assert caught.value.position == 1
        with pytest.raises(InputError, match="histories is a Conversation"):
            embedder.embed_queries(["a"], histories=Conversation.of(SAID))  # type: ignore[arg-type]
        assert listener.asked == []

    def test_a_query_that_is_not_thought_about_has_none(self) -> None:
        fast = listening().embed_query(QUERY, settings=ThoughtSettings(thinking="never"), history=SAID)
        assert fast.thoughts == ()
        assert fast.history == Conversation()

    def test_a_function_is_passed_it_only_where_it_takes_it(self) -> None:
        def deaf(queries, k):
            return [["a thought"] * k for _ in queries]

        def hearing(queries, k, histories=None):
            return [[f"after {len(said)}"] * k for said in histories or [()] * len(queries)]

        embedder = ThinkingEmbedder.from_parts(deaf, bag_of_words, settings=SETTINGS, cache=False)
        assert embedder.embed_query("why?", history=[]).thoughts[0].text == "a thought"
        with pytest.raises(ThinkerError, match="takes no histories") as caught:
            embedder.embed_query("why?", history=SAID)
        assert "histories" in str(caught.value.hint)
        heard = ThinkingEmbedder.from_parts(hearing, bag_of_words, settings=SETTINGS, cache=False)
        assert heard.embed_query("why?", history=SAID).thoughts[0].text == "after 2"

    def test_recorded_thoughts_are_found_by_the_query(self) -> None:
        thinker = RecordedThinker({"why?": ["because", "so"]})
        embedder = ThinkingEmbedder.from_parts(thinker, bag_of_words, settings=SETTINGS, cache=False)
        assert embedder.embed_query("why?", history=SAID).thoughts == embedder.embed_query("why?").thoughts


class TestAtTheSameTime:
    def test_callers_with_other_histories_do_not_share_a_thought(self) -> None:
        together = Barrier(3)

        class Slow(Listener):
            def think(self, queries, *, settings, start=0):
                together.wait(timeout=200)  # nobody gets here twice, and nobody waits for another's thought
                return super().think(queries, settings=settings, start=start)

        embedder = listening(listener=Slow())
        with ThreadPoolExecutor(3) as pool:
            found = pool.map(lambda said: embedder.embed_query(QUERY, history=said), [None, SAID, OTHER])
            assert [each.thoughts[0].text for each in found] == ["nothing", "I see.", "Lovely."]


class TestCache:
    def test_no_history_is_answered_by_another(self, tmp_path: Path) -> None:
        def ask(history: Any) -> tuple[str, bool]:
            thought = listening(tmp_path).embed_query(QUERY, history=history).thoughts[0]
            return thought.text, thought.cached

        asked = [None, SAID, OTHER, SAID[:1]]
        texts = ["nothing", "I see.", "Lovely.", "My mirror is in the bathroom."]
        assert [ask(history) for history in asked] == [(text, False) for text in texts]
        assert [ask(history) for history in asked] == [(text, True) for text in texts]
        # The same words by another speaker are another history.
        assert ask([("assistant", "My mirror is in the bathroom.")]) == (texts[3], False)
        # The same turns in another form are not.
        assert ask([*Conversation.of(SAID), ("user", QUERY)]) == ("I see.", True)

    def test_without_a_history_the_key_is_that_of_caches_without_histories(self, tmp_path: Path) -> None:
        listening(tmp_path).embed_query(QUERY)
        key = cache_key(kind="thought", who="listener", sampling=SETTINGS.sampling(), query=QUERY)
        assert key.hex() == "aea40f8d7fe601a2a37dd3890a8160ffc3e4577d"
        with ThoughtCache(tmp_path) as cache:
            [found] = cache.get_thoughts([key], 2)
        assert [found[index].text for index in (0, 1)] == ["nothing"] * 2


class TestLocalModel:
    def test_the_vectors_are_of_the_query_with_its_thoughts_alone(self, embedder: ThinkingEmbedder) -> None:
        after = embedder.embed_query("why?", history=SAID)
        pairs = [("why?", thought) for thought in after.thoughts]
        raw = np.stack([row for _, row in sorted(embedder.backend.embed_queries(pairs, batch_size=None))])
        np.testing.assert_allclose(after.vectors, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)
        plain = embedder.embed_query("why?")
        assert [each.token_ids for each in after.thoughts] != [each.token_ids for each in plain.thoughts]
        assert after.prompt_tokens > plain.prompt_tokens

    def test_a_batch_of_both_equals_each_alone(self, embedder: ThinkingEmbedder) -> None:
        both = embedder.embed_queries(["why?", "why?", "how?"], histories=[SAID, None, OTHER])
        for row, (query, said) in zip(both, [("why?", SAID), ("why?", None), ("how?", OTHER)], strict=True):
            alone = embedder.embed_query(query, history=said)
            assert [each.token_ids for each in row.thoughts] == [each.token_ids for each in alone.thoughts]
            np.testing.assert_allclose(row.vector, alone.vector, atol=1e-5)

    def test_a_cached_thought_gives_the_same_vector(self, tmp_path: Path) -> None:
        pair = tiny_model("qwen2")
        made = [
            ThinkingEmbedder.from_model(*pair, settings=SETTINGS, cache=tmp_path).embed_query(
                "why?", history=SAID
            )
            for _ in range(2)
        ]
        assert not made[0].thoughts[0].cached
        assert made[1].thoughts[0].cached
        np.testing.assert_array_equal(made[0].vector, made[1].vector)

    def test_a_long_history_leaves_query_and_thought_their_room(self, embedder: ThinkingEmbedder) -> None:
        long = [("user", "mirror " * 300), ("assistant", "glass " * 300)]
        after = embedder.embed_query("why?", history=long)
        assert 0 < after.prompt_tokens <= embedder.backend.local.template.max_query  # type: ignore[attr-defined]
        assert all(thought.token_ids for thought in after.thoughts)


class TestEndpoint:
    def test_it_is_sent_as_messages(self) -> None:
        with chat_server() as server:
            thinker = OpenAIThinker(
                "m", base_url=server.url, prompt=ChatPrompt("About: {query}", system="Think.")
            )
            embedder = ThinkingEmbedder.from_parts(thinker, bag_of_words, settings=SETTINGS, cache=False)
            embedder.embed_query(QUERY, history=[("system", "Be brief."), *SAID, ("user", QUERY)])
        assert server.bodies[0]["messages"] == [
            {"role": "system", "content": "Think.\n\nBe brief."},
            {"role": "user", "content": "My mirror is in the bathroom."},
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": f"About: {QUERY}"},
        ]

    def test_turns_of_one_speaker_are_joined_and_without_history_nothing_changes(self) -> None:
        prompt = ChatPrompt("{query}", system=None)
        joined = prompt.messages(as_query("why?", [("user", "a"), ("user", "b")]))
        assert joined == [{"role": "user", "content": "a\n\nb\n\nwhy?"}]
        assert prompt.messages(as_query("why?")) == [{"role": "user", "content": "why?"}]

    def test_a_server_without_system_messages_still_sees_the_turns(self) -> None:
        with chat_server() as server:
            server.answer = lambda body, number: (
                refusal(400, "system role not supported")
                if body["messages"][0]["role"] == "system"
                else completion()
            )
            thinker = OpenAIThinker("m", base_url=server.url, prompt=ChatPrompt(system="Think."))
            thinker.think(as_queries(["why?"], [SAID]), settings=SETTINGS.with_changes(n_thoughts=1))
            greeted = Conversation.of([("ai", "Hello."), *SAID])
            thinker.think(as_queries(["why?"], [greeted]), settings=SETTINGS.with_changes(n_thoughts=1))
        *_, bare, opened = (body["messages"] for body in server.bodies)
        assert opened == [{"role": "assistant", "content": "Hello."}, *bare]
        assert bare == [
            {"role": "user", "content": "Think.\n\nMy mirror is in the bathroom."},
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": "why?"},
        ]


class TestSearch:
    def test_the_history_decides_what_a_short_question_finds(self, index: Index) -> None:
        retriever = Retriever(listening(), index)
        assert retriever.search("And on glass?", history=OTHER).hits[0].id != "bread"
        result = retriever.search("And what is it?", k=1, history=VAPOUR)
        assert [hit.id for hit in result] == ["vapour"]
        assert result.to_dict()["history"] == Conversation.of(VAPOUR).to_list()
        assert "history" not in retriever.search("why?").to_dict()

    def test_many_questions_with_their_own(self, index: Index) -> None:
        retriever = Retriever(listening(), index)
        said = [VAPOUR, None, [("user", "Yeast makes dough rise.")]]
        for thinking in ("always", "auto"):
            together = retriever.search_many(
                ["And it?"] * 3, k=2, histories=said, thinking=thinking, gate=ALWAYS_WORTH_IT
            )
            alone = [
                retriever.search("And it?", k=2, history=each, thinking=thinking, gate=ALWAYS_WORTH_IT)
                for each in said
            ]
            assert [ids(result) for result in together] == [ids(result) for result in alone]
            assert [result.hits[0].id for result in together][::2] == ["vapour", "bread"]
            assert [len(result.embedding.history) for result in together] == [2, 0, 1]

    def test_an_explanation_has_it_too(self, index: Index) -> None:
        explanation = Retriever(listening(), index).explain("And what is it?", k=1, history=VAPOUR)
        assert [hit.id for hit in explanation.result] == ["vapour"]
        assert explanation.result.embedding.history == Conversation.of(VAPOUR)

    def test_the_document_space_is_the_same(self) -> None:
        embedder = listening()
        before = embedder.space
        embedder.embed_query(QUERY, history=SAID)
        assert embedder.space == before
