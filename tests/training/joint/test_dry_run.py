"""Estimates against reality: parameters, operations, tokens and memory of the step that training takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from o1_retriever.errors import ModelNotFoundError, SettingsError
from o1_retriever_training.joint import dry_run, model
from o1_retriever_training.joint.batches import Batch, Collator, DrawnRows
from o1_retriever_training.joint.dry_run import (
    KNOWN,
    Hardware,
    duration,
    estimate,
    find_hardware,
    large,
    memory_of,
    memory_table,
    step_flops,
    work_table,
)
from o1_retriever_training.joint.model import JointModel, open_backbone
from o1_retriever_training.joint.recipe import TrainRecipe, read_train_recipe
from o1_retriever_training.joint.rows import open_rows
from o1_retriever_training.joint.sizes import StepSize, chunks, sample, shape_of
from o1_retriever_training.joint.steps import How, document_chunks, joint_step, query_chunks
from o1_retriever_training.rows import DataError

CPU = Hardware(name="a CPU", memory=8 * 10**9, peak=5e10, utilisation=0.5, devices=1)


class Real:
    """What training makes of a recipe: the model, and batches."""

    def __init__(self, recipe: TrainRecipe, work: Path) -> None:
        backbone = open_backbone(recipe.model, recipe.data, seed=1, device=torch.device("cpu"))
        rows = open_rows(recipe.data, backbone.template, work, show=False)
        self.language_model = backbone.language_model
        self.model = JointModel(backbone.model, backbone.language_model).train()
        self.recipe = recipe
        self.how = How(tokens=recipe.chunk_tokens)
        self._drawn = DrawnRows(rows, recipe)
        self._collate = Collator(rows, backbone.template, recipe)

    def batch(self, epoch: int) -> Batch:
        size, count = self.recipe.optimisation.queries, len(self._drawn)
        found = self._collate([self._drawn[(epoch * size + n) % count, epoch] for n in range(size)])
        found.pop("tokens", None)
        return found

    def size(self, batch: Batch) -> StepSize:
        forwards = (query_chunks(batch, self.how.tokens), document_chunks(batch, self.how.tokens))
        queries, documents = (tuple((len(c.ids), c.ids.shape[1]) for c in part) for part in forwards)
        labels = batch["labels"].shape[1]
        return StepSize(rows=1, tokens=0, labels=labels, queries=queries, documents=documents, batches=1)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "bert", "mistral"])
@pytest.mark.parametrize("markers", ["paper", "released"])
def test_parameters_are_those_of_the_real_model(
    tiny_recipe, tmp_path: Path, architecture: str, markers: str
) -> None:
    recipe = tiny_recipe(architecture, markers)
    real = Real(recipe, tmp_path / "work")
    shape = shape_of(recipe.model)
    assert shape.parameters == sum(p.numel() for p in real.language_model.parameters())
    assert shape.trained(recipe.model) == sum(p.numel() for p in real.model.parameters())
    lora = tiny_recipe(architecture, markers, model={**recipe.model.model_dump(), "tuning": "lora"})
    adapted = Real(lora, tmp_path / "work").model
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape_of(lora.model).trained(lora.model) == trained


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize(("chunk", "again"), [(None, False), (4, False), (4, True)])
def test_operations_are_those_that_a_counter_counts(
    tiny_recipe, tmp_path: Path, architecture: str, tuning: str, chunk: int | None, again: bool
) -> None:
    # Eager: the counter does not know the fused attention of a CPU.
    recipe = tiny_recipe(
        architecture,
        model={"tuning": tuning, "gradient_checkpointing": again, "attention": "eager"},
        optimisation={"chunk": chunk},
    )
    real = Real(recipe, tmp_path / "work")
    batch = real.batch(0)
    with FlopCounterMode(display=False) as counter:
        joint_step(real.model, batch, recipe.losses, real.how)
    found = step_flops(recipe, shape_of(recipe.model), real.size(batch))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("vectors", ["sampled", "both"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_tokens_are_those_of_real_batches(
    tiny_recipe, tmp_path: Path, vectors: str, chunk: int | None
) -> None:
    losses = {"vectors": vectors, "thought_dropout": 0.4}
    recipe = tiny_recipe(losses=losses, optimisation={"chunk": chunk, "queries": 24})
    real = Real(recipe, tmp_path / "work")
    sizes = [real.size(real.batch(epoch)) for epoch in range(40)]
    found = sample(recipe).step
    assert found.padded == pytest.approx(sum(size.padded for size in sizes) / 40, rel=0.1)
    assert found.labels == pytest.approx(sum(size.labels for size in sizes) / 40, rel=0.1)
    assert found.tokens < found.padded


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_keeps_what_a_forward_keeps(
    tiny_recipe, tmp_path: Path, architecture: str, tuning: str, attention: str
) -> None:
    recipe = tiny_recipe(architecture, model={"tuning": tuning, "attention": attention})
    real = Real(recipe, tmp_path / "work")
    [chunk] = document_chunks(real.batch(0), 10_000)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real.model(chunk.ids, chunk.rows, chunk.columns)
    weights = {parameter.untyped_storage().data_ptr() for parameter in real.model.parameters()}
    found = sum(size for place, size in kept.items() if place not in weights)
    shape = shape_of(recipe.model)
    one = dry_run.layer_bytes(shape, recipe.model, columns=chunk.ids.shape[1], mask=4, width=4)
    assert shape.layers * chunk.ids.numel() * one == pytest.approx(found, rel=0.15)


def test_what_is_in_memory_at_once_is_a_chunk(tiny_recipe) -> None:
    def memory(**sections) -> dict[str, int]:
        recipe = tiny_recipe(**sections)
        return memory_of(recipe, shape_of(recipe.model), sample(recipe).step, hardware=CPU, devices=1)

    small = memory(optimisation={"chunk": 4, "queries": 8})
    large_batch = memory(optimisation={"chunk": 4, "queries": 64})
    assert large_batch["activations"] == pytest.approx(small["activations"], rel=0.1)
    whole = memory(optimisation={"chunk": None, "queries": 64})
    assert whole["activations"] > 10 * large_batch["activations"]
    again = memory(optimisation={"chunk": None, "queries": 64}, model={"gradient_checkpointing": True})
    assert again["activations"] < whole["activations"]
    lora = memory(model={"tuning": "lora"})
    assert lora["optimizer (AdamW)"] < small["optimizer (AdamW)"] / 5


def test_logits_are_cut_where_the_model_cuts_them() -> None:
    assert dry_run._AT_ONCE == model._LOGITS


def test_the_paper_is_estimated_without_a_network(root: Path) -> None:
    recipes = root / "training" / "recipes"
    paper = read_train_recipe(recipes / "paper.yaml", check_files=False)
    found = estimate(paper, find_hardware("a100-80gb"))
    assert found.parameters == 7_615_616_512
    assert found.trained == 80_740_352 + 4 * 3584
    assert found.devices == 8
    assert found.fits
    assert found.steps == 7859
    # 64 queries and 1,024 passages at their limits
    assert found.tokens == pytest.approx(64 * (0.9 * 256 + 0.1 * 32) + 1024 * 192, rel=0.02)
    # forward, forward again, and the half of a backward, of the weights that multiply
    assert found.flops == pytest.approx(3 * 2 * 6.5e9 * found.padded, rel=0.1)
    assert found.memory["weights"] == pytest.approx(2 * found.parameters, rel=0.03)
    one = read_train_recipe(recipes / "one-gpu.yaml", check_files=False)
    small = estimate(one, find_hardware("rtx-4090-24gb"))
    assert small.fits
    assert small.memory["weights"] == pytest.approx(0.52 * 6.5e9 + 2 * 1.09e9, rel=0.1)
    assert not estimate(paper, find_hardware("l4-24gb")).fits


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248 + 2 * 4 * 4096),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616 + 2 * 4 * 4096),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096 + 2 * 4 * 4096),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552 + 2 * 4 * 4096),
    ],
)
def test_the_known_backbones_have_as_many_parameters_as_their_cards_say(base: str, parameters: int) -> None:
    recipe = TrainRecipe.of({"model": {"base": base}, "data": {"train": "r.jsonl"}, "output": "o"})
    assert shape_of(recipe.model).parameters == parameters


def test_a_base_that_nobody_knows_is_named(tiny_recipe) -> None:
    recipe = tiny_recipe(model={"base": "nobody/nothing"})
    with pytest.raises(ModelNotFoundError, match=r"'nobody/nothing' cannot be known.*Qwen/Qwen2.5-7B"):
        estimate(recipe, CPU)


def test_layers_that_a_model_lacks_are_named(tiny_recipe) -> None:
    recipe = tiny_recipe("bert", model={"tuning": "lora", "lora": {"targets": ["q_proj"]}})
    with pytest.raises(
        SettingsError,
        match=r"\['q_proj'\].*Its linear layers are dense, key, query, value. Type: --set model.tuning=full",
    ):
        estimate(recipe, CPU)


def test_sharding_divides_what_it_splits(tiny_recipe) -> None:
    whole = tiny_recipe(hardware={"processes": 4})
    split = tiny_recipe(hardware={"processes": 4, "sharded": True})
    gpu = find_hardware("l4-24gb")
    one, four = estimate(whole, gpu), estimate(split, gpu)
    assert four.memory["weights"] * 4 == pytest.approx(one.memory["weights"], rel=0.01)
    assert four.memory["activations"] == one.memory["activations"]


def test_steps_follow_from_rows_and_epochs_unless_they_are_given(tiny_recipe) -> None:
    assert estimate(tiny_recipe(), CPU).steps == 4
    counted = estimate(tiny_recipe(optimisation={"queries": 20, "epochs": 2, "steps": None}), CPU)
    assert (counted.rows, counted.steps) == (48, 6)
    assert counted.seconds == pytest.approx(6 * counted.step_seconds)
    limited = tiny_recipe(
        data={"train": [{"path": counted_path(tiny_recipe), "rows": 10}]},
        optimisation={"steps": None, "epochs": 1},
    )
    assert estimate(limited, CPU).rows == 10


def counted_path(tiny_recipe) -> str:
    return tiny_recipe().data.train[0].path


def test_without_rows_the_limits_are_taken_and_said(tiny_recipe) -> None:
    recipe = tiny_recipe(data={"train": "hub:nobody/rows"}, optimisation={"steps": None, "epochs": 1})
    found = estimate(recipe, CPU)
    assert found.steps is None
    assert found.seconds is None
    assert any("as long as the recipe allows" in note for note in found.notes)
    assert any("optimisation.steps=N" in note for note in found.notes)
    assert found.tokens > estimate(tiny_recipe(), CPU).tokens


def test_rows_that_cannot_be_read_are_an_error(tiny_recipe, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz"):
        estimate(tiny_recipe(data={"train": str(tmp_path / "rows.jsonl.gz")}), CPU)


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'h100'.*Did you mean h100-80gb"):
        find_hardware("h100")
    for name in set(KNOWN) - {"this", "cpu"}:
        assert find_hardware(name).memory == int(name.split("-")[-1].removesuffix("gb")) * 10**9
    here = find_hardware("cpu")
    assert here.peak > 1e8
    assert here.memory > 10**8


def test_the_table_shows_what_was_found(tiny_recipe) -> None:
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    found = estimate(tiny_recipe(), CPU)
    for table in (work_table(found), memory_table(found)):
        console.print(table)
    text = console.export_text()
    for part in ("parameters", "trained", "steps", "tokens", "FLOPs", "time", "activations", "fits"):
        assert part in text, part
    assert max(len(line) for line in text.splitlines()) <= 60


def test_numbers_are_shown_in_units() -> None:
    assert [large(value) for value in (7.6156e9, 999, 12_345)] == ["7.62 B", "999", "12.3 k"]
    assert [duration(value) for value in (0.123, 59.6, 150, 10_000, 200_000)] == [
        "0.12 s", "60 s", "2.5 min", "2.8 h", "2.3 days",
    ]  # fmt: skip
    assert chunks([1, 5, 3], 10) == [(2, 5), (1, 1)]
    assert chunks([9], 4) == [(1, 9)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "chunk", "again"),
    [("full", None, False), ("full", 8, False), ("full", 8, True), ("lora", 8, False)],
)
def test_the_peak_of_a_real_step_is_within_a_factor_of_two(
    root: Path, tuning: str, chunk: int | None, again: bool
) -> None:
    worker = [sys.executable, "-m", "tests.support.step_memory", tuning, str(chunk), str(int(again))]
    environment = {"PYTHONPATH": f"{root}:{root / 'training'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(worker, capture_output=True, text=True, check=True, cwd=root, env=environment)
    measured, estimated = map(int, run.stdout.split())
    assert measured / 2 < estimated < measured * 2
