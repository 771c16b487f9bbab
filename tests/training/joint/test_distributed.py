"""Two real processes (gloo): together they do what one does with the whole batch, and one lost stops both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.trainer import newest
from tests.support.forks import Forks, ran_well, said
from tests.support.joint_runs import base_folder, dev_collection, recipe_of, rows_file

pytestmark = pytest.mark.long

RUN = "tests.support.joint_runs:run"
SHARDED = "tests.support.joint_runs:run_sharded"
STEP = "tests.support.joint_runs:step"
LORA = {"tuning": "lora", "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    return {"base": base_folder(folder / "base"), "rows": rows_file(folder / "rows.jsonl", 36)}


def recipe(files: dict[str, Path], output: Path, *, queries: int, **sections: Any) -> TrainRecipe:
    changes: dict[str, Any] = {
        "optimisation": {"queries": queries},
        "model": {"gradient_checkpointing": True},
    }
    for name, fields in sections.items():
        changes[name] = {**changes.get(name, {}), **fields}
    return recipe_of(files["base"], files["rows"], output, **changes)


SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"model": LORA},
    "one forward": {"optimisation": {"chunk": None}},
    "both vectors": {"losses": {"vectors": "both", "in_batch_negatives": False}},
    "no distillation": {"losses": {"distillation_weight": 0.0}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_have_the_gradient_of_one(
    tmp_path: Path, forks: Forks, files: dict[str, Path], name: str
) -> None:
    found = {}
    for processes in (1, 2):
        job = recipe(files, tmp_path / str(processes), queries=12 // processes, **SETTINGS[name])
        out, log = tmp_path / f"found{processes}", tmp_path / "log"
        codes = forks.run(STEP, processes=processes, log=log, recipe=job.to_dict(), out=out, steps=2)
        ran_well(codes, log)
        found[processes] = [torch.load(f"{out}.{rank}") for rank in range(processes)]
    (one,) = found[1]
    for step, (parts, gradients) in enumerate(one):
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        assert largest > 1e-3
        for of_rank in found[2]:
            for weight, gradient in gradients.items():
                other = of_rank[step][1][weight]
                assert torch.allclose(other, gradient, rtol=1e-4, atol=1e-5 * largest), (step, weight)
        for part, value in parts.items():
            mean = sum(of_rank[step][0][part] for of_rank in found[2]) / 2
            assert mean == pytest.approx(value, rel=1e-5), (step, part)
        assert parts["generation"] > 0


def test_without_the_others_negatives_each_process_has_its_own_batch(
    tmp_path: Path, forks: Forks, files: dict[str, Path]
) -> None:
    losses = {"across_processes": False, "contrastive_weight": 1.0}
    job = recipe(files, tmp_path / "out", queries=6, losses=losses).to_dict()
    log, out = tmp_path / "log", tmp_path / "found"
    ran_well(forks.run(STEP, processes=2, log=log, recipe=job, out=out, steps=1), log)
    ((parts, together),) = torch.load(f"{out}.0")
    alone = []
    for rank in (0, 1):
        ran_well(forks.run(STEP, log=log, recipe=job, out=out, steps=1, share=(rank, 2)), log)
        alone += torch.load(f"{out}.0")
    assert parts["contrastive"] == pytest.approx(alone[0][0]["contrastive"], rel=1e-5)
    for name, gradient in together.items():
        mean = (alone[0][1][name] + alone[1][1][name]) / 2
        assert torch.allclose(gradient, mean, rtol=1e-4, atol=1e-4), name


def test_the_trainer_of_two_processes_does_the_steps_of_one(
    tmp_path: Path, forks: Forks, files: dict[str, Path]
) -> None:
    weights, logs = {}, {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        job = recipe(files, output, queries=12 // processes, optimisation={"steps": 3})
        log = tmp_path / "log"
        ran_well(forks.run(RUN, processes=processes, log=log, recipe=job.to_dict()), log)
        weights[processes] = load_file(output / "model.safetensors")
        logs[processes] = json.loads((output / "training.json").read_text())["log"]
    before = load_file(files["base"] / "model.safetensors")
    for name, value in weights[1].items():
        # Adam turns the noise of a gradient near 0 into a small step: nearly all weights agree, none is far.
        apart = (weights[2][name] - value).abs()
        assert apart.max() < 2e-3, name
        assert (apart > 1e-5).float().mean() < 0.01, name
    assert (weights[1]["lm_head.weight"] - before["lm_head.weight"]).abs().max() > 1e-3
    for one, two in zip(logs[1], logs[2], strict=True):
        for name in ("loss", "contrastive", "distillation", "generation", "grad_norm"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-3), name


def test_a_run_whose_process_is_lost_stops_with_the_reason_and_goes_on(
    tmp_path: Path, forks: Forks, files: dict[str, Path]
) -> None:
    plain, lost = tmp_path / "plain", tmp_path / "lost"
    log = tmp_path / "log"
    undisturbed = recipe(files, plain, queries=6, optimisation={"steps": 6})
    ran_well(forks.run(RUN, processes=2, log=log, recipe=undisturbed.to_dict()), log)
    job = recipe(files, lost, queries=6, optimisation={"steps": 6})
    for rank in (1, 0):
        kill = {"step": 4 if rank else 2, "rank": rank}
        codes = forks.run(RUN, processes=2, log=log, recipe=job.to_dict(), kill=kill)
        assert codes[rank] == -9
        assert codes[1 - rank] == 1, said(log, 1 - rank)[-2000:]
        words = said(log, 1 - rank)
        assert "TrainingError: Another process of this run was lost at step" in words, words[-2000:]
        assert "the run goes on from its last checkpoint" in words
    found = newest(lost / "training", fingerprint=job.fingerprint)
    assert found is not None
    result = tmp_path / "result.json"
    ran_well(forks.run(RUN, processes=2, log=log, recipe=job.to_dict(), result=result), log)
    assert json.loads(result.read_text())["resumed_from"] == 2
    one, other = load_file(plain / "model.safetensors"), load_file(lost / "model.safetensors")
    for name, value in one.items():
        assert torch.equal(other[name], value), name


@pytest.mark.parametrize("tuning", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_sharded_weights_are_trained_judged_saved_and_resumed(
    tmp_path: Path, forks: Forks, files: dict[str, Path], tuning: str
) -> None:
    sections: dict[str, Any] = {
        "optimisation": {"steps": 4, "learning_rate": 3e-3, "schedule": "constant", "chunk": 2},
        "evaluation": {"collection": str(dev_collection(tmp_path / "dev")), "every": 2, "max_new_tokens": 4},
        "checkpoints": {"every": 2, "keep": 3},
    }
    if tuning == "lora":
        sections["model"] = LORA
    log, found = tmp_path / "log", {}
    for call, name, processes in ((RUN, "one", 1), (SHARDED, "sharded", 2)):
        job = recipe(files, tmp_path / name, queries=12 // processes, **sections)
        ran_well(forks.run(call, processes=processes, log=log, recipe=job.to_dict()), log)
        summary = json.loads((tmp_path / name / "training.json").read_text())
        figures = [entry["eval_nDCG@10 thinking"] for entry in summary["log"] if "eval_seconds" in entry]
        found[name] = (summary["log"][0], figures, summary["best"]["step"])
    (one, ones, _), (sharded, figures, best) = found["one"], found["sharded"]
    assert sharded["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert sharded["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    assert len(figures) == len(ones) == 2
    assert figures[0] == pytest.approx(ones[0], abs=0.1)
    saved = load_file(tmp_path / "sharded" / "model.safetensors")
    if tuning == "full":
        kept = load_file(tmp_path / "sharded" / "training" / f"checkpoint-{best:.0f}" / "trained.safetensors")
        for name, value in kept.items():
            assert torch.equal(saved[name.removeprefix("model.")], value), name
    assert saved.keys() == load_file(tmp_path / "one" / "model.safetensors").keys()
    job = recipe(files, tmp_path / "killed", queries=6, **sections)
    assert forks.run(SHARDED, processes=2, recipe=job.to_dict(), kill={"step": 4, "rank": 1})[1] == -9
    result = tmp_path / "result.json"
    ran_well(forks.run(SHARDED, processes=2, log=log, recipe=job.to_dict(), result=result), log)
    assert json.loads(result.read_text())["resumed_from"] == 2
    for name, value in load_file(tmp_path / "killed" / "model.safetensors").items():
        assert torch.equal(saved[name], value), name
