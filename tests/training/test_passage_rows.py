"""Rows that teach a small model what stands in an index."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.errors import SettingsError
from o1_retriever_training.make_data import RowPlan, closed, pieces, write_rows
from o1_retriever_training.rows import DataError, TrainingRow

FACTS = ["a kiln is used to fire clay", "clay is a kind of soft soil", "iron rusts in the wet air", "ok"]
LONG = " ".join(f"Sentence {number} is about the number {number}." for number in range(40))


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_passage_is_the_thought_about_some_of_its_rarer_words(tmp_path: Path) -> None:
    plan = RowPlan(draws=3, common=0.3)
    counts = write_rows(FACTS, [], tmp_path / "a.jsonl", plan=plan)
    written = rows(tmp_path / "a.jsonl")
    assert counts == {"keywords": 9}  # the last one says nothing
    for row in written:
        assert row["thought"].removesuffix(".") in FACTS
        assert row["query"].split()
        assert set(row["query"].split()) <= set(row["thought"].removesuffix(".").split())
        assert "clay" not in row["query"], "the word stands in half of the passages"
    assert len({row["query"] for row in written if row["thought"].startswith("iron")}) > 1
    write_rows(FACTS, [], tmp_path / "b.jsonl", plan=plan)
    assert rows(tmp_path / "b.jsonl") == written
    write_rows(FACTS, [], tmp_path / "b.jsonl", plan=RowPlan(draws=3, common=0.3, seed=1))
    assert rows(tmp_path / "b.jsonl") != written


def test_questions_have_their_passages_and_their_thoughts_as_thoughts(tmp_path: Path) -> None:
    questions = [
        TrainingRow(query="What fires clay?", pos=FACTS[:3]),
        TrainingRow(query="Why?", all_thought=["Because.", None, "So."], thought="So."),
        TrainingRow(query="What?", thought="That."),
    ]
    counts = write_rows(FACTS, questions, tmp_path / "a.jsonl", plan=RowPlan(draws=2, answers=4))
    assert counts == {"keywords": 6, "answer": 4, "thought": 6}
    answers = [row["thought"] for row in rows(tmp_path / "a.jsonl") if row["type"] == "answer"]
    assert all({*text.removesuffix(".").split(". ")} <= {*FACTS} for text in answers)
    assert len({*answers}) > 1
    assert [row["thought"] for row in rows(tmp_path / "a.jsonl")[-6:]] == [
        *["Because."] * 2, *["So."] * 2, *["That."] * 2
    ]  # fmt: skip


def test_many_long_passages_of_a_question_fit_into_a_thought(tmp_path: Path) -> None:
    question = TrainingRow(query="Which?", pos=[LONG, *FACTS[:3]])
    write_rows([LONG], [question], tmp_path / "a.jsonl", plan=RowPlan(longest=14, answers=8))
    for row in rows(tmp_path / "a.jsonl"):
        assert len(row["thought"].split()) <= 14
        assert row["thought"].endswith(".")


@given(st.text(max_size=400), st.integers(1, 30), st.integers(0, 5))
def test_a_piece_is_of_the_text_and_no_longer_than_asked(text: str, longest: int, seed: int) -> None:
    for piece in pieces(text, 2, longest, Random(seed)):
        assert len(piece.split()) <= longest
        assert piece in " ".join(text.split())


@given(st.text(max_size=60))
def test_a_closed_text_ends_like_a_sentence(text: str) -> None:
    assert closed(text).endswith((".", "!", "?", "…"))
    assert closed(closed(text)) == closed(text)


def test_nothing_to_learn_from_and_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None of 1 passage"):
        write_rows(["ok"], [], tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    for wrong in ({"draws": 0}, {"keywords": (3, 2)}, {"common": 0.0}, {"longest": 0}):
        with pytest.raises(SettingsError):
            RowPlan(**wrong)  # type: ignore[arg-type]
