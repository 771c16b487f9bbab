"""DSPy's modules, embedder and retrievers with those that think."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("dspy", reason="needs the extra `dspy`")

import dspy
from dspy.utils import DummyLM

from dspy_o1_retriever import O1Embedder, O1Embeddings, O1Retrieve
from o1_retriever import Retriever, ThoughtSettings
from tests.support.adapters import (
    BREAD,
    METADATA,
    QUERY,
    TEXTS,
    THOUGHT,
    Mind,
    last_turn_embedder,
    small_embedder,
)


def test_retrieve_over_our_index(small_retriever: Retriever) -> None:
    retrieve = O1Retrieve(small_retriever, k=2)
    assert isinstance(retrieve, dspy.Retrieve)
    found = retrieve(QUERY)
    assert (found.ids, found.passages[0]) == (["vapour", "mirror"], TEXTS["vapour"])
    assert found.metadata[0] == METADATA["vapour"]
    assert found.thoughts == [THOUGHT, THOUGHT]
    assert 1 >= found.scores[0] > found.scores[1] > 0
    assert retrieve(QUERY, k=1).ids == ["vapour"]
    assert retrieve(QUERY, thinking="never").ids[0] == "mirror"
    assert O1Retrieve(small_retriever, where={"topic": "home"})(QUERY).ids[0] == "mirror"
    assert retrieve.dump_state() == {"k": 2}


def test_as_the_retrieval_model_of_a_plain_retrieve(small_retriever: Retriever) -> None:
    with dspy.context(rm=O1Retrieve(small_retriever).rm):
        assert dspy.Retrieve(k=2)(QUERY).passages == [TEXTS["vapour"], TEXTS["mirror"]]


def test_in_a_program(small_retriever: Retriever) -> None:
    class Answer(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.retrieve = O1Retrieve(small_retriever, k=1)
            self.answer = dspy.Predict("context, question -> answer")

        def forward(self, question: str) -> Any:
            return self.answer(context=self.retrieve(question).passages, question=question)

    with dspy.context(lm=DummyLM([{"answer": "Vapour."}])) as _:
        program = Answer()
        assert program(question=QUERY).answer == "Vapour."
        shown = str(dspy.settings.lm.history[-1]["messages"])
    assert TEXTS["vapour"] in shown
    assert THOUGHT not in shown


def test_a_history_of_dspy_or_of_turns_is_read(small_retriever: Retriever) -> None:
    embedder = last_turn_embedder()
    retrieve = O1Retrieve(Retriever(embedder, small_retriever.index), k=1)
    history = dspy.History(messages=[{"question": "Where does it go?", "answer": "Yeast makes dough rise."}])
    assert retrieve(QUERY, history=history).thoughts == ["Yeast makes dough rise."]
    assert retrieve(QUERY, history=[("user", "Tides follow the moon?")]).ids == ["moon"]
    assert retrieve(QUERY).thoughts == ["Tides."]


def test_thoughts_of_the_caller_are_used(small_retriever: Retriever) -> None:
    found = O1Retrieve(small_retriever)(QUERY, k=1, thoughts=[BREAD])
    assert (found.ids, found.thoughts) == (["bread"], [BREAD])


def test_the_embedder_embeds_texts_as_documents() -> None:
    mind = Mind()
    embedder = small_embedder(mind)
    model = O1Embedder(embedder, batch_size=2)
    assert isinstance(model, dspy.Embedder)
    texts = list(TEXTS.values())
    assert np.allclose(model(texts), embedder.encode_documents(texts), atol=1e-6)
    assert model(texts[0]).shape == (256,)
    assert mind.asked == []
    assert model.embed_queries([QUERY]).shape == (1, 256)
    assert mind.asked == [QUERY]


def test_dspys_retriever_over_passages_thinks_about_queries() -> None:
    mind = Mind()
    search = O1Embeddings(list(TEXTS.values()), small_embedder(mind), k=2)
    assert mind.asked == []
    found = search(QUERY)
    assert found.passages == [TEXTS["vapour"], TEXTS["mirror"]]
    assert found.indices == [0, 1]
    assert found.scores[0] > found.scores[1]
    fast = O1Embedder(small_embedder(), settings=ThoughtSettings(thinking="never"))
    assert O1Embeddings(list(TEXTS.values()), fast, k=1)(QUERY).passages == [TEXTS["mirror"]]
    several = dspy.Parallel(num_threads=4, disable_progress_bar=True)
    asked = [(search, (question,)) for question in (QUERY, "dough", "moon")]
    assert [each.indices[0] for each in several(asked)] == [0, 2, 3]
