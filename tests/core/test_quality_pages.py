"""The tables that readers see are those of the recorded figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from benchmarks.quality.card import with_results
from benchmarks.quality.pages import (
    CARD,
    PAGES,
    SETS,
    curves_table,
    examples_table,
    filled,
    gains_table,
    mini_table,
    quality_table,
    robustness_table,
)
from benchmarks.record import Figure, read, record

# Known from elsewhere: nDCG@10 on the test splits.
KNOWN = {
    "scifact/bm25": 0.686,
    "entailmentbank/bm25": 0.2975,
    "entailmentbank/minilm": 0.335,
    "entailmentbank/minilm_with_thoughts": 0.404,
    "entailmentbank/hybrid_with_thoughts": 0.453,
}


def test_the_recorded_figures_are_the_known_ones(root: Path) -> None:
    rows = read(root / "benchmarks" / "results" / "quality.jsonl")
    found = {line["name"]: line["value"] for line in rows}
    assert {name: found[name] for name in KNOWN} == pytest.approx(KNOWN, abs=0.005)


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_the_pages_are_made_of_the_recorded_figures(page: str, root: Path) -> None:
    text = (root / page).read_text(encoding="utf-8")
    for name, (results, table) in PAGES[page].items():
        rows = read(root / "benchmarks" / "results" / results)
        assert rows, f"{results} holds nothing"
        assert filled(text, name, table(rows)) == text, "type: python -m benchmarks.quality.pages"


def test_the_card_has_the_recorded_figures_in_the_hubs_format(root: Path) -> None:
    card = (root / CARD).read_text(encoding="utf-8")
    rows = read(root / "benchmarks" / "results" / "quality.jsonl")
    assert with_results(card, rows, list(SETS)) == card, "type: python -m benchmarks.quality.pages"
    found = {
        (each.dataset_name, each.metric_name): each.metric_value for each in ModelCard(card).data.eval_results
    }
    wanted = {row["name"]: row["value"] for row in rows}
    assert found["qasc_2hop", "nDCG@10, fast"] == wanted["qasc_2hop/o1_embedder_22m_fast"]
    assert len(found) == 2 * len(SETS)


def test_the_pictures_of_the_page_are_there(root: Path) -> None:
    assert (root / "docs" / "curves.png").read_bytes().startswith(b"\x89PNG")


def row(name: str, value: float) -> dict[str, object]:
    return {"name": name, "value": value}


def test_what_was_not_measured_is_a_dash_and_other_sets_are_left_out() -> None:
    table = quality_table([row("scifact/bm25", 0.6863), row("unknown/bm25", 0.5), row("scifact/minilm", 0.6)])
    *_, line = table.splitlines()
    assert line == "| SciFact: 300 claims, 5,183 abstracts | 0.686 | 0.600 | – | – | – |"


def test_o1_embedder_22m_has_its_share_of_minilm_its_control_and_its_costs() -> None:
    rows = [
        row("scifact/minilm", 0.5),
        row("scifact/o1_embedder_22m_fast", 0.49),
        row("scifact/o1_embedder_22m_thinking", 0.6),
    ]
    rows += [
        row("scifact/o1_embedder_22m_thinking_p", 0.02),
        row("scifact/o1_embedder_22m_thinking/tokens", 20.4),
    ]
    *_, line = mini_table(rows).splitlines()
    assert line == "| SciFact | 0.490 | 98.0% | 0.600 | 0.020 | – | 20 | – | – |"


def test_an_example_shows_each_thought_once() -> None:
    example = {"set": "a", "query": "q1", "gain": -0.25, "thoughts": ["ice", "ice", "snow"]}
    *_, line = examples_table([{**example, "places_fast": [1, 4], "places_thinking": []}]).splitlines()
    assert line == "| 1 | a `q1` | ice; snow | -0.25 | 1, 4 | – |"


def test_other_wordings_and_curves_have_their_rows() -> None:
    rows = [
        row("a/dev/typos/bm25", 0.25),
        row("a/dev/as_written/gain/minilm_with_thoughts", 0.1),
        row("a/dev/typos/gain/minilm_with_thoughts", -0.02),
    ]
    assert robustness_table(rows).splitlines()[-1] == "| a/dev, typos | 0.250 | – | – | – | – | – | – |"
    assert gains_table(rows).splitlines()[-1] == "| a/dev, MiniLM | +0.100 | -0.020 | – | – | – |"
    curves = [
        row("a/dev/minilm/never", 0.3),
        row("a/dev/minilm/n_thoughts=2", 0.4),
        row("a/dev/minilm/n_thoughts=3/words=8", 0.5),
    ]
    assert curves_table([*curves, row("a/dev/typos/minilm/never", 0.1)]).splitlines()[2:] == [
        "| a/dev, MiniLM, number of thoughts | never: 0.300, 2: 0.400 |",
        "| a/dev, MiniLM, length of 3 thoughts | words 8: 0.500 |",
    ]


def test_a_page_without_the_marks_is_refused() -> None:
    marked = "a\n<!-- table: t -->\nold\n<!-- end of t -->\nb"
    assert filled(marked, "t", "| \\1 |") == "a\n<!-- table: t -->\n| \\1 |\n<!-- end of t -->\nb"
    with pytest.raises(ValueError, match="no place for the table t"):
        filled("nothing", "t", "")


def test_a_record_says_what_of_the_machine_was_used(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    record(path, [Figure(name="a", value=1, unit="s")], used="1 threads, float32")
    record(path, [Figure(name="a", value=2, unit="s"), Figure(name="b", value=3, unit="s")])
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["name"], line["value"]) for line in found] == [("a", 2), ("b", 3)]
    assert "float32" not in found[0]["machine"]
    record(path, [Figure(name="b", value=4, unit="s")], used="1 threads, float32")
    assert read(path)[1]["machine"] == f"{found[0]['machine']}; 1 threads, float32"
