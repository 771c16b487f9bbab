"""A process that takes two training steps: prints the bytes that they took, and the estimate of these."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from o1_retriever_training.joint.batches import Collator, DrawnRows
from o1_retriever_training.joint.dry_run import Hardware, memory_of
from o1_retriever_training.joint.model import JointModel, open_backbone
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.rows import open_rows
from o1_retriever_training.joint.sizes import sample, shape_of
from o1_retriever_training.joint.steps import How, joint_step
from tests.support.tiny import byte_tokenizer
from tests.training.joint.conftest import write_rows

_SIZES = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2}


def recipe_of(folder: Path, tuning: str, chunk: str, again: str) -> TrainRecipe:
    """A recipe on a model of 5 million weights, whose step is larger than what Python itself takes."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=688, **_SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return TrainRecipe.of(
        {
            "model": {
                "base": str(folder / "base"),
                "tuning": tuning,
                "gradient_checkpointing": again == "1",
                "dtype": "float32",
            },
            "data": {
                "train": str(write_rows(folder / "rows.jsonl", long=3)),
                "max_query_tokens": 48,
                "max_document_tokens": 128,
                "max_length": 192,
                "group": 3,
            },
            "optimisation": {"queries": 8, "chunk": None if chunk == "None" else int(chunk)},
            "output": str(folder / "out"),
        }
    )


def rise(recipe: TrainRecipe, folder: Path) -> int:
    """How many bytes two steps take at most."""
    backbone = open_backbone(recipe.model, recipe.data, seed=1, device=torch.device("cpu"))
    rows = open_rows(recipe.data, backbone.template, folder / "work", show=False)
    drawn = DrawnRows(rows, recipe)
    collate = Collator(rows, backbone.template, recipe)
    model = JointModel(backbone.model, backbone.language_model).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    how = How(tokens=recipe.chunk_tokens)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now
    for epoch in range(2):
        batch = collate([drawn[number, epoch] for number in range(8)])
        batch.pop("tokens", None)
        joint_step(model, batch, recipe.losses, how)
        optimizer.step()
        optimizer.zero_grad()
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Measure what the arguments say: tuning, chunk, and 1 for gradient checkpointing."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        recipe = recipe_of(Path(name), *sys.argv[1:])
        measured = rise(recipe, Path(name))
        hardware = Hardware(name="a CPU", memory=1, peak=1.0)
        step = sample(recipe).step
        found = memory_of(recipe, shape_of(recipe.model), step, hardware=hardware, devices=1)
    estimated = sum(value for part, value in found.items() if part not in ("weights", "framework"))
    sys.stdout.write(f"{measured} {estimated}\n")


if __name__ == "__main__":
    main()
