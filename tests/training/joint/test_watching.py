"""What is said during a run, when it gives up, and which weights it ends with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from o1_retriever.errors import CollectionError
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.run import train
from o1_retriever_training.joint.trainer import Divergence, TrainingError, newest
from tests.support.joint_runs import base_folder, dev_collection, recipe_of, rows_file

PARTS = {
    "loss",
    "contrastive",
    "distillation",
    "generation",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("watching")
    return {
        "base": base_folder(folder / "base", attention_dropout=0.2),
        "rows": rows_file(folder / "rows.jsonl"),
        "collection": dev_collection(folder / "collection"),
    }


def recipe(files: dict[str, Path], output: Path, **sections: Any) -> TrainRecipe:
    sections["model"] = {"attention": "eager", **sections.get("model", {})}
    return recipe_of(files["base"], files["rows"], output, **sections)


def dev(files: dict[str, Path], **fields: Any) -> dict[str, Any]:
    return {"collection": str(files["collection"]), "every": 2, "max_new_tokens": 4, **fields}


def test_a_loss_that_is_no_number_stops_the_run(files: dict[str, Path], tmp_path: Path) -> None:
    steps = {"steps": 30, "learning_rate": 1e30, "warmup": 0.0}
    job = recipe(files, tmp_path / "out", optimisation=steps, checkpoints={"every": 100})
    with pytest.raises(TrainingError, match=r"The loss is not a number at step \d+ \(loss nan") as caught:
        train(job, show_progress_bar=False)
    assert "learning_rate" in str(caught.value.hint)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_kept(files: dict[str, Path], tmp_path: Path) -> None:
    """The step that broke them had a fine loss."""
    steps = {"steps": 3, "learning_rate": 1e39, "warmup": 0.0}
    job = recipe(files, tmp_path / "out", optimisation=steps, checkpoints={"every": 1})
    with pytest.raises(TrainingError, match="The weights are not numbers any more at step 1"):
        train(job, show_progress_bar=False)
    assert newest(tmp_path / "out" / "training", fingerprint=job.fingerprint) is None


def test_a_run_that_diverges_stops(files: dict[str, Path], tmp_path: Path) -> None:
    steps = {"steps": 100, "learning_rate": 10.0, "schedule": "constant", "warmup": 0.9, "queries": 4}
    job = recipe(
        files, tmp_path / "out",
        optimisation={**steps, "chunk": None}, losses={"contrastive_weight": 0.2}, checkpoints={"every": 500},
    )  # fmt: skip
    with pytest.raises(
        TrainingError, match=r"The loss has diverged at step \d+: its running mean is"
    ) as caught:
        train(job, show_progress_bar=False)
    assert "stop.divergence" in str(caught.value.hint)


def losses_until_stopped(values: list[float], factor: float | None, tmp_path: Path) -> int | None:
    watch, state = Divergence(factor), TrainerState()
    arguments = TrainingArguments(output_dir=str(tmp_path), logging_steps=5, use_cpu=True, report_to=[])
    for number, value in enumerate(values):
        state.global_step = 5 * (number + 1)
        try:
            watch.on_log(arguments, state, TrainerControl(), logs={"loss": value})
        except TrainingError:
            return number
        # What a checkpoint holds is enough to go on with.
        kept = json.loads(json.dumps(watch.state()))
        watch = Divergence(**kept["args"])
        for name, kept_value in kept["attributes"].items():
            setattr(watch, name, kept_value)
    return None


@pytest.mark.parametrize(
    ("values", "factor", "stops"),
    [
        ([5.0] * 40, 3.0, False),
        ([5.0] * 20 + [1.0] * 40 + [2.5] * 60, 3.0, False),
        ([5.0] * 20 + [1.0] * 60 + [20.0] * 60, 3.0, True),
        ([5.0] * 20 + [1.0] * 60 + [20.0] * 60, None, False),
        # One bad batch is none.
        ([2.0] * 40 + [30.0] + [2.0] * 40, 3.0, False),
        # Not above where it began.
        ([50.0] * 20 + [1.0] * 60 + [20.0] * 60, 3.0, False),
    ],
)
def test_when_a_loss_has_diverged(
    values: list[float], factor: float | None, stops: bool, tmp_path: Path
) -> None:
    assert (losses_until_stopped(values, factor, tmp_path) is not None) == stops


def test_every_part_of_the_loss_is_logged(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="o1_retriever_training"):
        train(recipe(files, tmp_path / "out"), show_progress_bar=False)
    lines = [line for line in caplog.messages if line.startswith("Step ")]
    assert len(lines) == 4
    for word in ("Step 4 of 4: loss ", "contrastive ", "thoughts ", "gradient ", " tokens/s"):
        assert word in lines[-1]
    log = json.loads((tmp_path / "out" / "training.json").read_text())["log"]
    for entry in log[:4]:
        assert entry.keys() >= PARTS - {"tokens_per_second"}
        whole = 0.8 * (entry["contrastive"] + entry["distillation"]) + 0.2 * entry["generation"]
        assert entry["loss"] == pytest.approx(whole, rel=1e-3)
    events = EventAccumulator(str(tmp_path / "out" / "training" / "tensorboard"))
    events.Reload()
    tags = {tag.rpartition("/")[2] for tag in events.Tags()["scalars"]}
    assert tags >= PARTS
    assert events.Scalars("train/tokens_per_second")[-1].value > 0


def test_the_best_weights_on_the_dev_collection_are_kept(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    steps = {"steps": 10, "learning_rate": 3e-3, "schedule": "constant"}
    job = recipe(
        files,
        output,
        optimisation=steps,
        evaluation=dev(files, temperature=0.9),
        checkpoints={"every": 2, "keep": 1},
    )
    result = train(job, show_progress_bar=False)
    log = json.loads((output / "training.json").read_text())["log"]
    figures = {
        entry["step"]: entry["eval_nDCG@10 thinking"] for entry in log if "eval_nDCG@10 thinking" in entry
    }
    assert sorted(figures) == [2, 4, 6, 8, 10]
    assert result.best is not None
    best = int(result.best["step"])
    assert figures[best] == max(figures.values()) == result.best["nDCG@10 thinking"]
    assert best == min(step for step, value in figures.items() if value == figures[best])
    assert {"nDCG@10 fast", "tokens per thought", "seconds"} <= result.best.keys()
    kept = load_file(output / "training" / f"checkpoint-{best}" / "trained.safetensors")
    saved = load_file(output / "model.safetensors")
    assert all(torch.equal(saved[name.removeprefix("model.")], value) for name, value in kept.items())
    # The random numbers of training do not notice the evaluation.
    plain = recipe(files, tmp_path / "plain", optimisation=steps, checkpoints={"every": 10})
    train(plain, show_progress_bar=False)
    last = load_file(output / "training" / "checkpoint-10" / "trained.safetensors")
    expected = load_file(tmp_path / "plain" / "training" / "checkpoint-10" / "trained.safetensors")
    assert all(torch.equal(last[name], value) for name, value in expected.items())


def test_a_short_run_is_judged_as_it_ends(files: dict[str, Path], tmp_path: Path) -> None:
    evaluation = dev(files, every=100, thoughts=0, metric="MRR@10")
    result = train(recipe(files, tmp_path / "out", evaluation=evaluation), show_progress_bar=False)
    assert result.best is not None
    assert set(result.best) >= {"MRR@10 fast"}
    assert "MRR@10 thinking" not in result.best


def test_a_collection_that_cannot_be_used_is_said_before_anything_is_loaded(
    files: dict[str, Path], tmp_path: Path
) -> None:
    job = recipe(files, tmp_path / "out", evaluation=dev(files, split="train"))
    with pytest.raises(CollectionError, match="train"):
        train(job, show_progress_bar=False)
    assert not (tmp_path / "out" / "training" / "data").exists()
