"""Training a thinker: the layout chat, what is learned in it, and the adapter that `LocalThinker` loads."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine import threads
from o1_retriever.engine.load import LoadOptions, load_causal_lm
from o1_retriever.errors import CheckpointError, ModelNotFoundError, SettingsError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever_training.joint.layouts import WriterTemplate
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.run import train
from o1_retriever_training.joint.trainer import JointTrainer, load_weights
from tests.support.adapters import bag_of_words
from tests.support.forks import Forks
from tests.support.joint_runs import dev_collection, one_batch, opened, recipe_of
from tests.support.tiny import CONFIGS, byte_tokenizer

CHAT = {"layout": "chat", "tuning": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
GREEDY = ThoughtSettings(n_thoughts=1, temperature=0.0, max_new_tokens=16)


def chat_base(folder: Path, *, chat: bool = True) -> Path:
    tokenizer = byte_tokenizer(None)
    if chat:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = "{% for m in messages %}A default nobody wants. {{ m.content }}{% endfor %}"
    torch.manual_seed(0)
    config = CONFIGS["llama"](len(tokenizer))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_base(tmp_path_factory.mktemp("chat") / "base")


def rows_of(path: Path) -> Path:
    rows = [{"query": f"{n} ice", "thought": f"cold {n % 3}.", "pos": ["unread"]} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(base: Path, folder: Path, **sections: dict[str, Any]) -> TrainRecipe:
    folder.mkdir(exist_ok=True)
    fields: dict[str, dict[str, Any]] = {
        "model": CHAT,
        "data": {"max_query_tokens": 40, "max_length": 80},
        "losses": {"contrastive_weight": 0.0},
        "optimisation": {"chunk": None, "learning_rate": 1e-2, "steps": 6},
    }
    for name, more in sections.items():
        fields[name] = {**fields.get(name, {}), **more}
    return recipe_of(base, rows_of(folder / "rows.jsonl"), folder / "out", **fields)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return train(recipe(base, folder), show_progress_bar=False).output


def test_the_thought_and_the_end_of_its_turn_are_learned_in_the_chat_that_is_prompted(
    base: Path, tmp_path: Path
) -> None:
    job = recipe(base, tmp_path)
    backbone, _ = opened(job)
    assert isinstance(backbone.template, WriterTemplate)
    tokenizer = backbone.tokenizer
    batch = one_batch(job, backbone, tmp_path / "data", [3])
    [sequence] = batch["query_ids"].tolist()
    text = "<|im_start|>user\n3 ice<|im_end|>\n<|im_start|>assistant\ncold 0.<|im_end|>"
    assert tokenizer.decode(sequence) == text
    _, columns, labels = batch["labels"].tolist()
    assert tokenizer.decode(labels) == "cold 0.<|im_end|>"
    assert [sequence[column + 1] for column in columns] == labels
    assert not batch["document_ids"].numel(), "the passages of a thinker's rows are not read"
    thinker = LocalThinker(backbone.language_model, tokenizer, prompt=ThinkerConfig().prompt)
    [query] = as_queries(["3 ice"])
    prompt = thinker.local.template.prompt(thinker.prompt.messages(query))
    assert prompt == sequence[: len(prompt)]
    assert labels[-1] in thinker.local.stop_ids


def test_what_is_too_long_is_cut_and_its_end_is_not_learned(base: Path, tmp_path: Path) -> None:
    job = recipe(base, tmp_path, data={"max_query_tokens": 27, "max_length": 30})
    backbone, _ = opened(job)
    prompt = len(backbone.template.prompt([0] * 99))
    assert prompt == 27
    batch = one_batch(job, backbone, tmp_path / "data", [3])
    assert batch["query_ids"].shape[1] == 30
    assert backbone.template.eos not in batch["labels"][2].tolist()
    with pytest.raises(SettingsError, match="expected to leave at least 8"):
        opened(recipe(base, tmp_path, data={"max_query_tokens": 26, "max_length": 44}))


def test_an_adapter_alone_is_saved_and_writes_as_the_trained_model_does(base: Path, trained: Path) -> None:
    kept = {path.name for path in trained.iterdir()}
    assert kept == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "o1_thinker.json",
        "training", "training.json",
    }  # fmt: skip
    half = load_file(trained / "adapter_model.safetensors")
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
    said = json.loads((trained / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(base)
    loaded = load_causal_lm(str(trained), LoadOptions(dtype="float32"))
    backbone, model = opened(recipe(base, trained.parent))
    load_weights(model.eval(), trained / "training" / "checkpoint-6")
    ids = torch.tensor([backbone.template.prompt([5, 6, 7])])
    with torch.no_grad():
        found, expected = (each(input_ids=ids).logits for each in (loaded.model, backbone.language_model))
        untrained = opened(recipe(base, trained.parent))[0].language_model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)  # the adapter is in bfloat16
    assert (expected - untrained).abs().max() > 1


def test_a_thinker_brings_its_prompt_and_its_settings(base: Path, trained: Path) -> None:
    thinker = LocalThinker(trained, dtype="float32")
    assert thinker.prompt == ThinkerConfig().prompt
    embedder = ThinkingEmbedder.from_parts(str(trained), bag_of_words, cache=False)
    assert (embedder.settings.temperature, embedder.settings.weight()) == (0.7, 1.0)
    assert thinker.identity != LocalThinker(base, prompt=thinker.prompt, dtype="float32").identity
    [[thought]] = thinker.think(as_queries(["4 ice"]), settings=GREEDY)
    assert thought.text
    with pytest.raises(SettingsError, match="load_in_4bit is on"):
        LocalThinker(trained, load_in_4bit=True)


def test_a_damaged_adapter_says_what_is_wrong(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("training"))
    (folder / "o1_thinker.json").write_text('{"prompt": {"user": "no place"}}')
    with pytest.raises(CheckpointError, match=r"o1_thinker.json cannot be used.*no place for the query"):
        LocalThinker(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no base"):
        LocalThinker(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="has no weights"):
        LocalThinker(folder)


def test_an_adapter_is_trained_further_upon_its_own_base(base: Path, trained: Path, tmp_path: Path) -> None:
    more = train(recipe(trained, tmp_path), show_progress_bar=False).output
    before, after = (load_file(each / "adapter_model.safetensors") for each in (trained, more))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    backbone, _ = opened(recipe(trained, tmp_path))
    matrices = {n: p for n, p in backbone.model.named_parameters() if p.requires_grad}
    name = next(name for name in before if "lora_B" in name)
    [found] = [p for n, p in matrices.items() if n.replace(".default", "") == name]
    torch.testing.assert_close(found.detach().bfloat16(), before[name])
    assert json.loads((more / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_a_killed_training_of_an_adapter_ends_with_the_same_weights(
    base: Path, trained: Path, tmp_path: Path, forks: Forks
) -> None:
    job = recipe(base, tmp_path).to_dict()
    for kill in ({"step": 4}, None):
        assert forks.run("tests.support.joint_runs:run", recipe=job, kill=kill) == [-9 if kill else 0]
    whole, resumed = (each / "adapter_model.safetensors" for each in (trained, tmp_path / "out"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize("sparing", [True, False])
def test_threads_are_given_up_while_other_processes_want_the_cores(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparing: bool
) -> None:
    clock = itertools.count(0.0, 10.0)  # a crowded machine: every look finds ten more seconds of waiting
    monkeypatch.setattr(threads, "_waited", lambda: next(clock))
    monkeypatch.setattr(threads, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(threads, "_crowded_until", 0.0)
    seen: list[int] = []
    step = JointTrainer.training_step

    def watched(trainer: Any, *arguments: Any) -> torch.Tensor:
        loss = step(trainer, *arguments)
        seen.append(torch.get_num_threads())
        return loss

    monkeypatch.setattr(JointTrainer, "training_step", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(recipe(base, tmp_path, hardware={"sparing": sparing}), show_progress_bar=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == ([2, 1, 1, 1, 1, 1] if sparing else [2] * 6)


@pytest.mark.parametrize("chat", [True, False])
def test_every_weight_can_be_trained_and_a_model_without_a_template_gets_one(
    tmp_path: Path, chat: bool
) -> None:
    base = chat_base(tmp_path / "base", chat=chat)
    folder = train(recipe(base, tmp_path, model={"tuning": "full"}), show_progress_bar=False).output
    assert (folder / "model.safetensors").is_file()
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    thinker = LocalThinker(folder, dtype="float32")
    [query] = as_queries(["why?"])
    text = thinker.local.template.tokenizer.decode(
        thinker.local.template.prompt(thinker.prompt.messages(query))
    )
    plain, marked = "Question:\nwhy?\nAnswer:\n", "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    assert text == (marked if chat else plain)


def test_a_dev_collection_is_searched_beside_the_encoder(base: Path, tmp_path: Path) -> None:
    section = {
        "collection": str(dev_collection(tmp_path / "dev")), "every": 3, "thoughts": 1, "max_new_tokens": 8,
        "encoder": "words",
    }  # fmt: skip
    result = train(recipe(base, tmp_path, evaluation=section), show_progress_bar=False, teacher=bag_of_words)
    assert result.best is not None
    assert result.best["nDCG@10 fast"] > 0.5, "the encoder finds the word of the question"
    assert "nDCG@10 thinking" in result.best


@pytest.mark.parametrize(
    "sections",
    [
        {"losses": {"contrastive_weight": 0.5}},
        {"data": {"teacher": {"encoder": "minilm"}}},
        {"evaluation": {"collection": "dev"}},
        {"model": {"layout": "paper"}, "evaluation": {"collection": "dev", "encoder": "minilm"}},
    ],
)
def test_recipes_that_contradict_themselves(base: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"model\.layout"):
        recipe(base, tmp_path, **sections)
