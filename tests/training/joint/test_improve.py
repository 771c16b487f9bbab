"""Rounds of self-improvement on a tiny model: what each reads and writes, where it stops and goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from o1_retriever import ThinkingEmbedder
from o1_retriever.errors import SettingsError
from o1_retriever_training.improve import OWN, Improvement, improve
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.synthesize import Options
from tests.support.small_collection import write_small

PLAN = Improvement(rounds=2, samples=2, max_tokens=6, committee=("bm25",))
QUIET = Options(show=False)


@pytest.fixture
def recipe(tiny_recipe: Any, tmp_path: Path) -> TrainRecipe:
    folder = write_small(tmp_path / "collection")
    split = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))[0]
    if split == "test":
        (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    evaluation = {"collection": str(folder), "every": 2, "max_new_tokens": 4}
    return tiny_recipe(evaluation=evaluation)  # type: ignore[no-any-return]


def test_rounds_sample_vote_and_train_on_the_best_model_so_far(recipe: TrainRecipe, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "rounds"
    found = improve(recipe, recipe.data.train[0].path, out, plan=PLAN, options=QUIET, say=said.append)

    assert [each.number for each in found] == list(range(len(found)))
    assert found[0].model == recipe.model.base
    assert all(each.improved for each in found[:-1])
    assert len(said) == len(found)
    first = out / "round-1"
    thoughts = [json.loads(line) for line in (first / "thoughts.jsonl").read_text().splitlines()]
    assert {len(row["all_thought"]) for row in thoughts} == {2}
    summary = json.loads((first / "model" / "training.json").read_text())
    assert summary["recipe"]["model"]["base"] == recipe.model.base
    assert [source["name"] for source in summary["recipe"]["data"]["train"]] == [OWN, None]
    for before, after in itertools.pairwise(found):
        read = json.loads((Path(after.model) / "training.json").read_text())
        assert read["recipe"]["model"]["base"] == before.model
    ThinkingEmbedder.from_pretrained(found[-1].model, cache=False)

    # What is done is not done again: the same call says the same from what is there.
    stamp = (first / "thoughts.jsonl").stat().st_mtime_ns
    assert improve(recipe, recipe.data.train[0].path, out, plan=PLAN, options=QUIET) == found
    assert (first / "thoughts.jsonl").stat().st_mtime_ns == stamp
    assert json.loads((out / "rounds.json").read_text())[0]["model"] == recipe.model.base


def test_without_an_evaluation_nothing_is_begun(tiny_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no evaluation") as caught:
        improve(tiny_recipe(), tmp_path / "rows.jsonl", tmp_path / "rounds", plan=PLAN)
    assert "evaluation:" in str(caught.value.hint)
    assert not (tmp_path / "rounds").exists()


@pytest.mark.parametrize("fields", [{"rounds": 0}, {"samples": 0}, {"most_copied": 1.2}])
def test_a_plan_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(fields))):
        Improvement(**fields)
