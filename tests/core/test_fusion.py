"""Several rankings become one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.ranking.ranking import best_of, fuse

NAMES = st.sampled_from("abcdefghij")
COSINES = st.integers(-100, 100).map(lambda n: n / 100)
DENSE = st.dictionaries(NAMES, COSINES, min_size=1)
LEXICAL = st.dictionaries(NAMES, st.integers(1, 400).map(lambda n: n / 8))


def test_a_fused_score_is_the_sum_of_stretched_scores():
    # Of the vectors' three, "c" is the least; of BM25's two, what shares no word is.
    fused = fuse({"a": 0.8, "b": 0.5, "c": 0.2}, {"b": 6.0, "d": 3.0})
    assert fused == pytest.approx({"a": 0.5, "b": (0.5 + 1) / 2, "c": 0, "d": 0.25})


def test_of_a_list_of_bm25_that_is_full_the_least_is_0():
    fused = fuse({"a": 0.8, "b": 0.5}, {"a": 6.0, "b": 3.0}, depth=2)
    assert fused == pytest.approx({"a": 1, "b": 0})


def test_rankings_without_differences_or_without_documents():
    assert fuse({}, {}) == {}
    assert fuse({"a": 0.3, "b": 0.3}, {}) == pytest.approx({"a": 0.5, "b": 0.5})
    assert fuse({}, {"a": 2.0}) == pytest.approx({"a": 0.5})


@given(DENSE, LEXICAL, st.floats(0.1, 10), st.floats(-0.5, 0.5))
def test_the_scale_of_an_encoders_scores_changes_nothing(dense, lexical, slope, shift):
    fused = fuse(dense, lexical)
    other = fuse({key: slope * score + shift for key, score in dense.items()}, lexical)
    assert other == pytest.approx(fused, abs=1e-3)
    assert all(0 <= score <= 1 for score in fused.values())
    assert fused.keys() == dense.keys() | lexical.keys()


@given(DENSE, LEXICAL)
def test_who_is_better_in_both_is_better(dense, lexical):
    fused = fuse(dense, lexical)
    for one in dense:
        for other in dense:
            if dense[one] > dense[other] and lexical.get(one, 0) >= lexical.get(other, 0):
                assert fused[one] > fused[other]


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
