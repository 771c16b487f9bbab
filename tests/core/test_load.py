"""Checkpoints: found, checked, loaded; and what is said when they cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertForMaskedLM

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.checkpoint import hash_files
from o1_retriever.engine.load import LoadOptions, load_model
from o1_retriever.engine.template import TemplateConfig
from o1_retriever.errors import CheckpointError, ModelNotFoundError, SettingsError
from tests.support.tiny import letter_tokenizer, tiny_model

CPU = LoadOptions(device="cpu")


def saved(folder: Path, architecture: str = "llama", layout: str = "paper") -> Path:
    model, tokenizer = tiny_model(architecture, layout)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_saved_checkpoint_gives_the_same_vectors(architecture: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(architecture)
    saved(tmp_path, architecture)
    warm = ThoughtSettings(n_thoughts=2, temperature=1.0, max_new_tokens=8)
    loaded = ThinkingEmbedder.from_pretrained(tmp_path, device="cpu", cache=False, settings=warm)
    memory = ThinkingEmbedder.from_model(model, tokenizer, cache=False, settings=warm)
    assert np.allclose(loaded.encode_queries(["why?"]), memory.encode_queries(["why?"]), atol=1e-6)
    assert np.allclose(loaded.encode_documents(["a"]), memory.encode_documents(["a"]), atol=1e-6)


def test_the_checkpoints_own_config_decides(copy: Path) -> None:
    TemplateConfig(max_length=48, settings={"n_thoughts": 2, "max_new_tokens": 5}).save(copy)
    embedder = ThinkingEmbedder.from_pretrained(copy, device="cpu", cache=False)
    assert embedder.settings.n_thoughts == 2
    assert embedder.space.max_tokens == 48
    assert len(embedder.embed_query("why?").thoughts) == 2


def test_without_a_config_the_special_tokens_decide(tmp_path: Path) -> None:
    saved(tmp_path, layout="released")
    assert load_model(tmp_path, CPU).template.config.layout == "released"


def test_bfloat16_and_half_precision_files(copy: Path) -> None:
    full = ThinkingEmbedder.from_pretrained(copy, device="cpu", cache=False).encode_documents(["a text"])
    bf16 = ThinkingEmbedder.from_pretrained(copy, device="cpu", dtype="bfloat16", cache=False)
    assert bf16.precision.dtype == "bfloat16"
    assert np.allclose(bf16.encode_documents(["a text"]), full, atol=0.05)
    weights = {name: value.half() for name, value in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    half = ThinkingEmbedder.from_pretrained(copy, device="cpu", cache=False)
    assert half.precision.dtype == "float32", "a float16 file is computed in float32 on a CPU"


def test_nf4_on_the_fly_and_saved(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    embedder = ThinkingEmbedder.from_pretrained(copy, device="cpu", load_in_4bit=True, cache=False)
    embedder.backend.local.model.save_pretrained(tmp_path / "nf4")  # type: ignore[attr-defined]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(copy / name, tmp_path / "nf4" / name)
    again = ThinkingEmbedder.from_pretrained(tmp_path / "nf4", device="cpu", cache=False)
    assert embedder.precision.quantization == again.precision.quantization == "nf4"
    texts = ["a text", "another one"]
    assert np.allclose(embedder.encode_documents(texts), again.encode_documents(texts), atol=1e-6)


QUIET = """
import sys
from o1_retriever import ThinkingEmbedder
for four in (False, True):
    embedder = ThinkingEmbedder.from_pretrained(sys.argv[1], device="cpu", load_in_4bit=four, cache=False)
    embedder.encode_queries(["why?"])
    embedder.encode_documents(["a"])
"""


def test_loading_thinking_and_embedding_warn_of_nothing(checkpoint: Path) -> None:
    """What a user would read on the screen, in a process of its own: libraries warn once in each."""
    pytest.importorskip("bitsandbytes")
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(checkpoint)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )
    told = [line for line in done.stderr.splitlines() if "Warning" in line or "gemm_4bit" in line]
    assert told == []


def test_the_space_follows_the_weights(copy: Path) -> None:
    before = load_model(copy, CPU).weights
    assert before == hash_files(copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_model(copy, CPU).weights != before


def test_no_such_folder() -> None:
    with pytest.raises(ModelNotFoundError, match=r"There is no folder \./nowhere"):
        load_model("./nowhere", CPU)


@pytest.mark.parametrize("name", ["user/unknown-model", "not a valid id!"])
def test_an_unknown_id_says_that_it_is_neither_here_nor_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no folder {name} here, and on the Hub"):
        load_model(name, CPU)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        load_model(tmp_path / "file", CPU)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load_model(tmp_path, CPU)


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no weights"):
        load_model(copy, CPU)


def test_pickled_weights_are_refused(copy: Path) -> None:
    torch.save({}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"pytorch_model\.bin.*pickled weights are never loaded"):
        load_model(copy, CPU)


@pytest.mark.parametrize("size", [0, -1, 10**12])
def test_a_config_of_sizes_that_no_model_has_is_refused(copy: Path, size: int) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": size}))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers|cannot be loaded"):
        load_model(copy, CPU)


def test_a_config_that_is_nested_too_deeply_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError):
        load_model(copy, CPU)


def test_truncated_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="has 1,000 bytes; expected more than"):
        load_model(copy, CPU)


def test_missing_weights_are_never_invented(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weight .*up_proj"):
        load_model(copy, CPU)


def test_a_wrong_tokenizer_is_refused(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace("<emb>", "<other>"))
    with pytest.raises(CheckpointError, match="expected <query> <emb> <thought> <doc>"):
        load_model(copy, CPU)


def test_more_tokens_than_embeddings(copy: Path, checkpoint: Path) -> None:
    data = json.loads((copy / "tokenizer.json").read_text())
    extra = {**data["added_tokens"][-1], "id": data["added_tokens"][-1]["id"] + 1, "content": "<more>"}
    data["added_tokens"].append(extra)
    (copy / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="token embeddings"):
        load_model(copy, CPU)


def test_a_bidirectional_encoder_is_refused(tmp_path: Path) -> None:
    tokenizer = letter_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"bidirectional bert encoder.*from_parts"):
        load_model(tmp_path, CPU)


def test_a_model_without_its_language_model_head(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    model.base_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), type(model.base_model))
    with pytest.raises(CheckpointError, match=r"lacks 1 weight .*lm_head"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize(
    ("options", "found"),
    [({"dtype": "int3"}, "'int3'"), ({"device": "gpu"}, "'gpu'"), ({"colour": 1}, "colour")],
)
def test_unknown_options(checkpoint: Path, options: dict[str, Any], found: str) -> None:
    with pytest.raises((SettingsError, TypeError), match=found):
        ThinkingEmbedder.from_pretrained(checkpoint, **options)


def test_settings_in_a_checkpoint_are_validated(copy: Path) -> None:
    TemplateConfig(settings={"n_thoughts": 0}).save(copy)
    with pytest.raises(CheckpointError, match="n_thoughts is 0"):
        ThinkingEmbedder.from_pretrained(copy, device="cpu")
