"""How a query is searched for in a vector store of a framework, over a store that is two lists."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from o1_retriever.concurrency.shared import called, finished
from o1_retriever.errors import SettingsError
from o1_retriever.search.result import SearchSettings
from o1_retriever.search.stores import StoreSearch, store_settings
from o1_retriever.thought import QueryEmbedding, Thought, Timings
from tests.support.adapters import ALWAYS_WORTH_IT, NEVER_WORTH_IT

ITEMS = np.eye(12, dtype=np.float32)
QUERY, STEAM, COLD = np.eye(12, dtype=np.float32)[:3]


def search(*, scores: bool = True, blocking: bool = True, **options) -> tuple[StoreSearch[int], list]:
    """A search among twelve directions, and what is asked of the embedder."""
    asked: list = []

    async def embed(thinking):
        asked.append(thinking)
        vectors = QUERY[None] if thinking == "never" else np.stack([STEAM, COLD])
        thoughts = () if thinking == "never" else (Thought(text="steam"), Thought(text="cold"))
        mean = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
        return [QueryEmbedding(query="q", thoughts=thoughts, vectors=vectors, vector=mean, timings=Timings())]

    async def nearest(vectors, k):
        cosines = await called(blocking, lambda: vectors @ ITEMS.T)
        best = [np.argsort(-row, kind="stable")[:k].tolist() for row in cosines]
        return [
            [(i, float(row[i]) if scores else None) for i in ids]
            for row, ids in zip(cosines, best, strict=True)
        ]

    how = SearchSettings().with_changes(**options)
    return StoreSearch(
        how=how, k=2, store="Lists", embed=embed, nearest=nearest, key=lambda item: item
    ), asked


def found(searched: StoreSearch[int]) -> list:
    embedded = finished(searched.think())
    return list(finished(searched.find(embedded)))


@pytest.mark.parametrize("pooling", ["mean", "best"])
def test_thinking_and_pooling_decide_what_is_looked_up(pooling):
    thought, asked = search(pooling=pooling)
    score = 1.0 if pooling == "best" else 0.5**0.5
    assert found(thought) == [(1, pytest.approx(score)), (2, pytest.approx(score))]
    plain, asked_plainly = search(pooling=pooling, thinking="never")
    assert found(plain)[0] == (0, pytest.approx(1.0))
    assert (asked, asked_plainly) == ([None], ["never"])


@pytest.mark.parametrize(
    ("gate", "asked"), [(ALWAYS_WORTH_IT, ["never", "always"]), (NEVER_WORTH_IT, ["never"])]
)
def test_the_gate_looks_at_what_the_query_finds_by_itself(gate, asked):
    searched, asked_for = search(thinking="auto", gate=gate)
    assert found(searched)[0][0] == (1 if gate is ALWAYS_WORTH_IT else 0)
    assert asked_for == asked


@pytest.mark.parametrize("options", [{"pooling": "best"}, {"thinking": "auto"}])
def test_what_a_store_cannot_do_is_refused(options):
    with pytest.raises(SettingsError, match="Lists gives no scores for a search by vector"):
        found(search(scores=False, **options)[0])
    with pytest.raises(SettingsError, match="passed for a Lists, which has no ranking by words"):
        store_settings({"hybrid": True}, "Lists", "Use another.")


def test_a_search_that_waits_needs_a_loop():
    waiting, _ = search(blocking=False)
    assert asyncio.run(waiting.look_up(QUERY[None], 1)) == [(0, pytest.approx(1.0))]
    with pytest.raises(RuntimeError):
        finished(waiting.look_up(QUERY[None], 1))
