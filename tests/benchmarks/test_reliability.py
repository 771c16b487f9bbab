"""The reliability figures: the slope of a soak, the faults that are put into code, the harm that is done."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.reliability import kill_points
from benchmarks.reliability.page import reliability_table
from benchmarks.reliability.soak import Reading, figures, growth


def readings(slope: float, *, minutes: int = 30) -> list[Reading]:
    """A process of 200 MB, with noise that comes back every seven readings."""
    return [
        Reading(at=2.0 * n, megabytes=200 + slope * 2 * n / 3600 + (n % 7) / 7, handles=20, threads=9)
        for n in range(30 * minutes)
    ]


@pytest.mark.parametrize("slope", [0.0, 20.0, -7.0])
def test_the_slope_of_memory_is_found_within_its_interval(slope: float) -> None:
    found, low, high = growth(readings(slope))
    assert low <= found <= high
    assert found == pytest.approx(slope, abs=0.5)
    assert (low <= 0 <= high) == (slope == 0)


def test_lost_requests_and_leaked_handles_are_counted_after_the_warm_up() -> None:
    noted = [Reading(at=each.at, megabytes=each.megabytes, handles=20 + int(each.at > 1000), threads=9)
             for each in readings(0.0)]  # fmt: skip
    found = {each.name: each.value for each in figures(noted, Counter(right=90, timeout=2), warm_up=300.0)}
    assert found["soak/lost"] == 2
    assert found["soak/handles_leaked"] == 1
    assert found["soak/requests"] == 92


def test_the_table_has_a_line_for_what_was_measured_alone() -> None:
    rows: list[dict[str, object]] = [
        {"name": "reliability/disk/full/index/wrong", "value": 0},
        {"name": "reliability/disk/full/index/tried", "value": 1000},
        {"name": "reliability/disk/full/cache/tried", "value": 200},
    ]
    assert reliability_table(rows).splitlines()[2:] == [
        "| a full disk: a tmpfs too small for the work | `disk` | 1,200 runs | 0 wrong answers, undocumented "
        "errors or hangs |"
    ]


def test_kills_that_were_noted_are_counted_and_not_done_again(tmp_path: Path) -> None:
    outcomes = tmp_path / "outcomes.jsonl"
    kills = {"cache": [1, 2, 1], "train": [5]}
    rows = [
        {"stage": stage, "point": point, "kills": each, "differs": point == 2}
        for stage, of_stage in kills.items()
        for point, each in enumerate(of_stage)
    ]
    outcomes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = kill_points.measure(count=3, only=["cache"], outcomes=outcomes)
    assert [(each.name, each.value) for each in found] == [
        ("kill_points/cache/kills", 4),
        ("kill_points/cache/differences", 1),
    ]
