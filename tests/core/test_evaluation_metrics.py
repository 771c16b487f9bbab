"""Measures against hand-computed values, tests against enumeration, run files, rankings."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.errors import CollectionError, SettingsError
from o1_retriever.evaluation.comparison import bootstrap_interval, compare, holm, randomisation_test
from o1_retriever.evaluation.metrics import means, ordered, per_query, thoughts_path, write_run
from o1_retriever.evaluation.systems import VectorGraph, recall_lost
from o1_retriever.query import as_queries
from o1_retriever.ranking.ranking import best, search_exactly, tie_order
from o1_retriever.thinkers import RecordedThinker
from o1_retriever.thought import Thought, ThoughtSettings

QRELS = {"q": {"a": 2, "b": 1, "c": 0, "gone": 1}, "missing": {"a": 1}}
RUN = {"q": {"x": 4.0, "b": 3.0, "a": 2.0, "c": 1.0}, "unjudged": {"a": 1.0}}


def test_measures_are_those_computed_by_hand() -> None:
    values = {name: by_query["q"] for name, by_query in per_query(QRELS, RUN).items()}
    # b (grade 1) at rank 2, a (grade 2) at rank 3; three documents are relevant, one is never found.
    gained = 1 / math.log2(3) + 2 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert values["nDCG@10"] == pytest.approx(gained / ideal)
    assert values["Recall@100"] == values["Recall@1000"] == pytest.approx(2 / 3)
    assert values["MRR@10"] == pytest.approx(1 / 2)
    assert values["MAP"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert values["Success@1"] == 0


def test_a_judged_query_that_the_run_lacks_counts_as_nothing_found() -> None:
    values = per_query(QRELS, RUN, measures=["MRR@10"])
    assert values == {"MRR@10": {"q": 0.5, "missing": 0.0}}
    assert means(values) == {"MRR@10": 0.25}


def test_a_document_with_the_id_of_its_query_is_ignored() -> None:
    values = per_query({"q": {"a": 1}}, {"q": {"q": 9.0, "a": 1.0}}, measures=["Success@1", "MRR@10"])
    assert means(values) == {"Success@1": 1.0, "MRR@10": 1.0}


def test_ties_are_broken_by_descending_id_in_every_measure() -> None:
    run = {"q": {"a": 1.0, "b": 1.0}}
    names = ["Success@1", "MRR@10", "nDCG@10"]
    assert means(per_query({"q": {"b": 1}}, run, measures=names)) == dict.fromkeys(names, 1.0)
    assert means(per_query({"q": {"a": 1}}, run, measures=names))["MRR@10"] == 0.5
    assert ordered(run["q"]) == ["b", "a"]


def test_an_unknown_measure_is_named() -> None:
    with pytest.raises(SettingsError, match="nDGC@10"):
        per_query(QRELS, RUN, measures=["nDGC@10"])


def test_the_randomisation_test_counts_all_assignments_of_a_small_case() -> None:
    first, second = np.zeros(5), np.array([0.3, 0.1, 0.0, 0.2, -0.1])
    observed = abs(second.sum())
    sums = [abs(np.dot(signs, second)) for signs in itertools.product([1, -1], repeat=5)]
    expected = np.mean([total >= observed - 1e-12 for total in sums])
    assert randomisation_test(first, second) == pytest.approx(expected)
    assert randomisation_test(second, first) == pytest.approx(expected)
    assert randomisation_test(first, first) == 1.0


def test_the_drawn_test_agrees_with_the_exact_one_and_is_repeatable() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=12), generator.normal(0.4, 1, size=12)
    exact = randomisation_test(first, second, rounds=1 << 12)
    drawn = randomisation_test(first, second, rounds=4000, seed=3)
    assert drawn == pytest.approx(exact, abs=0.03)
    assert drawn == randomisation_test(first, second, rounds=4000, seed=3)
    strong = randomisation_test(np.zeros(60), np.ones(60), rounds=999)
    assert strong == pytest.approx(1 / 1000)


def test_holm_is_the_textbook_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_the_queries() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    # A normal mean's 95 % interval is 3.92 standard errors wide.
    assert high - low == pytest.approx(3.92 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25)


def test_comparisons_count_queries_and_correct_for_their_number() -> None:
    base = np.array([0.1, 0.2, 0.3, 0.4])
    found = compare(base, {"same": base, "better": base + np.array([0.1, 0.1, -0.1, 0])})
    assert (found["better"].wins, found["better"].losses, found["better"].ties) == (2, 1, 1)
    assert found["better"].difference == pytest.approx(0.025)
    assert found["better"].p_corrected == min(1, 2 * found["better"].p)
    assert found["same"].p == 1.0
    with pytest.raises(SettingsError, match="one per query"):
        compare(base, {"short": base[:2]})


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=8).filter(
    lambda text: len(text.split()) == 1
)
SCORES = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60)
@given(run=st.dictionaries(NAMES, st.dictionaries(NAMES, SCORES, min_size=1, max_size=5), max_size=4))
def test_runs_survive_a_round_trip(run: dict[str, dict[str, float]], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    write_run(path, run)
    found: dict[str, dict[str, float]] = {}
    for row in ir_measures.read_trec_run(str(path)):
        found.setdefault(row.query_id, {})[row.doc_id] = row.score
    assert found == run
    assert all(list(found[query]) == ordered(run[query]) for query in run)


def test_the_thoughts_beside_a_run_can_be_thought_again(tmp_path: Path) -> None:
    thoughts = {"q": [Thought(text="one", completion_tokens=3), Thought.failure("no answer")]}
    write_run(tmp_path / "a.trec", RUN, queries={"q": "why?"}, thoughts=thoughts)
    row = json.loads(thoughts_path(tmp_path / "a.trec").read_text())
    assert (row["thoughts"], row["tokens"], row["errors"]) == (["one", None], [3, 0], [None, "no answer"])
    again = RecordedThinker(thoughts_path(tmp_path / "a.trec")).think(
        as_queries(["why?"]), settings=ThoughtSettings(n_thoughts=2)
    )
    assert [thought.text for thought in again[0]] == ["one", ""]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.thoughts.jsonl", "a.trec"]


def test_what_a_run_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    for run in ({"a b": {"d": 1.0}}, {"q": {"": 1.0}}, {"q": {"d": math.inf}}):
        with pytest.raises(CollectionError):
            write_run(tmp_path / "run.trec", run)
    assert not list(tmp_path.iterdir())


@settings(max_examples=80)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 12))
def test_the_best_are_those_of_a_full_sort_with_ties(levels: list[int], depth: int) -> None:
    ids = [f"d{place * 7 % 31}" for place in range(len(levels))]
    ties = tie_order(ids)
    scores = np.array(levels, dtype=np.float32)
    places = np.arange(len(ids))
    expected = ordered(dict(zip(ids, map(float, levels), strict=True)))[:depth]
    assert [ids[place] for place in best(places, scores, depth, ties=ties).keys] == expected
    # The same through the block-wise product, whatever the blocks.
    matrix = scores[:, None]
    for size in (4, 16, 1 << 20):
        found = search_exactly(np.ones((1, 1), np.float32), matrix, depth, ties=ties, block_bytes=size)[0]
        assert [ids[place] for place in found.keys] == expected


def test_a_graph_search_reports_what_it_lost() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(300, 16)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    exact = search_exactly(matrix[:5], matrix, 20, ties=np.arange(300))
    lost = recall_lost(exact, VectorGraph(matrix).search(matrix[:5], 20, ties=np.arange(300)), 20)
    assert 0 <= lost.at_10 < 0.05
    assert [ranking.keys[0] for ranking in exact] == list(range(5))
    assert recall_lost(exact, exact[::-1], 20).at_depth > 0.5
    assert recall_lost(exact, exact, 20).at_10 == 0
