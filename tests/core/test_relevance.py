"""One scale from 0 to 1 for every kind of search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever import Index, Retriever
from o1_retriever.ranking.ranking import fuse, of_score
from tests.support.adapters import QUERY, TEXTS, many_documents, of_two_minds


@given(st.lists(st.floats(-1.001, 1.001), min_size=1))
def test_of_scores_it_is_monotone_and_within_bounds(cosines):
    scale = [of_score(each) for each in sorted(cosines)]
    assert scale == sorted(scale)
    assert 0 <= scale[0] <= scale[-1] <= 1
    assert all(of_score(each) == pytest.approx(each, abs=1e-6) for each in cosines if 0 <= each <= 1)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-1, 1), min_size=1),
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.01, 50)),
)
def test_a_fused_score_is_its_own_relevance(dense, lexical):
    fused = fuse(dense, lexical)
    assert {key: of_score(score) for key, score in fused.items()} == pytest.approx(fused, abs=1e-6)
    assert max(fused.values()) >= 0.5, "who is first among the vectors"


def test_the_best_that_there_can_be_is_1():
    assert fuse({"a": 0.9, "b": 0.2}, {"a": 7.0})["a"] == 1
    assert of_score(1.0000001) == 1


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "best"])
def test_every_search_is_on_the_scale(tmp_path, hybrid, pooling):
    pytest.importorskip("chromadb", reason="needs the extra `index`")
    embedder = of_two_minds()
    with Index(tmp_path, embedder) as index:
        index.add(many_documents())
        result = Retriever(embedder, index).search(QUERY, k=8, hybrid=hybrid, pooling=pooling)
    scale = [hit.relevance for hit in result]
    assert scale == sorted(scale, reverse=True)
    assert 0 <= scale[-1] <= scale[0] <= 1
    assert {result[0].id, result[1].id} < set(TEXTS)
    assert scale[1] > 0.3, "a usual cut-off keeps what is found"
    assert [hit.to_dict()["relevance"] for hit in result] == scale
