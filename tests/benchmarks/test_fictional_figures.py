"""The script that measures in the fictional world, at toy size; its tables and picture show what it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fictional_world.page import ablation_table, draw, two_hop_table
from benchmarks.fictional_world.run import ablations, trained, two_hop, written
from benchmarks.fictional_world.variants import ABLATIONS, PROMISED, SMALL, Size
from benchmarks.record import Figure, read, record
from o1_retriever_training.joint.recipe import read_train_recipe

TOY = Size(
    world={
        "people": 12, "companies": 5, "cities": 6, "countries": 3, "layers": 1, "width": 16, "heads": 2,
    },
    changes=(
        "optimisation.steps=2", "optimisation.queries=8", "evaluation=null", "checkpoints.every=2",
    ),
)  # fmt: skip


def test_the_three_figures_are_measured_and_models_are_kept(tmp_path: Path) -> None:
    figures = {figure.name: figure for figure in two_hop(tmp_path, TOY)}
    assert set(figures) == {
        f"fictional_world/two_hop/{name}" for name in ("thinking", "joint_not_thinking", "no_thoughts")
    }
    assert all(0 <= figure.value <= 1 and figure.unit == "nDCG@10" for figure in figures.values())
    weights = tmp_path / "joint" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    trained(tmp_path, written(tmp_path, TOY), PROMISED["joint"], TOY)
    assert weights.stat().st_mtime_ns == before, "what was trained before is taken as it is"


def test_a_variant_is_measured_for_each_number_of_thoughts(tmp_path: Path) -> None:
    chosen = [variant for variant in ABLATIONS if variant.name in ("committee=off", "no_thoughts")]
    figures = {figure.name: figure.value for figure in ablations(tmp_path, TOY, chosen)}
    ways = {name.removeprefix("fictional_world/ablation/") for name in figures if "ablation" in name}
    assert ways == {
        *(f"committee=off/n_thoughts={count}" for count in (1, 3, 5)),
        *(f"committee=off/{way}" for way in ("thinking", "not_thinking")),
        "no_thoughts/not_thinking",
    }
    assert figures["fictional_world/committee/elected_is_right"] > 0.9
    assert figures["fictional_world/committee/first_is_right"] < 0.8


def test_every_variant_is_a_recipe_of_its_own(root: Path) -> None:
    recipe = root / "training" / "recipes" / "fictional-world.yaml"
    prints = {
        variant.name: read_train_recipe(
            recipe, [*variant.changes, *SMALL.changes], check_files=False
        ).fingerprint
        for variant in ABLATIONS
    }
    # With a committee the file of rows differs, and nothing else.
    del prints["committee=on"]
    assert len(set(prints.values())) == len(prints)


def test_tables_and_picture_show_what_was_recorded(tmp_path: Path) -> None:
    names = ["two_hop/thinking", "two_hop/joint_not_thinking", "two_hop/no_thoughts"]
    names += [f"ablation/{variant.name}/not_thinking" for variant in ABLATIONS]
    names += [f"ablation/{variant.name}/thinking" for variant in ABLATIONS if variant.thinks]
    figures = [
        Figure(name=f"fictional_world/{name}", value=place / 100, unit="nDCG@10")
        for place, name in enumerate(names)
    ]
    record(tmp_path / "figures.jsonl", figures)
    rows = read(tmp_path / "figures.jsonl")
    assert two_hop_table(rows).splitlines()[2:] == [
        "| trained without thoughts | 0.020 |",
        "| trained to think, not thinking | 0.010 |",
        "| trained to think, thinking | 0.000 |",
    ]
    table = ablation_table(rows).splitlines()[2:]
    assert len(table) == len(ABLATIONS)
    assert table[0] == f"| {ABLATIONS[0].title} | 0.030 | {(3 + len(ABLATIONS)) / 100:.3f} | – | – | – |"
    assert table[1] == f"| {ABLATIONS[1].title} | 0.040 | – | – | – | – |"
    draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KeyError, match="two_hop"):
        two_hop_table([row for row in rows if "two_hop" not in str(row["name"])])
