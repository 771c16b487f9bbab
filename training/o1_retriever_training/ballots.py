"""Counting: from the members' scores of some candidates to the one that is elected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from o1_retriever.errors import SettingsError

Rule = Literal["majority", "soft", "mean-rank"]
RULES: tuple[str, ...] = get_args(Rule)


def favourite(scores: Sequence[float]) -> int:
    """The candidate that a member votes for: its best, of equals the first."""
    return int(np.argmax(np.asarray(scores)))


def elect(
    scores: Mapping[str, Sequence[float]],
    *,
    rule: Rule = "majority",
    weights: Mapping[str, float] | None = None,
) -> int:
    """The place of the elected candidate; `scores` has each member's, all for the same candidates.

    "majority" counts the members' favourites (each as much as its weight), "soft" adds up their softmaxed
    scores with weights, "mean-rank" takes the best weighted mean rank. Ties go to the better mean rank,
    then to the first. Raises `SettingsError` without a candidate, or for an unknown rule.
    """
    names = list(scores)
    table = np.array([scores[name] for name in names], dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise SettingsError(f"Found scores of shape {table.shape}; expected some candidates and members.")
    share = np.array([(weights or {}).get(name, 1.0) for name in names])
    ranks = _ranks(table)
    mean_rank = share @ ranks / share.sum()
    if rule == "majority":
        votes = np.zeros(table.shape[1])
        for row, weight in zip(table, share, strict=True):
            votes[favourite(row.tolist())] += weight
        goodness = votes
    elif rule == "soft":
        powers = np.exp(table - table.max(axis=1, keepdims=True))
        goodness = share @ (powers / powers.sum(axis=1, keepdims=True))
    elif rule == "mean-rank":
        goodness = -mean_rank
    else:
        raise SettingsError(f"The rule is {rule!r}; expected one of {', '.join(RULES)}.")
    best = np.flatnonzero(goodness >= goodness.max() - 1e-12)
    return int(best[np.argmin(mean_rank[best])])


def _ranks(
    table: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Each member's ranks of the candidates, from 1; equal scores share the mean of their ranks."""
    better = (table[:, None, :] > table[:, :, None]).sum(axis=2)
    equal = (table[:, None, :] == table[:, :, None]).sum(axis=2)
    return np.asarray(better + (equal + 1) / 2, dtype=np.float64)
