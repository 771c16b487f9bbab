"""Whether a difference between two systems is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o1_retriever.errors import SettingsError

Values = NDArray[np.float64]
ROUNDS = 10_000
_AT_ONCE = 4 << 20  # numbers drawn at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A system against another over the same queries.

    `difference` is the mean gain with its bootstrap interval from `low` to `high`; `p` is the two-sided
    p-value of a paired randomisation test, `p_corrected` after Holm's correction for all comparisons of
    the table. `wins`, `losses` and `ties` count queries.
    """

    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    wins: int
    losses: int
    ties: int


def randomisation_test(first: Values, second: Values, *, rounds: int = ROUNDS, seed: int = 0) -> float:
    """Two-sided p-value for the difference of means of two systems over the same queries.

    Under the null hypothesis the two values of a query may be swapped. With at most `rounds` possible
    assignments all of them are counted, which is exact; otherwise `rounds` are drawn with `seed` and
    p = (1 + as extreme) / (1 + rounds).
    """
    differences = _paired(second, first)
    if not differences.any():
        return 1.0
    # A query without a difference changes no sum.
    differences = differences[differences != 0]
    count = len(differences)
    # Sums of the same numbers in another order differ by rounding; a hair less counts as equal.
    bar = abs(differences.sum()) * (1 - 1e-9)
    if 2**count <= rounds:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float(np.mean(np.abs(signs @ differences) >= bar))
    generator = np.random.default_rng(seed)
    extreme, left = 0, rounds
    while left:
        step = min(left, max(1, _AT_ONCE // count))
        signs = 1 - 2 * generator.integers(0, 2, size=(step, count), dtype=np.int8)
        extreme += int(np.sum(np.abs(signs @ differences) >= bar))
        left -= step
    return (1 + extreme) / (1 + rounds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons: adjusted p-values in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return [float(value) for value in adjusted]


def bootstrap_interval(
    values: Values, *, confidence: float = 0.95, rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries, drawn `rounds` times with `seed`."""
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence is {confidence!r}; expected a share between 0 and 1.")
    if not len(values):
        raise SettingsError("Found no values; expected one per query.")
    generator = np.random.default_rng(seed)
    drawn = []
    step = max(1, _AT_ONCE // len(values))
    for first in range(0, rounds, step):
        places = generator.integers(0, len(values), size=(min(step, rounds - first), len(values)))
        drawn.append(values[places].mean(axis=1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def compare(
    baseline: Values, others: Mapping[str, Values], *, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Comparison]:
    """Each of the others against the baseline, by name, corrected for their number."""
    raw = {
        name: randomisation_test(baseline, values, rounds=rounds, seed=seed)
        for name, values in others.items()
    }
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    result = {}
    for name, values in others.items():
        gain = _paired(values, baseline)
        low, high = bootstrap_interval(gain, rounds=rounds, seed=seed)
        result[name] = Comparison(
            difference=float(gain.mean()),
            low=low,
            high=high,
            p=raw[name],
            p_corrected=corrected[name],
            wins=int((gain > 0).sum()),
            losses=int((gain < 0).sum()),
            ties=int((gain == 0).sum()),
        )
    return result


def _paired(first: Values, second: Values) -> Values:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise SettingsError(
            f"Found values of shapes {first.shape} and {second.shape}; expected one per query of each."
        )
    return np.asarray(first - second, dtype=np.float64)
