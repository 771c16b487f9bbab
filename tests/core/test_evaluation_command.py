"""`o1-retriever eval` on a small collection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from o1_retriever.cli.evaluate import _fitting
from tests.support.small_collection import write_small


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    from tests.support.tiny import tiny_model

    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_command_prints_one_table_and_writes_the_report(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from o1_retriever.cli.app import app

    monkeypatch.setenv("COLUMNS", "240")
    base = ["eval", "--model", str(tiny), "--data", str(folder), "--work", str(tmp_path / "work")]
    base += ["--n-thoughts", "never,2", "--max-new-tokens", "6"]
    done = CliRunner().invoke(app, [*base, "--bm25", "--hybrid", "--report", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for name in ("tiny, no thoughts", "tiny, 2 thoughts", "tiny + BM25, 2 thoughts", "BM25, 2 thoughts"):
        assert name in done.output
    assert (tmp_path / "out" / "small-test" / "report.html").is_file()
    again = CliRunner().invoke(app, [*base, "--json"])
    rows = [json.loads(line) for line in again.stdout.splitlines()]
    assert [row["system"] for row in rows] == ["tiny, no thoughts", "tiny, 2 thoughts"]
    assert rows[1]["cost"]["thought_tokens"] > 0
    assert rows[1]["cost"]["cached"]


def test_the_command_reports_a_malformed_collection_and_refuses_it_when_strict(
    folder: Path, tiny: Path
) -> None:
    from o1_retriever.cli.app import app

    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "rust", "text": "Again."}\n')
    command = ["eval", "--model", str(tiny), "--data", str(folder), "-n", "never"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert "duplicate document id: 1" in done.stderr
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert strict.exit_code == 1
    assert "duplicate document id" in strict.stderr


def test_a_narrow_terminal_is_spared_the_columns_that_matter_least() -> None:
    heads, widths = ["system", "nDCG@10", "MAP", "gain", "MB"], [10, 7, 6, 7, 5]
    everything = sum(widths) + 3 * len(widths) + 1
    assert _fitting(heads, widths, everything, ["MAP", "MB"]) == [0, 1, 2, 3, 4]
    assert _fitting(heads, widths, everything - 1, ["MAP", "MB"]) == [0, 1, 3, 4]
    assert _fitting(heads, widths, everything - 10, ["MAP", "MB"]) == [0, 1, 3]
    assert _fitting(heads, widths, 5, ["MAP", "MB"]) == [0, 1, 3]
