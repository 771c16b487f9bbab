"""The shape that the recipe promises: thinking finds what two facts tell, and no thoughts do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fictional_world.measuring import MEASURE, measure_world
from benchmarks.fictional_world.world import WorldSettings
from benchmarks.fictional_world.writing import write_world
from o1_retriever_training.joint.recipe import read_train_recipe
from o1_retriever_training.joint.run import train

pytestmark = pytest.mark.long

NO_THOUGHTS = ("data.train.0.thoughts=none", "evaluation.thoughts=0")


def shape(
    recipe: Path, folder: Path, settings: WorldSettings, changes: tuple[str, ...] = ()
) -> dict[str, float]:
    """nDCG@10 on the held-out two-hop questions of the split test, of the two trainings of the recipe."""
    world = write_world(folder / "world", settings)
    places = {
        "model.base": world.base,
        "data.train.0.path": world.train,
        "evaluation.collection": world.collection,
    }
    found = {}
    for name, more in {"joint": (), "no_thoughts": NO_THOUGHTS}.items():
        output = folder / name
        here = [f"{key}={json.dumps(str(path))}" for key, path in (places | {"output": output}).items()]
        train(read_train_recipe(recipe, [*here, *changes, *more]), show_progress_bar=False)
        evaluation = measure_world(output, world.collection, split="test")
        found |= {f"{name} {each.name}": each.means[MEASURE] for each in evaluation.results}
    return found


@pytest.fixture
def recipe(root: Path) -> Path:
    return root / "training" / "recipes" / "fictional-world.yaml"


@pytest.mark.timeout(900)
def test_a_small_world_keeps_the_order(recipe: Path, tmp_path: Path) -> None:
    small = WorldSettings(people=40, companies=16, cities=16, countries=6, layers=2, width=64, seed=1)
    short = (
        "optimisation.steps=600", "optimisation.queries=32", "optimisation.learning_rate=3e-3",
        "evaluation.every=300", "checkpoints.every=300",
    )  # fmt: skip
    found = shape(recipe, tmp_path, small, short)
    assert found["no_thoughts not_thinking"] + 0.05 < found["joint not_thinking"], found
    assert found["joint not_thinking"] + 0.2 < found["joint thinking"], found


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_recipe_reproduces_the_shape(recipe: Path, tmp_path: Path) -> None:
    found = shape(recipe, tmp_path, WorldSettings())
    assert found["no_thoughts not_thinking"] <= 0.65, found
    assert found["no_thoughts not_thinking"] < found["joint not_thinking"] < found["joint thinking"], found
    assert found["joint thinking"] >= 0.97, found
