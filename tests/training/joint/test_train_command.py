"""`o1-retriever train` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from o1_retriever import ThinkingEmbedder
from o1_retriever.errors import O1RetrieverError
from o1_retriever_training.joint.command import train


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, list(arguments))


def ok(*arguments: str) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, O1RetrieverError), result.output
    return str(result.exception)


@pytest.fixture
def recipe(tiny_recipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe().to_dict()))
    return path


def test_help_loads_nothing_heavy(root: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; import typer\n"
        "from o1_retriever_training.joint.command import train\n"
        "app = typer.Typer(); app.command()(train)\n"
        "said = CliRunner().invoke(app, ['--help']).output\n"
        "assert '--dry-run' in said, said\n"
        "print(*{'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": f"{root}:{root / 'training'}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == ""


@pytest.fixture(autouse=True)
def _own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))


def test_a_recipe_becomes_a_model_that_loads(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    said = ok(str(recipe), "--output", str(folder), "--set", "optimisation.steps=3").stderr
    assert f"'{folder}': 3 steps in" in said
    assert "Data: 48 rows" in said
    assert f"o1-retriever search \"question\" --model '{folder}'" in said
    # no terminal here: the figures are lines
    assert "Step 3 of 3: loss" in said
    assert json.loads((folder / "training.json").read_text())["steps"] == 3
    embedder = ThinkingEmbedder.from_pretrained(folder)
    assert embedder.encode_documents(["iron"]).shape == (1, 32)
    again = ok(str(recipe), "--output", str(folder), "--set", "optimisation.steps=3").stderr
    assert "trained before, 3 steps; --from-scratch trains again" in again
    assert "--from-scratch" in refused(str(recipe), "--output", str(folder), "--set", "optimisation.seed=7")
    more = ["--output", str(folder), "--set", "optimisation.steps=2", "--from-scratch"]
    assert "2 steps in" in ok(str(recipe), *more).stderr


def test_another_number_of_processes_than_the_recipes_is_said(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    more = ["--set", "hardware.processes=8", "--set", "optimisation.steps=1"]
    said = ok(str(recipe), *more).stderr
    assert "is for 8 processes and this is a run of 1 process: a batch has 8 queries, not 64" in said
    assert "hardware.processes=1" in said
    # one process is to train on one GPU
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_a_dry_run_says_what_it_costs_and_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = ok(str(recipe), "--dry-run", "--hardware", "l4-24gb").stdout
    for part in ("parameters", "FLOPs", "l4-24gb", "activations", "fits", "Lengths are those of 48 rows."):
        assert part in said, part
    assert sorted(tmp_path.rglob("*")) == before
    # what a user has yet to bring may be missing
    assert "as the recipe allows" in ok(str(recipe), "--dry-run", "--set", "data.train=missing.jsonl").stdout
    assert "there is no such file" in refused(str(recipe), "--set", "data.train=missing.jsonl")


def test_mistakes_are_told_before_anything_is_loaded(recipe: Path) -> None:
    assert "Did you mean losses.temperature?" in refused(str(recipe), "--set", "losses.tmperature=1")
    assert "Found --hardware without --dry-run" in refused(str(recipe), "--hardware", "l4-24gb")
    assert "Did you mean h100-80gb" in refused(str(recipe), "--dry-run", "--hardware", "h100")
    assert "There is no file" in refused(str(recipe.parent / "other.yaml"))
    assert not (recipe.parent / "out").exists()


def test_one_process_speaks_for_all(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert ok(str(recipe), "--dry-run", "--hardware", "l4-24gb").output == ""
    mistaken = run(str(recipe), "--set", "losses.tmperature=1")
    assert mistaken.exit_code == 1
    assert mistaken.output == ""


@pytest.mark.slow
def test_two_processes_train_one_model(recipe: Path, root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "o1_retriever"]
    command += ["train", str(recipe), "--output", "both", "--set", "optimisation.steps=2"]
    environment = {
        "PYTHONPATH": f"{root}:{root / 'training'}",
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("both: 2 steps in") == 1
    assert (tmp_path / "both" / "model.safetensors").is_file()
