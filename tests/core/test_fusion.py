"""Several rankings become one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.ranking.fusion import best_of, fuse

NAMES = st.lists(st.sampled_from("abcdefghij"), unique=True)


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_fused_scores_are_sums_of_reciprocal_ranks(rankings):
    expected: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking):
            expected[name] = expected.get(name, 0.0) + 1 / (60 + rank)
    assert fuse(rankings) == pytest.approx(expected)


def test_who_is_absent_gets_nothing():
    assert fuse([["a", "b"], ["b"]]) == pytest.approx({"a": 1 / 60, "b": 1 / 61 + 1 / 60})
    assert fuse([]) == fuse([[], []]) == {}


@given(
    st.lists(
        st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12, unique=True), min_size=1, max_size=4
    ),
    st.integers(1, 15),
)
def test_the_best_of_the_first_k_of_each_is_the_best_of_all(rows, k):
    scores = np.array(rows)
    firsts = [[(int(at), float(row[at])) for at in np.argsort(-row)[:k]] for row in scores]
    best = scores.max(axis=0)
    found = best_of(firsts, k)
    assert [score for _, score in found] == sorted(best.tolist(), reverse=True)[:k]
    assert all(best[place] == score for place, score in found)
