"""Draws that depend on nothing but their counter, and follow the nucleus without sorting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.engine.rows import Sampler, _nucleus, penalise, stream_key, uniforms
from o1_retriever.errors import SettingsError
from o1_retriever.thought import ThoughtSettings

penalties = st.floats(0.1, 9)


def steps_of(count: int, step: int = 0) -> torch.Tensor:
    return torch.full((count,), step)


def streams(count: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([stream_key(seed, [1, 2, 3], i) for i in range(count)])


def splitmix(key: int, step: int, attempt: int) -> float:
    """The same number in plain Python integers."""
    low = (1 << 64) - 1
    x = (key + (step + 1) * 0x9E3779B97F4A7C15 + attempt * 0xD1B54A32D192ED03) & low
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & low
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & low
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 5000), st.integers(0, 9))
def test_uniform_numbers_are_those_of_splitmix(key: int, step: int, attempt: int) -> None:
    found = float(uniforms(torch.tensor([key]), torch.tensor([step]), attempt)[0])
    assert found == splitmix(key, step, attempt)
    assert 0 <= found < 1


def test_uniform_numbers_are_uniform_and_reproducible() -> None:
    keys = streams(2000)
    numbers = np.stack([uniforms(keys, steps_of(2000, step)).numpy() for step in range(50)])
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    expected = numbers.size / 20
    # Chi-square with 19 degrees of freedom: above 50 in fewer than one of ten thousand cases.
    assert ((counts - expected) ** 2 / expected).sum() < 50
    assert abs(np.corrcoef(numbers[0], numbers[1])[0, 1]) < 0.1
    assert len(np.unique(numbers)) == numbers.size
    assert (uniforms(keys, steps_of(2000, 7)).numpy() == numbers[7]).all()


def test_streams_differ_by_seed_prompt_and_index() -> None:
    keys = {stream_key(s, p, i) for s in (0, 1) for p in ([1], [2], [1, 2]) for i in (0, 1, 2)}
    assert len(keys) == 18


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.05, 0.3, 0.15]),
        (1.0, 0.9, [0.5 / 0.95, 0.0, 0.3 / 0.95, 0.15 / 0.95]),
        (1.0, 0.7, [0.625, 0.0, 0.375, 0.0]),
        (0.5, 1.0, [0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365, 0.0225 / 0.365]),
        # So small a nucleus that drawing and rejecting seldom hits it: the rows that are sorted in the end.
        (50.0, 0.1, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_draw_follows_the_nucleus(temperature: float, top_p: float, expected: list[float]) -> None:
    count = 20_000
    logits = torch.tensor([0.5, 0.05, 0.3, 0.15]).log()[None].repeat(count, 1)
    drawn = Sampler(temperature, top_p).draw(logits, streams(count), steps_of(count))
    shares = torch.bincount(drawn, minlength=4) / count
    assert torch.allclose(shares, torch.tensor(expected), atol=0.015)
    assert not shares[torch.tensor(expected) == 0].any()


@settings(max_examples=60)
@given(
    st.integers(2, 700),
    st.integers(0, 2**31),
    st.floats(0.05, 3.0),
    st.floats(0.01, 0.999),
    st.integers(1, 6),
)
def test_every_draw_is_in_the_sorted_nucleus(
    vocabulary: int, seed: int, temperature: float, top_p: float, rows: int
) -> None:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    drawn = Sampler(temperature, top_p).draw(logits.clone(), streams(rows, seed), steps_of(rows, 3))
    weights = torch.softmax(logits / temperature, -1)
    # Rounding may move the border: a hair's breadth is allowed.
    nucleus = _nucleus(weights, min(1.0, top_p + 1e-5)) > 0
    assert nucleus.gather(1, drawn[:, None]).all()


@pytest.mark.parametrize("vocabulary", [2, 100, 128, 130, 8192, 24300])
def test_a_draw_does_not_depend_on_the_other_rows(vocabulary: int) -> None:
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(0))
    sampler, keys, steps = Sampler(0.7, 0.9), streams(40), torch.arange(40)
    together = sampler.draw(logits.clone(), keys, steps)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert (sampler.draw(logits[order], keys[order], steps[order]) == together[order]).all()
    for row in range(0, 40, 7):
        at = slice(row, row + 1)
        assert sampler.draw(logits[at].clone(), keys[at], steps[at]) == together[row]


@pytest.mark.parametrize("top_p", [1e-6, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1e-4, 0.1, 1.0, 50.0])
def test_a_draw_never_takes_a_forbidden_token(temperature: float, top_p: float) -> None:
    count = 500
    logits = torch.full((count, 300), -torch.inf)
    logits[:, 7], logits[:, 140] = 2.0, 1.0
    drawn = Sampler(temperature, top_p).draw(logits, streams(count), steps_of(count))
    assert set(drawn.tolist()) <= {7, 140}


def test_equally_likely_tokens_are_all_or_none_in_the_nucleus() -> None:
    count = 4000
    logits = torch.zeros(count, 4)
    drawn = Sampler(1.0, 0.3).draw(logits, streams(count), steps_of(count))
    assert torch.allclose(torch.bincount(drawn, minlength=4) / count, torch.full((4,), 0.25), atol=0.03)


@given(st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=1, max_size=5), penalties, st.data())
def test_written_tokens_are_penalised_once_each(
    rows: list[list[int]], penalty: float, data: st.DataObject
) -> None:
    number = st.one_of(st.floats(-5, 5), st.just(-float("inf")))
    logits = torch.tensor([data.draw(st.lists(number, min_size=6, max_size=6)) for _ in rows])
    tokens = torch.full((len(rows), 7), 5)  # what stands behind the end of a row must not count
    for row, written in enumerate(rows):
        tokens[row, : len(written)] = torch.tensor(written, dtype=torch.long)
    expected = logits.clone()
    for row, written in enumerate(rows):
        for token in set(written):
            expected[row, token] *= 1 / penalty if expected[row, token] > 0 else penalty
    penalise(logits, tokens, torch.tensor([len(written) for written in rows]), penalty)
    torch.testing.assert_close(logits, expected)


def test_no_penalty_leaves_cache_keys_as_they_were() -> None:
    assert "repetition_penalty" not in ThoughtSettings().sampling()
    assert ThoughtSettings(repetition_penalty=1.5).sampling()["repetition_penalty"] == 1.5
    with pytest.raises(SettingsError, match="repetition_penalty is 0"):
        ThoughtSettings(repetition_penalty=0)
