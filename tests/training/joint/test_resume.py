"""A run that is killed and typed again ends with the weights of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.trainer import is_whole, newest
from o1_retriever_training.ledger import OtherRecipeError
from tests.support.forks import Forks, ran_well, said
from tests.support.joint_runs import base_folder, recipe_of, rows_file

pytestmark = pytest.mark.long

RUN = "tests.support.joint_runs:run"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base model with dropout, whose random numbers matter, and two sources of rows."""
    folder = tmp_path_factory.mktemp("resume")
    return {
        "folder": folder,
        "base": base_folder(folder / "base", attention_dropout=0.2),
        "rows": [rows_file(folder / "one.jsonl", 18), rows_file(folder / "other.jsonl", 20, seed=1)],
    }


def recipe(files: dict[str, Any], output: Path, **sections: Any) -> TrainRecipe:
    changes: dict[str, Any] = {
        "model": {"attention": "eager"},
        "optimisation": {"steps": 9, "chunk": 4},
        "checkpoints": {"every": 2, "keep": 2},
    }
    for name, fields in sections.items():
        changes[name] = {**changes.get(name, {}), **fields}
    return recipe_of(files["base"], files["rows"], output, **changes)


def ran(forks: Forks, job: TrainRecipe, folder: Path, **fields: Any) -> dict[str, Any]:
    """Run to the end."""
    log, result = folder / "log", folder / "result.json"
    ran_well(forks.run(RUN, log=log, recipe=job.to_dict(), result=result, **fields), log)
    return dict(json.loads(result.read_text()))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def same_weights(one: Path, other: Path) -> None:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def losses(output: Path) -> list[tuple[int, float]]:
    log = json.loads((output / "training.json").read_text())["log"]
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


LORA = {"model": {"tuning": "lora", "lora": {"rank": 2, "alpha": 4, "dropout": 0.3}}}


@pytest.fixture(scope="module", params=["full", "lora"])
def undisturbed(request: Any, forks: Forks, files: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    sections = LORA if request.param == "lora" else {}
    output = files["folder"] / request.param
    found = ran(forks, recipe(files, output, **sections), files["folder"])
    assert found["steps"] == 9
    assert found["resumed_from"] is None
    assert any(
        not torch.equal(value, weights(files["base"])[name]) for name, value in weights(output).items()
    )
    return sections, output


def test_kills_at_any_step_change_nothing(
    tmp_path: Path, forks: Forks, files: dict[str, Any], undisturbed: tuple[dict[str, Any], Path]
) -> None:
    sections, plain = undisturbed
    job = recipe(files, tmp_path / "killed", **sections)
    generator = random.Random(4)
    starts = []
    for _ in range(3):
        step = generator.randint(1, 4)
        assert forks.run(RUN, recipe=job.to_dict(), kill={"step": step}) == [-9]
        found = newest(Path(job.output) / "training", fingerprint=job.fingerprint)
        starts.append(int(found.name.rpartition("-")[2]) if found else 0)
    assert starts == sorted(starts)
    assert starts[-1] > 0
    left = tmp_path / "killed" / ".tmpD1OVQn"  # as safetensors calls a file that is being written
    left.write_bytes(b"the beginning of a file")
    result = ran(forks, job, tmp_path)
    assert not left.exists()
    assert result["resumed_from"] == starts[-1]
    same_weights(tmp_path / "killed", plain)
    assert losses(tmp_path / "killed") == losses(plain)
    kept = [
        json.loads((out / "training" / "checkpoint-9" / "trainer_state.json").read_text())[
            "stateful_callbacks"
        ]
        for out in (tmp_path / "killed", plain)
    ]
    assert kept[0] == kept[1], "a callback has forgotten something"
    assert kept[0]["Divergence"]["attributes"]["seen"] == 9


@pytest.mark.parametrize("undisturbed", ["full"], indirect=True)
def test_kills_between_two_changes_of_the_disk_change_nothing(
    tmp_path: Path, forks: Forks, files: dict[str, Any], undisturbed: tuple[dict[str, Any], Path]
) -> None:
    sections, plain = undisturbed
    job = recipe(files, tmp_path / "killed", **sections)
    generator = random.Random(5)
    killed = 0
    for _ in range(6):
        codes = forks.run(RUN, recipe=job.to_dict(), kill={"disk": generator.randint(1, 120)})
        if codes == [0]:
            break
        assert codes == [-9]
        killed += 1
    assert killed > 2
    ran(forks, job, tmp_path)
    same_weights(tmp_path / "killed", plain)


def killed_after(forks: Forks, job: TrainRecipe, step: int) -> Path:
    """A run that was killed right before a step; its folder of checkpoints."""
    assert forks.run(RUN, recipe=job.to_dict(), kill={"step": step}) == [-9]
    return Path(job.output) / "training"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no mark": lambda folder: (folder / "complete.json").unlink(),
    "empty mark": lambda folder: (folder / "complete.json").write_text(""),
    "mark of a kill": lambda folder: (folder / "complete.json").rename(folder / "complete.json.part"),
    "short": lambda folder: os.truncate(folder / "optimizer.pt", 100),
    "gone": lambda folder: (folder / "rng_state.pth").unlink(),
}


@pytest.mark.parametrize("undisturbed", ["full"], indirect=True)
def test_a_half_written_checkpoint_is_skipped(
    tmp_path: Path, forks: Forks, files: dict[str, Any], undisturbed: tuple[dict[str, Any], Path]
) -> None:
    _, plain = undisturbed
    job = recipe(files, tmp_path / "out")
    work = killed_after(forks, job, 6)
    assert newest(work, fingerprint=job.fingerprint) == work / "checkpoint-4"
    for name, damage in DAMAGE.items():
        copy = shutil.copytree(work, tmp_path / name)
        damage(copy / "checkpoint-4")
        assert newest(copy, fingerprint=job.fingerprint) == copy / "checkpoint-2", name
    DAMAGE["short"](work / "checkpoint-4")
    assert ran(forks, job, tmp_path)["resumed_from"] == 2
    assert "checkpoint-4 was not finished and is skipped" in said(tmp_path / "log")
    same_weights(tmp_path / "out", plain)


def test_a_checkpoint_of_another_recipe_is_refused(
    tmp_path: Path, forks: Forks, files: dict[str, Any]
) -> None:
    job = recipe(files, tmp_path / "out")
    work = killed_after(forks, job, 4)
    other = recipe(files, tmp_path / "out", optimisation={"learning_rate": 2e-3})
    assert forks.run(RUN, log=tmp_path / "log", recipe=other.to_dict()) == [1]
    words = said(tmp_path / "log")
    assert f"belongs to the recipe {job.fingerprint}; this one is {other.fingerprint}" in words
    assert is_whole(work / "checkpoint-2"), "what was refused was touched"
    with pytest.raises(OtherRecipeError, match="Give another output"):
        newest(work, fingerprint=other.fingerprint)
    # Where it goes and how often it is kept does not make another recipe.
    same = recipe(files, tmp_path / "out", checkpoints={"every": 3})
    assert ran(forks, same, tmp_path)["resumed_from"] == 2


def test_rows_that_changed_under_their_name_are_refused(
    tmp_path: Path, forks: Forks, files: dict[str, Any]
) -> None:
    rows = tmp_path / "one.jsonl"
    source = Path(files["rows"][0])
    rows.write_bytes(source.read_bytes())
    job = recipe({**files, "rows": [rows, files["rows"][1]]}, tmp_path / "out")
    work = killed_after(forks, job, 4)
    rows.write_text("".join(source.read_text().splitlines(keepends=True)[1:]))
    assert forks.run(RUN, log=tmp_path / "log", recipe=job.to_dict()) == [1]
    assert "The rows have changed since" in said(tmp_path / "log")
    assert is_whole(work / "checkpoint-2"), "what was refused was touched"
    rows.write_bytes(source.read_bytes())
    assert ran(forks, job, tmp_path)["resumed_from"] == 2


def test_a_finished_run_is_not_run_again(tmp_path: Path, forks: Forks, files: dict[str, Any]) -> None:
    job = recipe(files, tmp_path / "out", optimisation={"steps": 3})
    first = ran(forks, job, tmp_path)
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    again = ran(forks, job, tmp_path)
    assert again["steps"] == first["steps"] == again["resumed_from"] == 3
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp
    other = recipe(files, tmp_path / "out", optimisation={"steps": 4})
    assert forks.run(RUN, log=tmp_path / "log", recipe=other.to_dict()) == [1]
    assert "was trained with the recipe" in said(tmp_path / "log")
    begun = ran(forks, other, tmp_path, restart=True)
    assert (begun["steps"], begun["resumed_from"]) == (4, None)


def test_checkpoints_are_rotated(tmp_path: Path, forks: Forks, files: dict[str, Any]) -> None:
    job = recipe(files, tmp_path / "out")
    ran(forks, job, tmp_path)
    assert sorted(path.name for path in (tmp_path / "out" / "training").glob("checkpoint-*")) == [
        "checkpoint-8",
        "checkpoint-9",
    ]


@pytest.mark.parametrize("undisturbed", ["full"], indirect=True)
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, forks: Forks, files: dict[str, Any], undisturbed: tuple[dict[str, Any], Path]
) -> None:
    sections, plain = undisturbed
    job = recipe(files, tmp_path / "out", **sections)
    work = killed_after(forks, job, 4)
    sizes = sorted(path.stat().st_size for path in (work / "checkpoint-2").iterdir())
    for limit in (sizes[-1] - 1, sizes[-2] - 1):
        assert forks.run(RUN, log=tmp_path / "log", recipe=job.to_dict(), most_bytes=limit) == [1]
        words = said(tmp_path / "log")
        assert "TrainingError" in words.splitlines()[-1]
        assert "checkpoint-4 could not be written" in words
        assert "Free some space, then type the same command" in words
        found = newest(work, fingerprint=job.fingerprint)
        assert found is not None
        assert found.name == "checkpoint-2"
    assert ran(forks, job, tmp_path)["resumed_from"] == 2
    same_weights(tmp_path / "out", plain)


def test_a_full_disk_at_the_end_loses_nothing(tmp_path: Path, forks: Forks, files: dict[str, Any]) -> None:
    # The low-rank matrices and their optimizer are smaller than the merged model.
    job = recipe(files, tmp_path / "out", **LORA)
    limit = weights_size(files["base"]) - 1
    assert forks.run(RUN, log=tmp_path / "log", recipe=job.to_dict(), most_bytes=limit) == [1]
    words = said(tmp_path / "log")
    assert "TrainingError" in words.splitlines()[-1], words[-2000:]
    assert "Free some space" in words
    assert not (tmp_path / "out" / "training.json").exists()
    result = ran(forks, job, tmp_path)
    assert (result["steps"], result["resumed_from"]) == (9, 9)


def weights_size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size
