"""What a thought is worth: ranks in an index, the control, what is refused, and what is learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.encoders import as_encoder
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import load_collection
from o1_retriever.evaluation.sources import write_collection
from o1_retriever.thought import Thought
from o1_retriever.vectors import unit
from o1_retriever_training.improve import Rated, Reward, RewardRules, refused, write_rewarded
from tests.support.adapters import bag_of_words

FACTS = [
    "yeast feeds on the sugar in dough", "penicillin was found by Fleming", "a balance measures mass",
    "Madrid lies in the northern hemisphere", "frost forms on cold windows", "copper conducts electricity",
]  # fmt: skip
QUESTIONS = {"Why does bread rise?": [0], "What makes a wire useful?": [5, 2]}
THOUGHTS = {
    "Why does bread rise?": [
        "Yeast feeds on sugar in the dough.", "Frost forms on cold windows.", "Bread rise.",
    ],
    "What makes a wire useful?": [
        "Copper conducts electricity well.", "Penicillin penicillin penicillin penicillin was found.", "",
    ],
}  # fmt: skip
SETTINGS = ThoughtSettings(n_thoughts=3, query_weight=1.0)


@pytest.fixture
def reward(tmp_path: Path) -> Reward:
    write_collection(
        tmp_path,
        documents=[{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(FACTS)],
        queries=[{"_id": "q", "text": "?"}],
        judgments=[("q", "d0", 1)],
        split="dev",
    )
    corpus = load_collection(tmp_path, split="dev").corpus
    embedder = ThinkingEmbedder.from_parts(
        lambda queries, k: [THOUGHTS[query][:k] for query in queries], as_encoder(bag_of_words), cache=False
    )
    return Reward(embedder, corpus, unit(bag_of_words(FACTS)))


def test_a_thought_that_brings_its_passages_to_the_front_is_rewarded_and_anothers_are_not(
    reward: Reward, tmp_path: Path
) -> None:
    bread, wire = reward.rated(QUESTIONS, SETTINGS, show=False)
    assert bread.rewards[0] is not None
    assert bread.rewards[0] > 0.1
    assert bread.rewards[1] is not None
    assert bread.rewards[1] < bread.rewards[0], "it is about another question"
    assert bread.rewards[2] is None, "it says nothing that the question does not"
    assert wire.rewards[1:] == (None, None), "a loop, and a failure"
    rules = RewardRules()
    assert bread.best(rules) == [bread.thoughts[0]]
    counts = write_rewarded([bread, wire], tmp_path, rules)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert counts["rows"] == len(rows) == len({(row["query"], row["thought"]) for row in rows})
    assert rows[0] == {"query": bread.query, "thought": bread.thoughts[0], "type": "reward"}
    kept = [json.loads(line) for line in (tmp_path / "rewards.jsonl").read_text().splitlines()]
    assert [row["rewards"] for row in kept] == [[*bread.rewards], [*wire.rewards]]


def test_the_gain_is_the_mean_of_the_logarithms_of_the_ranks_of_vectors_and_bm25(reward: Reward) -> None:
    thought = Thought(text="Copper conducts electricity well.")
    query, relevant = "What makes a wire useful?", [5, 2]
    matrix = unit(bag_of_words(FACTS))
    own = unit(bag_of_words([query]))[0]
    [gain] = reward._gains(query, relevant, own, [thought], 1.0)
    joined = unit(own[None] + unit(bag_of_words([f"{query} {thought.text}"])))[0]

    def ranks(scores: np.ndarray) -> np.ndarray:
        return np.asarray([sum(scores > scores[place]) for place in relevant])

    dense = np.log1p(ranks(matrix @ own)) - np.log1p(ranks(matrix @ joined))
    words = [reward._bm25.scores(text) for text in (query, thought.text)]
    lexical = np.log1p(ranks(words[0])) - np.log1p(ranks(words[0] + 0.5 * words[1]))
    assert gain == pytest.approx((dense.mean() + lexical.mean()) / 2)


def test_long_thoughts_pay_for_their_tokens(reward: Reward) -> None:
    long, short = (Thought(text="a b c", completion_tokens=count) for count in (52, 32))
    assert reward._reward(1.0, short) == 1.0
    assert reward._reward(1.0, long) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("text", "finish"),
    [
        ("copper wire conducts", "length"),
        ("copper wire", "eos"),
        ("wires are useful for bread", "eos"),
        ("copper wire heat copper wire copper wire copper", "eos"),
    ],
)
def test_what_is_refused(text: str, finish: str) -> None:
    assert refused(Thought(text=text, finish=finish), "Bread, a useful wire?")  # type: ignore[arg-type]


def test_a_sentence_is_not_refused() -> None:
    assert not refused(Thought(text="Copper conducts electricity."), "What makes a wire useful?")


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=8), st.integers(1, 4))
@example([0.2, 0.2, 0.2], 1)  # whose mean is rounded up
def test_the_best_are_above_the_mean_and_above_the_least(rewards: list[float | None], kept: int) -> None:
    thoughts = tuple(f"thought {number}" for number in range(len(rewards)))
    rules = RewardRules(kept=kept, least=0.1)
    best = Rated(query="?", thoughts=thoughts, rewards=tuple(rewards)).best(rules)
    known = [reward for reward in rewards if reward is not None]
    of = dict(zip(thoughts, rewards, strict=True))
    chosen = [of[text] for text in best]
    assert len(best) <= kept
    assert all(value is not None and value >= 0.1 for value in chosen)
    assert chosen == sorted(chosen, reverse=True)  # type: ignore[type-var]
    if max(known, default=0.0) >= 0.1:
        assert chosen[0] == max(known)


def test_a_reward_of_nought_counts_in_the_mean() -> None:
    rated = Rated(query="?", thoughts=tuple("abcdef"), rewards=(0.0, 0.0, 0.0, 0.15, 0.35, None))
    assert rated.best(RewardRules()) == ["e", "d"]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_no_question_is_left_without_a_thought_about_another(
    reward: Reward, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("o1_retriever_training.improve._AT_ONCE", 2)
    parts: list[int] = []
    rate = reward._part

    def noted(questions: dict[str, Any], settings: ThoughtSettings) -> Any:
        parts.append(len(questions))
        return rate(questions, settings)

    monkeypatch.setattr(reward, "_part", noted)
    asked = {f"question {place}?": [0] for place in range(count)}
    for query in asked:
        monkeypatch.setitem(THOUGHTS, query, THOUGHTS["Why does bread rise?"])
    assert [each.query for each in reward.rated(asked, SETTINGS, show=False)] == [*asked]
    assert parts == {3: [3], 4: [2, 2], 5: [2, 3]}[count]


def test_the_control_is_of_the_next_question_that_has_a_thought(
    reward: Reward, monkeypatch: pytest.MonkeyPatch
) -> None:
    helps = "Yeast feeds on sugar in the dough."
    asked = {"Why does bread rise?": [0], "Nothing?": [1], "Why is it warm?": [0]}
    monkeypatch.setitem(THOUGHTS, "Nothing?", ["", "", ""])
    monkeypatch.setitem(THOUGHTS, "Why is it warm?", [helps] * 3)
    bread, nothing, _ = reward.rated(asked, SETTINGS, show=False)
    assert nothing.rewards == (None, None, None)
    assert bread.thoughts[0] == helps
    assert bread.rewards[0] == pytest.approx(0.0), "a thought about another question gains the same"


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"kept": 0}, {"per_token": -1.0}])
def test_rules_that_cannot_be_used(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        RewardRules(**wrong)  # type: ignore[arg-type]
