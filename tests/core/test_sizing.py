"""Sizes of a load: the time of batches, the queue, and what an index takes as its recorded figures say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.sizing import (
    Costs,
    Tier,
    _least_squares,
    capacity,
    cost_of_a_million,
    index_needs,
    machines,
    measure_costs,
    simulate,
    tiers,
)

COSTS = Costs(
    step=0.002,
    row=0.0001,
    query=0.003,
    fast=0.004,
    fast_query=0.001,
    lengths=((20, 30, 25), (10, 12, 40), (60, 60, 60)),
)
FAST, GUARDED, ALWAYS = tiers(0.4)


def by_hand(lengths: list[tuple[int, ...]]) -> list[float]:
    """When each query of a batch is done, step after step."""
    rows = [(place, length) for place, each in enumerate(lengths) for length in each]
    now, done = COSTS.query * len(lengths), [0.0] * len(lengths)
    for step in range(1, max(length for _, length in rows) + 1):
        living = [place for place, length in rows if length >= step]
        now += COSTS.step + COSTS.row * len(living)
        for place in set(living):
            done[place] = now
    return done


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=6))
def test_the_time_of_a_batch_is_that_of_its_steps(lengths):
    whole, each = COSTS.batch(lengths)
    assert each == pytest.approx(by_hand(lengths))
    assert whole == pytest.approx(max(each))


def test_costs_are_found_again_from_the_times_of_batches():
    draw = np.random.default_rng(0)
    rows, seconds = [], []
    for size in (1, 1, 4, 4, 16, 16):
        lengths = [tuple(draw.integers(5, 60, 3).tolist()) for _ in range(size)]
        rows.append((max(map(max, lengths)), sum(map(sum, lengths)), size))
        seconds.append(COSTS.batch(lengths)[0])
    assert _least_squares(np.array(rows, float), np.array(seconds)) == pytest.approx(
        (COSTS.step, COSTS.row, COSTS.query)
    )


def test_a_lone_query_waits_for_itself_alone():
    found = simulate(COSTS, 0.01, ALWAYS, queries=500)
    alone = np.mean([COSTS.batch([each])[0] for each in COSTS.lengths]) * 1000
    assert found.mean_ms == pytest.approx(alone, rel=0.1)
    assert found.batch == pytest.approx(1, abs=0.01)
    assert found.stable
    assert simulate(COSTS, 0.01, ALWAYS, queries=500, overhead_s=1).mean_ms == pytest.approx(
        found.mean_ms + 1000
    )


@pytest.mark.parametrize("tier", [FAST, GUARDED, ALWAYS], ids=lambda tier: tier.name)
def test_waiting_grows_with_the_rate_until_it_has_no_end(tier):
    one = capacity(COSTS, tier)
    found = [simulate(COSTS, part * one, tier, queries=3000) for part in (0.1, 0.4, 0.8, 3.0)]
    waits = [each.mean_ms for each in found]
    assert waits == sorted(waits)
    assert [each.stable for each in found] == [True, True, True, False]
    assert all(each.p50_ms <= each.p95_ms for each in found)
    assert found[0].busy < found[2].busy <= 1


def test_a_batch_holds_what_came_during_the_one_before():
    """Little's law for the queue: so many are under way as come in the time that one of them takes."""
    rate = 0.5 * capacity(COSTS, FAST)
    found = simulate(COSTS, rate, FAST, queries=8000)
    cycle = COSTS.fast_batch(1) + COSTS.fast_query * (found.batch - 1)
    assert found.batch == pytest.approx(max(1.0, rate * cycle), rel=0.1)


def test_less_thinking_does_more_queries_and_a_limit_does_fewer():
    rates = [capacity(COSTS, tier) for tier in (FAST, GUARDED, ALWAYS)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < capacity(COSTS, ALWAYS, within_s=0.5) < rates[2]
    assert capacity(COSTS, ALWAYS, within_s=0.01) == pytest.approx(0, abs=0.05)
    assert machines(100, 20) == 9
    assert cost_of_a_million(10, 1.0) == pytest.approx(1e6 / 6 / 3600)
    with pytest.raises(SettingsError, match="share"):
        Tier(name="guarded", share=1.5)
    with pytest.raises(SettingsError, match="rate"):
        simulate(COSTS, 0, FAST)


@pytest.mark.parametrize("documents", [100_000, 1_000_000])
def test_an_index_takes_what_was_measured(root, documents):
    path = root / "benchmarks" / "results" / "speed.jsonl"
    if not path.is_file():
        pytest.skip("the source distribution has no results")
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    found = {row["name"]: row["value"] for row in rows}
    needs = index_needs(documents, 384)
    process = found["search/1000/memory_mb"]
    assert needs.memory / 1e6 == pytest.approx(found[f"search/{documents}/memory_mb"] - process, rel=0.08)
    assert needs.disk / 1e6 == pytest.approx(found[f"search/{documents}/disk_mb"], rel=0.05)
    assert needs.add_s == pytest.approx(found[f"search/{documents}/add_s"], rel=0.3)
    assert needs.open_s == pytest.approx(found[f"search/{documents}/open_s"], rel=0.15)


def test_a_model_is_measured_and_sized(tmp_path):
    from o1_retriever import ThinkingEmbedder
    from tests.support.commands import ok, save

    model = str(save(tmp_path / "model"))
    cached = ThinkingEmbedder.from_pretrained(model)
    with pytest.raises(SettingsError, match="a cache"):
        measure_costs(cached, [f"query {number}" for number in range(64)])
    with pytest.raises(SettingsError, match="expected an embedder with cache=False and 64 different"):
        measure_costs(ThinkingEmbedder.from_pretrained(model, cache=False), ["one"] * 99)
    said = ok("size", "--model", model, "--qps", "5", "--docs", "1000000", "--price", "2")
    for words in (
        "fast",
        "guarded",
        "always",
        "a million",
        "2 thoughts of ",
        "1,000,000 documents",
    ):
        assert words in said
    found = json.loads(ok("size", "--model", model, "--qps", "5", "--within", "9", "--json"))
    names = [tier["name"] for tier in found["tiers"]]
    assert names == ["fast", "guarded", "always"]
    assert all(tier["machines"] >= 1 and tier["million"] > 0 for tier in found["tiers"])
    assert found["process_bytes"] > 10_000_000
