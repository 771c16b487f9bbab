"""What of a training's folder is sent, what is left out and why, and secrets that stop it all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from o1_retriever.errors import ModelNotFoundError, SettingsError
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thinkers.config import Correction, ThinkerConfig
from o1_retriever_training.publishing.card import CardFacts
from o1_retriever_training.publishing.contents import look_into
from o1_retriever_training.publishing.staging import SecretError, StageOptions, refuse_secrets, stage
from tests.support.publishing import adapted, digests, litter, saved

FACTS = CardFacts(repo="me/tiny")
MATRIX = Correction(down=np.ones((2, 32), np.float32), up=np.ones((4, 2), np.float32))
TOKENS = {
    "a Hugging Face token": "hf_" + "AbCdEfGhIj" * 3,
    "an API key": "sk-proj-" + "a1B2c3D4" * 4,
    "a GitHub token": "ghp_" + "a1B2c3D4e5F6" * 3,
    "an AWS key": "AKIA" + "ABCD1234" * 2,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password in an address": "https://jane:hunter2@example.org/data",
    "a secret": 'api_key: "0123456789abcdef0123"',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "model")


def test_only_the_model_is_sent(folder: Path, tmp_path: Path) -> None:
    before = digests(folder)
    reasons = litter(folder)
    staged = stage(folder, tmp_path / "staging", facts=FACTS)
    sent = {file.path for file in staged.files}
    assert sent == set(before) - {"training.json"} | {"README.md", "training_recipe.yaml"}
    left = {each.path: each.reason for each in staged.left_out}
    assert left.keys() == reasons.keys() | {"training.json"}
    assert [path for path, reason in reasons.items() if reason not in left[path]] == []
    same = digests(tmp_path / "staging")
    assert all(same[path] == before[path] for path in sent & before.keys())
    sizes = {each.path: each.size for each in staged.left_out}
    assert sizes["checkpoint-500/"] == 20


def test_a_thinker_is_sent_as_it_is_with_a_card_of_its_own(tmp_path: Path) -> None:
    folder = adapted(tmp_path / "thinker", saved(tmp_path / "base"))
    (folder / "README.md").unlink()  # of peft
    for tokens in folder.glob("token*.json"):
        tokens.unlink()  # a training leaves the base's own to the base
    litter(folder)
    ThinkerConfig(settings={"temperature": 0.7}, correction=MATRIX).save(folder)
    (folder / "chat_template.jinja").write_text("Chat: {{ messages[-1].content }}")
    before = digests(folder)
    staged = stage(folder, tmp_path / "staging", facts=CardFacts(repo="me/thinker", base_model="a/base"))
    sent = {file.path for file in staged.files}
    model = {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "o1_thinker.json"}
    assert sent >= model
    assert not sent & {"config.json", "modules.json", "optimizer.pt", ".env"}
    assert {name: digests(tmp_path / "staging")[name] for name in model} == {
        name: before[name] for name in model
    }
    card = ModelCard((tmp_path / "staging" / "README.md").read_text())
    said = card.data.to_dict()
    assert (said["library_name"], said["pipeline_tag"], said["base_model"]) == (
        "peft", "text-generation", "a/base"
    )  # fmt: skip
    assert "sentence-transformers" not in said["tags"]
    assert 'from_parts("me/thinker"' in card.text
    assert "It is an adapter of [a/base]" in card.text
    assert "temperature 0.7" in card.text
    stage(tmp_path / "staging", tmp_path / "again", facts=FACTS)
    whole = stage(folder, tmp_path / "merged", facts=FACTS, options=StageOptions(merged=True))
    sent = {file.path for file in whole.files}
    assert sent >= {"model.safetensors", "tokenizer.json", "o1_correction.safetensors", "o1_thinker.json"}
    assert not {name for name in sent if "adapter" in name or name == "o1_embedder.json"}
    found = [LocalThinker(each, dtype="float32") for each in (folder, tmp_path / "merged")]
    logits = [each.local.model(torch.tensor([[5, 6, 7]])).logits for each in found]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    asked = [{"role": "user", "content": "why?"}]
    templates = [each.local.template for each in found]
    prompts = [each.tokenizer.decode(each.prompt(asked)) for each in templates]
    assert prompts == ["Chat: why?"] * 2
    matrix = found[1].correction
    assert matrix is not None
    assert (matrix.identity, found[1].default_settings["temperature"]) == (MATRIX.identity, 0.7)
    with pytest.raises(SettingsError, match="Found --nf4 for a thinker"):
        stage(folder, tmp_path / "nf4", facts=FACTS, options=StageOptions(nf4=True))


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        stage(folder, tmp_path / name, facts=FACTS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    # What was published, downloaded and published again is what it was.
    stage(tmp_path / "a", tmp_path / "c", facts=FACTS)
    assert digests(tmp_path / "c") == digests(tmp_path / "a")


def test_a_linked_file_of_a_cache_is_taken_and_the_weights_are_not_copied(
    folder: Path, tmp_path: Path
) -> None:
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    stage(folder, tmp_path / "staging", facts=FACTS)
    placed = tmp_path / "staging" / "model.safetensors"
    assert not placed.is_symlink()
    assert placed.stat().st_ino == blob.stat().st_ino


def test_a_link_to_a_file_elsewhere_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("mine alone")
    (folder / "LICENSE").symlink_to(tmp_path / "private")
    staged = stage(folder, tmp_path / "staging", facts=FACTS)
    assert "a link to a file elsewhere" in {each.reason for each in staged.left_out if each.path == "LICENSE"}
    assert not (tmp_path / "staging" / "LICENSE").exists()


@pytest.mark.parametrize(("kind", "text"), TOKENS.items())
def test_a_secret_stops_everything(folder: Path, tmp_path: Path, kind: str, text: str) -> None:
    (folder / "README.md").write_text(f"# Mine\n\nUse it with\n{text}\n")
    with pytest.raises(SecretError, match=f"README.md, line 4: {kind}") as error:
        stage(folder, tmp_path / "staging", facts=FACTS)
    assert text not in str(error.value)
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_secret_in_a_recipe_or_in_weights_is_found(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model:\n  base: x\n# {TOKENS['an API key']}\n")
    with pytest.raises(SecretError, match=r"training_recipe.yaml, line 3: an API key"):
        stage(folder, tmp_path / "a", facts=FACTS, options=StageOptions(recipe=recipe))
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["noise"] = torch.tensor(list(TOKENS["an AWS key"].encode()), dtype=torch.uint8)
    save_file(tensors, weights)
    refuse_secrets(folder, ["model.safetensors"])  # what weights spell by chance is none
    save_file(tensors, weights, metadata={"note": TOKENS["a Hugging Face token"]})
    with pytest.raises(SecretError, match=r"model.safetensors, line 1: a Hugging Face token"):
        stage(folder, tmp_path / "b", facts=FACTS)


def test_what_only_looks_like_a_secret_is_no_secret(tmp_path: Path, root: Path) -> None:
    text = "hf_token sk-learn password: short task-oriented-dialogue-with-long-hyphenated-words-in-it\n"
    (tmp_path / "README.md").write_text(text + "see https://example.org/a:b and user@example.org\n")
    refuse_secrets(tmp_path, ["README.md"])
    mini = root / "models" / "o1-embedder-22m"
    refuse_secrets(mini, [path.name for path in mini.iterdir() if path.is_file()])


def test_folders_that_hold_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        look_into(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        look_into(tmp_path)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFoundError, match="lacks 2 of the files"):
        look_into(folder)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=r"no adapter_model\.safetensors"):
        look_into(tmp_path / "adapter")


def test_a_full_staging_folder_is_left_alone(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not empty"):
        stage(folder, folder, facts=FACTS)
