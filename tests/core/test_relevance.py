"""One scale from 0 to 1 for every kind of search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever import Index, Retriever
from o1_retriever.ranking.fusion import fuse
from o1_retriever.ranking.relevance import of_cosine, of_fusion
from tests.support.adapters import QUERY, TEXTS, many_documents, of_two_minds


@given(st.lists(st.floats(-1.001, 1.001), min_size=1))
def test_of_cosines_it_is_monotone_and_within_bounds(cosines):
    scale = [of_cosine(each) for each in sorted(cosines)]
    assert scale == sorted(scale)
    assert 0 <= scale[0] <= scale[-1] <= 1
    assert all(of_cosine(each) == pytest.approx(each, abs=1e-6) for each in cosines if 0 <= each <= 1)


@given(st.lists(st.permutations(range(12)), min_size=2, max_size=2), st.integers(0, 12))
def test_of_fused_rankings_it_is_monotone_and_within_bounds(rankings, kept):
    fused = sorted(fuse([rankings[0], rankings[1][:kept]]).values())
    scale = [of_fusion(each) for each in fused]
    assert scale == sorted(scale)
    assert 0 < scale[0] <= scale[-1] <= 1
    assert len(set(scale)) == len(set(fused)), "equal only where the fused scores are"


def test_the_best_that_there_can_be_is_1():
    first = fuse([["a", "b"], ["a", "c"]])
    assert of_fusion(first["a"]) == pytest.approx(1)
    assert of_fusion(first["b"]) == pytest.approx(0.5, abs=0.01)
    assert of_cosine(1.0000001) == 1


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
