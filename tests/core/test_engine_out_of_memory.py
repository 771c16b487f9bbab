"""Memory that runs out at any moment costs a warning and some speed: nothing is lost, nothing changes."""

from __future__ import annotations

import gc
import logging
import mmap
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.engine.passes import by_tokens, embed_sequences, is_out_of_memory
from o1_retriever.engine.steps import Slots
from o1_retriever.reporting import counted
from o1_retriever.thought import ThoughtSettings
from tests.support.caches import EXAMPLES
from tests.support.engine import (
    TOLERANCE,
    Watch,
    assert_equal_to_slow,
    before_passes,
    exact_model,
    gap,
    job_for,
    plain_state,
    watched,
    written_by,
)

WARM = ThoughtSettings(temperature=1.0, top_p=0.95, max_new_tokens=10)
QUERIES = ["a", "why is the sky blue?", "z" * 30, "zwei", "x" * 20, "b"]
# What torch raises on a GPU, what Python raises, and what torch raises on a CPU.
ERRORS: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: MemoryError("Unable to allocate 2.00 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
]
PLACES = ["pass", "borrow", "start", "refill", "move", "shift"]
moments = st.tuples(st.sampled_from(PLACES), st.integers(1, 12))


class Faults:
    """Memory runs out at the given moments, each the n-th visit of a place, and once at each."""

    def __init__(self, at: set[tuple[str, int]], error: Callable[[], Exception] = ERRORS[0]) -> None:
        self.at, self.error = at, error
        self.visits: Counter[str] = Counter()
        self.raised = 0

    def __call__(self, place: str) -> None:
        self.visits[place] += 1
        if (place, self.visits[place]) in self.at:
            self.raised += 1
            raise self.error()


def halvings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def run(faults: Faults, k: int, architecture: str = "qwen2") -> Watch:
    """Six queries in flight at once until memory runs out, equal to the slow way."""
    local = exact_model(architecture)
    jobs = [job_for(local, query, range(k)) for query in QUERIES]
    with watched(local, spare=1) as watch, before_passes(local.model, lambda _: faults("pass")):
        watch.fail = faults
        written = written_by(local, jobs, WARM)
    assert_equal_to_slow(local, jobs, written, WARM)
    return watch


@settings(EXAMPLES, max_examples=30)
@given(
    at=st.sets(moments, max_size=2),
    error=st.sampled_from(ERRORS),
    k=st.integers(1, 3),
    architecture=st.sampled_from(["qwen2", "mistral-window"]),
)
def test_thoughts_survive_any_two_moments_without_memory(
    at: set[tuple[str, int]],
    error: Callable[[], Exception],
    k: int,
    architecture: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    faults = Faults(at, error)
    watch = run(faults, k, architecture)
    assert len(halvings(caplog)) == faults.raised
    rows = 6 * k
    expected = [rows]
    for _ in range(faults.raised):
        rows = max(k, rows // 2)
        expected.append(rows)
    assert watch.flights == expected


def test_each_place_at_which_memory_can_run_out_is_reached(caplog: pytest.LogCaptureFixture) -> None:
    for place in ("pass", "borrow", "start", "move"):
        faults = Faults({(place, 1)})
        run(faults, 3)
        assert faults.raised == 1, place
    for place in ("refill", "shift"):
        # Only with fewer rows than thoughts is there anything to refill: after a first fault.
        faults = Faults({("borrow", 1), (place, 1)})
        run(faults, 1)
        assert faults.raised == 2, place
    assert len(halvings(caplog)) == 4 + 4


def test_one_warning_says_how_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    run(Faults({("pass", 5)}), 3)
    assert halvings(caplog) == [
        "Out of memory: going on with 9 thoughts at once (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    ]


def test_what_cannot_be_halved_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults({("pass", n) for n in range(100)})
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        run(faults, 2)
    assert len(halvings(caplog)) == 3, "twelve rows, then six, three, and two for the thoughts of one query"
    run(Faults(set()), 2)


def test_jobs_that_wait_need_room_for_all_their_thoughts() -> None:
    """Two prompts with one thought each are in flight when memory runs out; one with three waits."""
    local = exact_model("qwen2")
    jobs = [job_for(local, "a", range(3)), job_for(local, "x" * 40, [0]), job_for(local, "x" * 39, [0])]
    faults = Faults({("pass", 2)})
    with watched(local) as watch, before_passes(local.model, lambda _: faults("pass")):
        written = written_by(local, jobs, WARM, most=2)
    assert watch.flights == [4, 3]
    assert_equal_to_slow(local, jobs, written, WARM)


def test_another_error_is_not_taken_for_it(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults({("pass", 4)}, lambda: RuntimeError("the driver is gone"))
    with pytest.raises(RuntimeError, match="the driver is gone"):
        run(faults, 3)
    assert not halvings(caplog)
    assert faults.visits["pass"] == 4


def test_the_memory_of_a_flight_is_free_before_the_next_takes_its_own() -> None:
    local = exact_model("qwen2")
    jobs = [job_for(local, query) for query in QUERIES]
    lent: list[weakref.ref[Slots]] = []
    left: list[bool] = []

    def fail(place: str) -> None:
        if place == "borrow":
            left.append(any(slots() is not None for slots in lent))

    faults = Faults({("pass", 4), ("pass", 9)})
    gc.disable()
    try:
        with watched(local) as watch, before_passes(local.model, lambda _: faults("pass")):
            watch.fail, watch.lent = fail, lent.append
            written_by(local, jobs, WARM)
            written_by(local, jobs, WARM)
    finally:
        gc.enable()
    assert left == [False] * 4
    assert all(slots() is None for slots in lent), "no ring of references keeps them"


lengths = st.builds(lambda letter, length: letter * length, st.sampled_from("ab"), st.integers(1, 90))


@settings(EXAMPLES)
@given(
    texts=st.lists(lengths, min_size=1, max_size=12),
    at=st.sets(st.integers(1, 6), max_size=3),
    error=st.sampled_from(ERRORS),
    most=st.sampled_from([None, 1, 3, 5]),
)
def test_documents_survive_any_moment_without_memory(
    texts: list[str],
    at: set[int],
    error: Callable[[], Exception],
    most: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    local = exact_model("llama")
    rows = [local.template.document(ids) for ids in local.template.text_ids(texts)]
    faults = Faults({("pass", n) for n in at}, error)
    sizes: list[int] = []

    def before(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        sizes.append(len(given["input_ids"]))
        faults("pass")

    handle = local.model.base_model.register_forward_pre_hook(before, with_kwargs=True)
    found: dict[int, Any] = {}
    failed: Exception | None = None
    try:
        found = dict(embed_sequences(local, rows, most=most))
    except Exception as caught:
        failed = caught
    finally:
        handle.remove()
    if failed is not None:
        # Only a single text cannot be halved.
        assert is_out_of_memory(failed)
        assert sizes[-1] == 1
        return
    assert sorted(found) == list(range(len(texts)))
    assert all(gap(found[i], plain_state(local, row)) < TOLERANCE for i, row in enumerate(rows))
    messages = halvings(caplog)
    assert len(messages) == faults.raised
    for number, message in zip(sorted(at), messages, strict=False):
        half = -(-sizes[number - 1] // 2)
        assert f"at most {counted(half, 'text')} (" in message
        assert max(sizes[number:]) <= half


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
        lambda: np.zeros(1 << 60, np.uint8),
        lambda: mmap.mmap(-1, 1 << 60),
    ],
    ids=["torch", "numpy", "mmap"],
)
def test_what_this_machine_raises_without_memory_is_recognised(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(2, "No such file"), ValueError()])
def test_what_is_something_else_is_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


@settings(EXAMPLES)
@given(
    st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1000), st.one_of(st.none(), st.integers(1, 9))
)
def test_batches_hold_each_row_once_within_their_bounds(
    lengths: list[int], tokens: int, most: int | None
) -> None:
    batches = list(by_tokens(lengths, tokens, most))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    shortest = 10**9
    for batch in batches:
        assert batch
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or longest * len(batch) <= tokens
        assert most is None or len(batch) <= most
        assert longest <= shortest, "longest first, so that a batch holds rows of similar length"
        shortest = min(lengths[place] for place in batch)
    # None of them is smaller than it must be, the last excepted.
    for batch in batches[:-1]:
        longest = max(1, *(lengths[place] for place in batch))
        assert len(batch) == most or longest * (len(batch) + 1) > tokens
