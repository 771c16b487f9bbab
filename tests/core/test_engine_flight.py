"""Thoughts written together, in whatever mix, are those that each gets alone by plain forward passes."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.engine import decode
from o1_retriever.engine import passes as engine_passes
from o1_retriever.engine.decode import write_thoughts
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.rows import Job
from o1_retriever.engine.steps import EagerSteps, FallbackSteps, Slots, Step
from o1_retriever.thought import ThoughtSettings
from tests.support.engine import (
    Watch,
    assert_equal_to_slow,
    assert_same_drafts,
    before_passes,
    exact_model,
    job_for,
    slow_thought,
    static_steps,
    watched,
    written_by,
)
from tests.support.tiny import POSITIONS

WINDOWLESS = ("llama", "qwen2", "qwen3", "mistral", "bert")
ARCHITECTURES = (*WINDOWLESS, "mistral-window", "gemma2")
WARM = ThoughtSettings(temperature=1.0, top_p=0.95, max_new_tokens=16)
INSTRUCTION = "find what answers: "

# Long and short ones side by side, which drawing letter by letter would seldom give.
texts = st.builds(lambda letter, length: letter * length, st.sampled_from("aß>"), st.integers(1, 60))
sampling = st.builds(
    ThoughtSettings,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    max_new_tokens=st.integers(1, 16),
    seed=st.integers(0, 3),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 1.3, 8.0]),
)


@st.composite
def mixes(draw: st.DrawFn) -> tuple[LocalModel, list[Job]]:
    """A model and jobs of different lengths, numbers of thoughts, first indices and room."""
    local = exact_model(draw(st.sampled_from(ARCHITECTURES)), draw(st.sampled_from(["", INSTRUCTION])))
    jobs = []
    for query in draw(st.lists(texts, min_size=1, max_size=6)):
        start, count = draw(st.integers(0, 2)), draw(st.integers(1, 3))
        jobs.append(job_for(local, query, range(start, start + count), draw(st.sampled_from([3, 10_000]))))
    return local, jobs


@settings(max_examples=40)
@given(mix=mixes(), how=sampling, data=st.data())
def test_any_mix_equals_each_thought_alone(
    mix: tuple[LocalModel, list[Job]],
    how: ThoughtSettings,
    data: st.DataObject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local, jobs = mix
    most = data.draw(st.sampled_from([None, 1, 2, 4]), label="most")
    look_every = data.draw(st.sampled_from([1, 8]), label="look_every")
    held = data.draw(st.sampled_from([1, 200, 1 << 15]), label="held")
    passes = data.draw(st.sampled_from([1, 60, 4096]), label="forward")
    steps = EagerSteps
    if not any(Slots(local.model, 1, 1, spare=0).windows):
        steps = data.draw(st.sampled_from([EagerSteps, static_steps]), label="steps")
    with monkeypatch.context() as patch, watched(local, steps=steps, spare=look_every):
        patch.setattr(engine_passes, "_HELD_TOKENS", {"cpu": held})
        patch.setattr(engine_passes, "_FORWARD_TOKENS", {"cpu": passes})
        patch.setattr(decode, "_LOOK_EVERY", {"cpu": look_every})
        written = written_by(local, jobs, how, most=most)
    assert_equal_to_slow(local, jobs, written, how)


QUERIES = ["a", "why is the sky blue?", "z" * 40, "zwei", "how do planes fly at all", "b", "x" * 30, "ü" * 9]


def crowded(
    architecture: str, instruction: str = "", steps: Any = EagerSteps, *, look_every: int = 1
) -> Watch:
    """Ten thoughts about eight queries in three rows, equal to the slow way; what happened on the way.

    The model hardly ever stops by itself, so that the room of each decides when its row is free.
    """
    local = exact_model(architecture, instruction, stops=0)
    jobs = [
        job_for(local, query, range(1 + place // 6), room=6 + 7 * place % 18)
        for place, query in enumerate(QUERIES)
    ]
    how = WARM if local.model.dtype == torch.float32 else WARM.with_changes(max_new_tokens=24)
    with watched(local, steps=steps, spare=look_every) as watch:
        written = written_by(local, jobs, how, most=3)
    assert_equal_to_slow(local, jobs, written, how)
    assert watch.flights == [3], "one flight, in which all queries found a row"
    return watch


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_joined_moved_and_shifted_on_the_way(architecture: str, instruction: str) -> None:
    watch = crowded(architecture, instruction)
    assert all(watch.counts[what] for what in ("refill", "move", "shift")), watch.counts


@pytest.mark.parametrize("architecture", WINDOWLESS)
def test_steps_over_fixed_tensors_equal_the_slow_way(architecture: str) -> None:
    assert crowded(architecture, steps=static_steps).counts == crowded(architecture).counts


def test_looking_every_eighth_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    local = exact_model("qwen2", "", stops=0)
    crowded("qwen2")  # the slow way is remembered from here on
    passes = []
    for look_every in (1, 8):
        monkeypatch.setattr(decode, "_LOOK_EVERY", {"cpu": look_every})
        with before_passes(local.model, lambda _: None) as seen:
            assert crowded("qwen2", look_every=look_every).counts["refill"]
        passes.append(len(seen))
    assert passes[1] > passes[0], "rows that are done are fed until somebody looks"


def test_rows_that_wait_to_be_looked_at_stay_within_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT has a table of positions, and nothing behind it."""
    monkeypatch.setattr(decode, "_LOOK_EVERY", {"cpu": 8})
    local = exact_model("bert", "", stops=0)
    endless = WARM.with_changes(max_new_tokens=10_000)
    jobs = [job_for(local, query, [0]) for query in ("y " * 149, "y " * 145, "y " * 142)]
    assert {len(job.prompt) + job.room + 2 for job in jobs} == {POSITIONS}
    assert len({job.room for job in jobs}) == 3
    assert_equal_to_slow(local, jobs, written_by(local, jobs, endless), endless)


def test_the_order_of_the_queries_changes_nothing() -> None:
    local = exact_model("llama")
    jobs = [job_for(local, query) for query in QUERIES]
    forwards = written_by(local, jobs, WARM, most=3)
    backwards = written_by(local, jobs[::-1], WARM, most=3)
    assert_same_drafts(forwards, backwards[::-1])


def test_one_room_for_all_positions_and_a_prefix_with_padding_behind() -> None:
    """The shortest prompt has the most room; the padding of its pass must not eat into that."""
    local = exact_model("llama", INSTRUCTION)
    endless = WARM.with_changes(max_new_tokens=10_000, temperature=0.0)
    jobs = [job_for(local, query, [0]) for query in ("y" * 100, "a")]
    with watched(local, spare=1):
        written = written_by(local, jobs, endless)
    assert_equal_to_slow(local, jobs, written, endless)


def test_equal_queries_of_a_batch_get_equal_thoughts() -> None:
    local = exact_model("qwen2")
    jobs = [job_for(local, "why?") for _ in range(4)]
    one, *others = written_by(local, jobs, WARM, most=1)
    for other in others:
        assert_same_drafts([one], [other])


def test_no_job_is_no_work() -> None:
    assert list(write_thoughts(exact_model("qwen2"), [], WARM)) == []


def test_a_caller_who_takes_one_thought_and_leaves_harms_nobody() -> None:
    local = exact_model("qwen2")
    jobs = [job_for(local, query) for query in QUERIES]
    left = write_thoughts(local, jobs, WARM, most=2)
    place, first = next(left)
    meanwhile = written_by(local, jobs, WARM, most=3)
    assert_same_drafts([first], [meanwhile[place]])
    left.close()
    assert_same_drafts(written_by(local, jobs, WARM, most=2), meanwhile)


class Faulty:
    """Steps as on a GPU until the given one, at which the driver refuses."""

    def __init__(self, works: Step, fails_at: int, error: Exception) -> None:
        self.works, self.fails_at, self.error, self.asked = works, fails_at, error, 0

    def __call__(self, fed: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += 1
        if self.asked == self.fails_at:
            raise self.error
        return self.works(fed, positions)


@pytest.mark.parametrize("fails_at", [1, 5, 23])
def test_graphs_that_fail_are_given_up_for_good_and_said_once(
    fails_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    local = exact_model("qwen2")
    jobs = [job_for(local, query) for query in QUERIES]
    graphs: list[Faulty] = []

    def steps(local: LocalModel, slots: Slots) -> Step:
        graphs.append(Faulty(static_steps(local, slots), fails_at, RuntimeError("capture is not permitted")))
        return FallbackSteps(local, slots, graphs[-1])

    with caplog.at_level(logging.WARNING), watched(local, steps=steps, spare=8) as watch:
        written = written_by(local, jobs, WARM, most=2)
        again = written_by(local, jobs, WARM, most=2)
    assert_equal_to_slow(local, jobs, written, WARM)
    assert_same_drafts(written, again)
    assert [each.asked for each in graphs] == [fails_at, 0], "after the failure no graph is tried again"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "capture is not permitted" in messages[0]
    assert "one by one" in messages[0]
    assert len(watch.flights) == 2


def test_what_the_tests_above_draw_is_a_mixture() -> None:
    local = exact_model("qwen2")
    finishes: Counter[str] = Counter()
    lengths = set()
    for query in QUERIES:
        for index in range(3):
            ids, finish, _ = slow_thought(local, job_for(local, query), index, WARM)
            finishes[finish] += 1
            lengths.add(len(ids))
    assert min(finishes["eos"], finishes["length"]) >= 2, finishes
    assert len(lengths) > 5
