"""Full tuning, LoRA and QLoRA: what learns, what stays, and what is saved."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.template import MARKERS
from o1_retriever.errors import CheckpointError, ModelNotFoundError, SettingsError
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.run import train
from o1_retriever_training.joint.trainer import load_weights
from tests.support.joint_runs import base_folder, opened, recipe_of, rows_file

NO_FOUR_BITS = importlib.util.find_spec("bitsandbytes") is None
QLORA = pytest.param("qlora", marks=pytest.mark.skipif(NO_FOUR_BITS, reason="needs the extra 4bit"))
KINDS = ("full", "lora", QLORA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    rows_file(folder / "rows.jsonl")
    base_folder(folder / "plain", markers=False)
    base_folder(folder / "tied", "qwen2", markers=False, tied=True)
    return folder


def recipe(folder: Path, base: str, tuning: str) -> TrainRecipe:
    return recipe_of(
        folder / base, folder / "rows.jsonl", folder / f"{base}-{tuning}",
        model={
            "tuning": tuning, "gradient_checkpointing": True,
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        },
        losses={"vectors": "both"},
    )  # fmt: skip


def trained(folder: Path, base: str, tuning: str) -> Path:
    """Train in a few steps, unless it was done."""
    return train(recipe(folder, base, tuning), show_progress_bar=False).output


@pytest.mark.parametrize("base", ["plain", "tied"])
@pytest.mark.parametrize("tuning", KINDS)
def test_new_rows_learn_in_every_tuning(folder: Path, base: str, tuning: str) -> None:
    output = trained(folder, base, tuning)
    embedder = ThinkingEmbedder.from_pretrained(output, device="cpu", cache=False)
    before, after = load_file(folder / base / "model.safetensors"), load_file(output / "model.safetensors")
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    assert (head in after) == (base == "plain")
    count = len(before[embeddings])
    start = opened(recipe(folder, base, tuning))[0].language_model.get_input_embeddings()
    started = getattr(start, "original_module", start).weight.detach()
    assert torch.equal(started[:count], before[embeddings])
    moved = (after[embeddings] - started).abs().amax(dim=1)
    assert len(moved) == count + len(MARKERS["paper"])
    assert (moved[count:] > 1e-4).all(), moved[count:]
    assert (moved[:count].max() > 1e-4) == (tuning == "full")
    if base == "plain":
        assert torch.equal(after[head][:count], before[head]) == (tuning != "full")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (after[name] - before[name]).abs().max() > 1e-5
    norm = "model.layers.0.input_layernorm.weight"
    assert (after[norm] == before[norm]).all() == (tuning != "full")
    found = embedder.embed_query(
        "amber birch?", settings=ThoughtSettings(n_thoughts=1, max_new_tokens=4, seed=0)
    )
    assert np.isfinite(found.vector).all()
    assert embedder.encode_documents(["amber"]).shape == (1, 32)


@pytest.mark.parametrize("tuning", KINDS)
def test_what_is_saved_computes_what_was_trained(folder: Path, tuning: str) -> None:
    output = trained(folder, "plain", tuning)
    backbone, model = opened(recipe(folder, "plain", tuning))
    load_weights(model.eval(), output / "training" / "checkpoint-4")
    text = "amber birch"
    ids = backbone.template.document(backbone.template.text_ids([text])[0])
    with torch.no_grad():
        vectors, _ = model(torch.tensor([ids]), torch.tensor([0]), torch.tensor([len(ids) - 1]))
    saved = ThinkingEmbedder.from_pretrained(output, device="cpu", cache=False)
    assert np.allclose(saved.encode_documents([text]), vectors.numpy(), atol=1e-5)
    untrained = opened(recipe(folder, "plain", tuning))[1].eval()
    with torch.no_grad():
        others, _ = untrained(torch.tensor([ids]), torch.tensor([0]), torch.tensor([len(ids) - 1]))
    assert not torch.allclose(vectors, others, atol=1e-3), "nothing was learnt"


def test_a_base_without_an_end_of_sequence_is_refused(folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(folder / "plain", tmp_path / "base")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(base)
    with pytest.raises(CheckpointError, match="neither an eos nor a separator"):
        train(recipe_of(base, folder / "rows.jsonl", tmp_path / "out"), show_progress_bar=False)


def test_layers_that_are_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    lora = {"rank": 2, "targets": ["q_prj"]}
    job = recipe_of(
        folder / "plain", folder / "rows.jsonl", tmp_path / "out", model={"tuning": "lora", "lora": lora}
    )
    with pytest.raises(SettingsError, match=r"q_prj.*down_proj, gate_proj, k_proj") as caught:
        train(job, show_progress_bar=False)
    assert "model.lora.targets" in str(caught.value)


def test_a_base_that_is_not_there_is_said_before_the_data_is_read(folder: Path, tmp_path: Path) -> None:
    job = recipe_of(tmp_path / "nothing", folder / "rows.jsonl", tmp_path / "out")
    with pytest.raises(ModelNotFoundError):
        train(job, show_progress_bar=False)
    assert not (tmp_path / "out" / "training" / "data").exists()
