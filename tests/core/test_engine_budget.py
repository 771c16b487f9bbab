"""Time that runs out cuts a thought and nothing else: what was thought by then is embedded, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from o1_retriever import QueryEmbedding, ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine import decode, rows
from o1_retriever.engine.backend import LocalBackend
from tests.support.engine import (
    TOLERANCE,
    assert_equal_to_slow,
    before_passes,
    ending,
    exact_model,
    gap,
    job_for,
    plain_state,
    watched,
    written_by,
)

# Lengths are the room's and the clock's: these models never stop by themselves.
QUERIES = ["a", "why is the sky blue?", "z" * 30, "b"]
# Random weights write nothing that the guard would keep.
ENDLESS = ThoughtSettings(n_thoughts=2, temperature=1.0, max_new_tokens=40, guard=False)
NOTHING = ENDLESS.with_changes(budget_ms=0.001)


def embedder(cache: Path | None = None) -> ThinkingEmbedder:
    local = exact_model("qwen2", "", stops=0)
    return ThinkingEmbedder(LocalBackend(local), settings=ENDLESS, cache=cache or False)


def assert_embedded_as_cut(found: QueryEmbedding) -> None:
    """Each vector is that of the query with exactly the thought that is told."""
    local = exact_model("qwen2", "", stops=0)
    prompt = job_for(local, found.query).prompt
    states = [plain_state(local, [*prompt, *t.token_ids, *ending(local)]) for t in found.thoughts]
    assert gap(found.vectors, np.stack(states)) < TOLERANCE


def test_no_time_at_all_leaves_one_token_and_says_so() -> None:
    for found in embedder().embed_queries(QUERIES, settings=NOTHING):
        assert [thought.finish for thought in found.thoughts] == ["budget", "budget"]
        assert [thought.completion_tokens for thought in found.thoughts] == [1, 1]
        assert_embedded_as_cut(found)


class Clock:
    """The engine's clock, on which time passes as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (decode, rows):
        monkeypatch.setattr(module, "time", found)
    return found


@pytest.mark.parametrize("look_every", [1, 8])
def test_a_cut_thought_is_the_beginning_of_the_whole_one(
    look_every: int, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr("o1_retriever.engine.decode._LOOK_EVERY", {"cpu": look_every})
    whole = embedder().embed_queries(QUERIES)
    local = exact_model("qwen2", "", stops=0)

    def slow(number: int) -> None:
        # The machine is slow at the tenth pass: all rows have some tokens by then, and none has all.
        clock.now += 0.4 if number == 9 else 0.0

    with before_passes(local.model, slow):
        cut = embedder().embed_queries(QUERIES, settings=ENDLESS.with_changes(budget_ms=390.0))
    for short, full in zip(cut, whole, strict=True):
        for one, other in zip(short.thoughts, full.thoughts, strict=True):
            assert one.finish == "budget"
            assert 1 <= len(one.token_ids) < len(other.token_ids) == 40
            assert other.token_ids[: len(one.token_ids)] == one.token_ids
        assert_embedded_as_cut(short)


def test_time_that_suffices_changes_nothing() -> None:
    local = exact_model("llama")
    jobs = [job_for(local, query) for query in QUERIES]
    patient = ENDLESS.with_changes(budget_ms=1e8)
    written = written_by(local, jobs, patient, most=2)
    assert_equal_to_slow(local, jobs, written, ENDLESS)


def test_the_clock_of_a_query_starts_with_its_own_first_token(clock: Clock) -> None:
    """Three of four wait until the first is done; each has the whole time for itself."""
    local = exact_model("qwen2", "", stops=0)
    how = ENDLESS.with_changes(budget_ms=1500.0, max_new_tokens=5)
    jobs = [job_for(local, query, range(2)) for query in QUERIES]

    def slow(_: int) -> None:
        clock.now += 0.1

    with watched(local) as watch, before_passes(local.model, slow):
        written = written_by(local, jobs, how, most=1)
    assert clock.now > 1.5, "together they took longer than one may"
    assert watch.flights == [2]
    assert {draft.finish for drafts in written for draft in drafts.drafts} == {"length"}


def test_a_thought_that_is_full_at_its_first_token_was_not_cut() -> None:
    found = embedder().embed_query("why?", settings=NOTHING.with_changes(max_new_tokens=1))
    assert [thought.finish for thought in found.thoughts] == ["length", "length"]


def test_a_thought_that_the_model_ended_in_time_was_not_cut() -> None:
    local = exact_model("qwen2")
    how = NOTHING.with_changes(n_thoughts=8)
    finishes = set()
    for query in QUERIES:
        job = job_for(local, query, range(8))
        whole = written_by(local, [job], how.with_changes(budget_ms=1e8))[0].drafts
        cut = written_by(local, [job], how)[0].drafts
        for one, other in zip(cut, whole, strict=True):
            assert one.token_ids == other.token_ids[:1]
            assert one.finish == ("eos" if len(other.token_ids) == 1 else "budget")
            finishes.add(one.finish)
    assert "budget" in finishes


def test_a_cut_thought_is_not_served_to_those_who_have_time(tmp_path: Path) -> None:
    hasty = embedder(tmp_path).embed_query("why?", settings=NOTHING)
    patient = embedder(tmp_path).embed_query("why?")
    fresh = embedder().embed_query("why?")
    assert [t.finish for t in hasty.thoughts] == ["budget"] * 2
    assert not any(thought.cached for thought in patient.thoughts)
    assert [t.token_ids for t in patient.thoughts] == [t.token_ids for t in fresh.thoughts]
    assert gap(patient.vectors, fresh.vectors) < TOLERANCE


def test_whole_thoughts_in_the_cache_are_served_to_those_in_a_hurry(tmp_path: Path) -> None:
    first = embedder(tmp_path).embed_query("why?")
    hasty = embedder(tmp_path).embed_query("why?", settings=NOTHING)
    assert all(thought.cached for thought in hasty.thoughts)
    assert hasty.thoughts == first.thoughts


def test_the_fast_path_has_all_the_time_it_needs() -> None:
    never = NOTHING.with_changes(thinking="never")
    found = embedder().embed_query("why?", settings=never)
    usual = embedder().embed_query("why?", settings=ENDLESS.with_changes(thinking="never"))
    assert found.thoughts == ()
    assert gap(found.vectors, usual.vectors) < TOLERANCE
