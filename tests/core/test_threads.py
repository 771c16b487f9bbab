"""Threads step back while others want the cores, and are all back afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.engine import threads
from o1_retriever.engine.decode import write_thoughts
from o1_retriever.engine.passes import embed_sequences
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.thought import ThoughtSettings
from tests.support.engine import before_passes, exact_model, job_for

CPU = torch.device("cpu")
WAITED = threads._waited
pytestmark = pytest.mark.skipif(WAITED() is None, reason="the system does not tell how long threads wait")


class System:
    """What the operating system reports: how long threads have waited, on a clock of its own."""

    def __init__(self) -> None:
        self.now, self.waited = 1000.0, 0.0

    def monotonic(self) -> float:
        """The clock."""
        return self.now

    def passes(self, seconds: float, *, waiting: float = 0.0) -> None:
        """Time goes by, of each second of which this much was waited for a core."""
        self.now += seconds
        self.waited += seconds * waiting


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """Four threads on a machine whose reports the test writes."""
    reports = System()
    monkeypatch.setattr(threads.time, "monotonic", reports.monotonic)
    monkeypatch.setattr(threads, "_waited", lambda: reports.waited)
    monkeypatch.setattr(threads, "_crowded_until", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield reports
    torch.set_num_threads(before)


def crowd(system: System, sparing: SparingThreads, looks: int = 1) -> None:
    for _ in range(looks):
        system.passes(0.2, waiting=0.6)
        sparing.look()


def calm(system: System, sparing: SparingThreads, seconds: float) -> None:
    for _ in range(int(seconds / 0.2)):
        system.passes(0.2, waiting=0.02)
        sparing.look()


def test_waiting_for_a_core_is_seen() -> None:
    seen: list[float] = []

    def beside_another() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread, and of what it starts
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            before, until = WAITED() or 0.0, time.monotonic() + 30
            while (WAITED() or 0.0) - before < 0.05 and time.monotonic() < until:
                pass
            seen.append((WAITED() or 0.0) - before)
        finally:
            other.kill()
            other.wait()

    crowded = threading.Thread(target=beside_another)
    crowded.start()
    crowded.join()
    assert seen[0] >= 0.05


def test_a_quiet_machine_keeps_all_threads(system: System) -> None:
    with SparingThreads(CPU) as sparing:
        calm(system, sparing, 3)
        assert torch.get_num_threads() == 4


def test_threads_are_halved_as_long_as_they_wait_for_cores(system: System) -> None:
    with SparingThreads(CPU) as sparing:
        crowd(system, sparing)
        assert torch.get_num_threads() == 4, "one crowded look may be chance"
        crowd(system, sparing)
        assert torch.get_num_threads() == 2
        crowd(system, sparing)
        assert torch.get_num_threads() == 1
        crowd(system, sparing, 5)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


def test_a_single_crowded_look_between_quiet_ones_is_forgotten(system: System) -> None:
    with SparingThreads(CPU) as sparing:
        for _ in range(4):
            crowd(system, sparing)
            calm(system, sparing, 0.2)
        assert torch.get_num_threads() == 4


def test_looking_often_changes_nothing(system: System) -> None:
    with SparingThreads(CPU) as sparing:
        for _ in range(100):
            system.passes(0.001, waiting=0.6)
            sparing.look()
        assert torch.get_num_threads() == 4, "too short a time to tell anything"


def test_all_threads_are_tried_again_when_it_has_been_quiet(system: System) -> None:
    with SparingThreads(CPU) as sparing:
        crowd(system, sparing, 2)
        calm(system, sparing, 4)
        assert torch.get_num_threads() == 2, "a crowded machine is remembered"
        calm(system, sparing, 2)
        assert torch.get_num_threads() == 4


def test_the_next_call_remembers_the_crowd(system: System) -> None:
    with SparingThreads(CPU) as sparing:
        crowd(system, sparing, 2)
    with SparingThreads(CPU):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4
    system.passes(60)
    with SparingThreads(CPU):
        assert torch.get_num_threads() == 4


def test_errors_and_abandoned_work_leave_all_threads(system: System) -> None:
    def interrupted() -> None:
        with SparingThreads(CPU) as sparing:
            crowd(system, sparing, 2)
            assert torch.get_num_threads() == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.get_num_threads() == 4


def test_on_a_gpu_nothing_happens(system: System) -> None:
    with SparingThreads(torch.device("cuda")) as sparing:
        crowd(system, sparing, 5)
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 4


actions = st.lists(
    st.tuples(st.sampled_from(["crowd", "calm"]), st.floats(0.01, 7.0), st.floats(0, 4)), max_size=25
)


@settings(max_examples=60)
@given(actions=actions, before=st.integers(1, 6), fails=st.booleans())
def test_never_more_threads_than_before_and_never_none(
    system: System, actions: list[tuple[str, float, float]], before: int, fails: bool
) -> None:
    torch.set_num_threads(before)
    try:
        with SparingThreads(CPU) as sparing:
            for kind, seconds, rate in actions:
                system.passes(seconds, waiting=rate if kind == "crowd" else 0)
                sparing.look()
                assert 1 <= torch.get_num_threads() <= before
            if fails:
                raise RuntimeError("memory")
    except RuntimeError:
        assert fails
    assert torch.get_num_threads() == before


def test_calls_that_overlap_leave_all_threads(system: System) -> None:
    """One begins while another has stepped back, and ends after it: nobody takes the half for the whole."""
    first = SparingThreads(CPU).__enter__()
    crowd(system, first, 2)
    assert torch.get_num_threads() == 2
    second = SparingThreads(CPU).__enter__()
    assert torch.get_num_threads() <= 4
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == 4


def test_fewer_threads_of_its_own_are_not_taken_for_a_half(system: System) -> None:
    first = SparingThreads(CPU).__enter__()
    crowd(system, first, 2)
    torch.set_num_threads(3)
    system.passes(60)
    with SparingThreads(CPU):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == 4


def test_calls_in_two_threads_of_a_program_leave_all_threads(system: System) -> None:
    counts: dict[str, int] = {}
    inside, left = threading.Event(), threading.Event()

    def other() -> None:
        with SparingThreads(CPU):
            inside.set()
            assert left.wait(200)
        counts["other"] = torch.get_num_threads()

    with SparingThreads(CPU) as sparing:
        crowd(system, sparing, 2)
        worker = threading.Thread(target=other)
        worker.start()
        assert inside.wait(200)
    left.set()
    worker.join(200)
    counts["main"] = torch.get_num_threads()
    assert counts == {"other": 4, "main": 4}


def test_the_engine_looks_while_it_thinks_and_embeds_and_gives_all_back(system: System) -> None:
    local = exact_model("qwen2", "", stops=0)
    seen: list[int] = []

    def crowded(_: int) -> None:
        system.passes(0.2, waiting=0.6)
        seen.append(torch.get_num_threads())

    how = ThoughtSettings(max_new_tokens=8)
    with before_passes(local.model.base_model, crowded):
        list(write_thoughts(local, [job_for(local, "why?")], how))
        assert (seen[0], seen[-1]) == (4, 1)
        assert torch.get_num_threads() == 4
        seen.clear()
        system.passes(60)
        rows = [local.template.document([5] * length) for length in range(1, 6)]
        list(embed_sequences(local, rows, most=1))
        assert (seen[0], seen[-1]) == (4, 1)
    assert torch.get_num_threads() == 4


def test_a_caller_who_leaves_early_gets_all_threads_back(system: System) -> None:
    local = exact_model("qwen2", "", stops=0)
    jobs = [job_for(local, query) for query in ("why?", "how?", "a")]

    def crowded(_: int) -> None:
        system.passes(0.2, waiting=0.6)

    with before_passes(local.model, crowded):
        writing = write_thoughts(local, jobs, ThoughtSettings(max_new_tokens=8), most=1)
        next(writing)
        assert torch.get_num_threads() == 1
        writing.close()
    assert torch.get_num_threads() == 4
