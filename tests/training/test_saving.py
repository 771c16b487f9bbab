"""A saved model loads in this library and in plain sentence-transformers, with the same vectors in both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers, processors

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine.load import LoadOptions, load_model
from o1_retriever.engine.template import TemplateConfig
from o1_retriever.errors import CheckpointError
from o1_retriever_training.saving import save_embedder
from tests.support.tiny import tiny_model

FAST = ThoughtSettings(thinking="never")
LONG = "A kettle boils because heat makes bubbles of steam; " * 8
TEXTS = ["Dew settles at night.", "short", "Ein Wörtchen, 水", LONG]
CONFIG = TemplateConfig(max_length=96, max_query_tokens=64, settings={"n_thoughts": 2, "max_new_tokens": 6})


def plain(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)


def ours(folder: Path) -> ThinkingEmbedder:
    return ThinkingEmbedder.from_pretrained(folder, device="cpu", cache=False)


def spaced(tokenizer: Any) -> Any:
    """A tokenizer that marks where words begin and opens every sequence with a token of its own."""
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)]
    )
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[
        ("</s>", tokenizer.eos_token_id)
    ])  # fmt: skip
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "bert"])
def test_documents_and_fast_queries_agree(tmp_path: Path, architecture: str) -> None:
    model, tokenizer = tiny_model(architecture)
    # As the tokenizers of decoders have it, and wrong where positions are absolute.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    folder = save_embedder(tmp_path / "m", model, tokenizer, CONFIG)
    theirs, embedder = plain(folder), ours(folder)
    assert len(tokenizer(LONG)["input_ids"]) > 96
    assert np.allclose(theirs.encode_document(TEXTS), embedder.encode_documents(TEXTS), atol=1e-5)
    fast = embedder.encode_queries(TEXTS[:3], settings=FAST)
    assert np.allclose(theirs.encode_query(TEXTS[:3]), fast, atol=1e-5)
    assert not np.allclose(fast, theirs.encode_document(TEXTS[:3]), atol=1e-3)
    assert embedder.encode_queries(["why?"]).shape == (1, 32)


def test_a_tokenizer_with_spaces_and_openings_of_its_own(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    folder = save_embedder(tmp_path / "m", model, spaced(tokenizer), CONFIG)
    theirs, embedder = plain(folder), ours(folder)
    assert np.allclose(theirs.encode_document(TEXTS), embedder.encode_documents(TEXTS), atol=1e-5)
    assert np.allclose(
        theirs.encode_query(TEXTS[:3]), embedder.encode_queries(TEXTS[:3], settings=FAST), atol=1e-5
    )


def test_the_released_layout_has_documents_alone(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("qwen2", "released")
    config = TemplateConfig(layout="released", max_length=96)
    folder = save_embedder(tmp_path / "m", model, tokenizer, config)
    assert np.allclose(plain(folder).encode_document(TEXTS), ours(folder).encode_documents(TEXTS), atol=1e-5)
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"] == {
        "document": ""
    }


def test_nothing_given_is_changed_and_a_second_time_gives_the_same_bytes(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    model.config.use_cache = False
    before = tokenizer("why")["input_ids"], model.generation_config.to_dict()
    first, second = (save_embedder(tmp_path / name, model, tokenizer, CONFIG) for name in "ab")
    assert (tokenizer("why")["input_ids"], model.generation_config.to_dict()) == before
    assert tokenizer.chat_template is None
    assert digests(first) == digests(second)
    again = save_embedder(tmp_path / "c", *parts(first), CONFIG)
    assert digests(again) == digests(first)
    assert json.loads((first / "config.json").read_text())["use_cache"] is True


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def parts(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_a_server_gets_the_prompt_of_a_thought(tmp_path: Path) -> None:
    for layout, closing in (("paper", "<emb>"), ("released", "</query>")):
        folder = save_embedder(tmp_path / layout, *tiny_model("llama", layout), TemplateConfig(layout=layout))
        _, tokenizer = parts(folder)
        said = tokenizer.apply_chat_template([{"role": "user", "content": "why?"}], tokenize=False)
        assert said == f"<query>why?{closing}<thought>"
        template = load_model(folder, LoadOptions(device="cpu")).template
        prompt = template.prompt(template.text_ids(["why?"])[0])
        assert tokenizer(said, add_special_tokens=False)["input_ids"] == prompt
        generation = json.loads((folder / "generation_config.json").read_text())
        assert set(range(40, 52)) <= set(generation["eos_token_id"])
        assert tokenizer.convert_tokens_to_ids("<emb>") in generation["suppress_tokens"]


def test_what_cannot_be_an_embedder_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(CheckpointError, match="<doc>"):
        save_embedder(tmp_path / "m", *tiny_model("llama", "released"), CONFIG)
    with pytest.raises(CheckpointError, match="settings of the checkpoint"):
        save_embedder(tmp_path / "m", model, tokenizer, TemplateConfig(settings={"n_thoughts": 0}))
    tokenizer.add_tokens(["extra"])
    with pytest.raises(CheckpointError, match="token embeddings"):
        save_embedder(tmp_path / "m", model, tokenizer, CONFIG)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_an_instruction_goes_with_the_model(tmp_path: Path, architecture: str) -> None:
    config = dataclasses.replace(CONFIG, instruction="Find the fact:")
    folder = save_embedder(tmp_path / "m", *tiny_model(architecture), config)
    embedder = ours(folder)
    fast = embedder.encode_queries(TEXTS[:3], settings=FAST)
    without = ThinkingEmbedder.from_pretrained(folder, device="cpu", cache=False, instruction="")
    other = ThinkingEmbedder.from_pretrained(folder, device="cpu", cache=False, instruction="Find the fact:")
    assert not np.allclose(fast, without.encode_queries(TEXTS[:3], settings=FAST), atol=1e-3)
    assert np.array_equal(fast, other.encode_queries(TEXTS[:3], settings=FAST))
    assert np.allclose(plain(folder).encode_document(TEXTS), embedder.encode_documents(TEXTS), atol=1e-5)
    assert np.allclose(plain(folder).encode_query(TEXTS[:3]), fast, atol=1e-5)


def test_a_training_hands_on_its_instruction(tmp_path: Path) -> None:
    import torch

    from o1_retriever_training.joint.model import open_backbone
    from o1_retriever_training.joint.recipe import DataSection, ModelSection

    base = save_embedder(tmp_path / "base", *tiny_model("llama"), CONFIG)
    data = DataSection(train=({"path": "rows.jsonl"},), instruction="Find the fact:")  # type: ignore[arg-type]
    model = ModelSection(base=str(base), tuning="full", gradient_checkpointing=False)
    opened = open_backbone(model, data, seed=0, device=torch.device("cpu"))
    assert opened.deployed.instruction == opened.template.instruction == "Find the fact:"
    assert opened.deployed.max_length == CONFIG.max_length
