"""An adapter becomes a plain model that computes what the adapter did beside its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.load import LoadOptions, load_causal_lm
from o1_retriever.engine.weights import keep_float32
from o1_retriever.errors import CheckpointError
from o1_retriever_training.publishing.card import CardFacts
from o1_retriever_training.publishing.staging import StageOptions, stage
from o1_retriever_training.saving import merge_adapter, save_embedder
from tests.support.publishing import adapted, digests, saved

FACTS = CardFacts(repo="me/tiny")
IDS = torch.tensor([[257, 50, 60, 70, 258, 259, 80, 90]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base")


def beside(base: Path, adapter: Path, *, quantised: bool) -> torch.Tensor:
    """The logits of the adapter beside its base, as in training."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from o1_retriever.engine.weights import nf4_config

    more: dict[str, Any] = {"quantization_config": nf4_config()} if quantised else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **more)
    keep_float32(model)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return model(IDS).logits


def alone(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits


def test_lora(base: Path, tmp_path: Path) -> None:
    adapter = adapted(tmp_path / "adapter", base)
    staged = stage(adapter, tmp_path / "staging", facts=FACTS)
    merged = tmp_path / "staging"
    assert torch.allclose(alone(merged), beside(base, adapter, quantised=False), atol=1e-4)
    assert not torch.allclose(alone(merged), alone(base), atol=1e-1)
    loaded = load_causal_lm(adapter, LoadOptions(device="cpu", dtype="float32"))
    with torch.no_grad():
        assert torch.allclose(loaded.model(IDS).logits, alone(merged), atol=1e-4)
    left = {each.path: each.reason for each in staged.left_out}
    assert left["adapter_model.safetensors"] == left["adapter_config.json"] == "merged into the base model"
    sent = {file.path for file in staged.files}
    assert {"model.safetensors", "o1_embedder.json", "modules.json", "training_recipe.yaml"} <= sent
    assert not {path for path in sent if "adapter" in path or path.endswith(".pt")}
    stage(adapter, tmp_path / "again", facts=FACTS)
    assert digests(tmp_path / "again") == digests(merged)


def test_qlora_is_merged_into_the_weights_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    adapter = adapted(tmp_path / "adapter", base, quantised=True)
    trained = beside(base, adapter, quantised=True)
    stage(adapter, tmp_path / "staging", facts=FACTS)  # the recipe in the folder says that it is QLoRA's
    assert torch.allclose(alone(tmp_path / "staging"), trained, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "staging" / "config.json").read_text())
    stage(adapter, tmp_path / "other", facts=FACTS, options=StageOptions(qlora=False))
    assert not torch.allclose(alone(tmp_path / "other"), trained, atol=1e-2)


def test_a_copy_in_four_bits_stands_beside(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    staged = stage(base, tmp_path / "staging", facts=FACTS, options=StageOptions(nf4=True))
    assert {"nf4/model.safetensors", "nf4/o1_embedder.json", "nf4/modules.json"} <= {
        f.path for f in staged.files
    }
    whole = ThinkingEmbedder.from_pretrained(tmp_path / "staging", device="cpu", cache=False)
    small = ThinkingEmbedder.from_pretrained(tmp_path / "staging" / "nf4", device="cpu", cache=False)
    fly = ThinkingEmbedder.from_pretrained(base, device="cpu", cache=False, load_in_4bit=True)
    texts = ["a text", "another one"]
    assert small.precision.quantization == "nf4"
    assert np.allclose(small.encode_documents(texts), fly.encode_documents(texts), atol=1e-6)
    assert not np.allclose(small.encode_documents(texts), whole.encode_documents(texts), atol=1e-4)
    sizes = {file.path: file.size for file in staged.files}
    larger = sizes["nf4/model.safetensors"] >= sizes["model.safetensors"]
    assert larger == any("The copy in 4 bits has" in note for note in staged.notes)
    path = tmp_path / "staging" / "nf4" / "config.json"
    said = path.read_text()
    # NF4 is declared alike everywhere; what a model computes in is that of its other weights.
    path.write_text(
        said.replace('"bnb_4bit_compute_dtype": "bfloat16"', '"bnb_4bit_compute_dtype": "float32"')
    )
    assert path.read_text() != said
    assert '"bnb_4bit_use_double_quant": true' in said
    made_elsewhere = ThinkingEmbedder.from_pretrained(path.parent, device="cpu", cache=False)
    assert np.array_equal(made_elsewhere.encode_documents(texts), small.encode_documents(texts))
    path.write_text(said)
    stage(base, tmp_path / "again", facts=FACTS, options=StageOptions(nf4=True))
    assert digests(tmp_path / "again") == digests(tmp_path / "staging")
    kept = stage(tmp_path / "staging", tmp_path / "kept", facts=FACTS)
    assert {file.path for file in kept.files} == {file.path for file in staged.files}
    assert digests(tmp_path / "kept") == digests(tmp_path / "staging")


def test_vectors_are_those_of_the_merged_model(base: Path, tmp_path: Path) -> None:
    adapter = adapted(tmp_path / "adapter", base)
    folder = save_embedder(tmp_path / "merged", *merge_adapter(adapter))
    stage(adapter, tmp_path / "staging", facts=FACTS)
    parts = ThinkingEmbedder.from_pretrained(folder, device="cpu", cache=False)
    loaded = ThinkingEmbedder.from_pretrained(tmp_path / "staging", device="cpu", cache=False)
    settings = ThoughtSettings(n_thoughts=2, max_new_tokens=6)
    assert np.array_equal(parts.encode_documents(["x"]), loaded.encode_documents(["x"]))
    assert np.array_equal(
        parts.encode_queries(["why?"], settings=settings), loaded.encode_queries(["why?"], settings=settings)
    )


def test_a_folder_without_our_files_gets_them(base: Path, tmp_path: Path) -> None:
    for name in ("o1_embedder.json", "modules.json", "config_sentence_transformers.json"):
        (base / name).unlink()
    before = digests(base)
    stage(base, tmp_path / "staging", facts=FACTS)
    after = digests(tmp_path / "staging")
    assert after["model.safetensors"] == before["model.safetensors"]
    assert {"o1_embedder.json", "modules.json", "1_Pooling/config.json"} <= after.keys()
    assert ThinkingEmbedder.from_pretrained(tmp_path / "staging", cache=False).encode_documents(["x"]).any()


def test_adapters_that_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    adapter = adapted(tmp_path / "adapter", base)
    other = saved(tmp_path / "other", "bert")
    with pytest.raises(CheckpointError, match="does not fit its base") as error:
        merge_adapter(adapter, base=str(other))
    assert "--base" in str(error.value)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="names no base"):
        merge_adapter(adapter)
