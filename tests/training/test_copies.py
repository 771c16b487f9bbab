"""Thoughts that repeat their document are kept from the thinking vector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o1_retriever_training.improve import separate_copies, share_copied, split_copies
from o1_retriever_training.rows import TrainingRow


@pytest.mark.parametrize(
    ("thought", "documents", "share"),
    [
        # stems: frog live water cold | frog live water
        ("Frogs live in cold water", ["A frog lives in water"], 0.75),
        ("Frogs live in cold water", ["Nothing of it", "cold frogs living in the water"], 1.0),
        ("Frogs live", ["Iron is heavy"], 0.0),
        ("It is the", ["It is the"], 0.0),
        ("Frogs live", [], 0.0),
    ],
)
def test_the_share_counts_content_words_of_the_best_document(
    thought: str, documents: list[str], share: float
) -> None:
    assert share_copied(thought, documents) == share


def test_a_copy_is_split_into_a_row_for_each_loss() -> None:
    row = TrainingRow(
        query="q", pos=["a frog lives in water"], neg=["iron"], thought="frog lives in water", neg_scores=[1]
    )
    bare, written = split_copies(row, 0.6)
    assert (bare.thought, bare.all_thought, bare.pos, bare.neg) == (None, [], row.pos, ["iron"])
    assert (written.thought, written.pos, written.neg, written.neg_scores) == (row.thought, [], [], None)
    assert bare.identity != written.identity


@pytest.mark.parametrize(
    "row",
    [
        TrainingRow(query="q", pos=["a frog lives in water"], thought="frog: a cold green animal jumps"),
        TrainingRow(query="q", pos=["a frog lives in water"]),
        TrainingRow(query="q", thought="frog lives in water"),
    ],
)
def test_other_rows_stay_as_they_are(row: TrainingRow) -> None:
    assert split_copies(row, 0.6) == [row]


def test_at_the_limit_a_thought_is_no_copy() -> None:
    row = TrainingRow(query="q", pos=["frog water"], thought="frog water cold green")
    assert share_copied(row.thought or "", row.pos) == 0.5
    assert len(split_copies(row, 0.5)) == 1
    assert len(split_copies(row, 0.49)) == 2


def test_a_file_is_separated_and_counted(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "pos": ["frogs live in water"], "thought": "frogs live in water"},
        {"query": "b", "pos": ["iron rusts"], "thought": "metal and rain"},
    ]
    source, out = tmp_path / "voted.jsonl", tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert separate_copies(source, out) == {"rows": 2, "copies": 1}
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["query"], bool(row["pos"]), bool(row["thought"])) for row in found] == [
        ("a", True, False),
        ("a", False, True),
        ("b", True, True),
    ]
