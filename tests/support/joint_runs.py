"""Small trainings: a base model, rows, a recipe, the tensors of a batch, whole runs in other processes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from o1_retriever.engine.template import Layout
from o1_retriever.evaluation.sources import write_collection
from o1_retriever_training.joint.batches import Batch, Collator, DrawnRows
from o1_retriever_training.joint.model import Backbone, JointModel, open_backbone
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.rows import TrainingRows, open_rows
from tests.support.forks import leave_together
from tests.support.tiny import CONFIGS, byte_tokenizer

# What the processes import before they are forked.
HEAVY = ("tests.support.joint_runs", "o1_retriever_training.joint.run", "peft", "tensorboard")
CHANGES = {"write", "replace", "rename", "save_file", "unlink"}
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll")


def base_folder(
    folder: Path,
    architecture: str = "llama",
    layout: Layout = "paper",
    *,
    attention_dropout: float = 0.0,
    markers: bool = True,
    tied: bool = False,
) -> Path:
    """A tiny random model, which knows the markers unless told otherwise."""
    tokenizer = byte_tokenizer(layout if markers else None)
    config = CONFIGS[architecture](len(tokenizer))
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.attention_dropout = attention_dropout
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_file(path: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Rows of all kinds: some without a thought, a positive or scores, one positive for two queries."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> str:
        return " ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (length,), generator=generator))

    lines = []
    for number in range(count):
        row: dict[str, Any] = {"query": f"{number} {text(1)}", "pos": [f"{number // 2} {text(1)}"]}
        row["neg"] = [text(2) for _ in range(number % 4)]
        row["thought"] = f"{text(2)} {number}"
        if number % 6 == 4:
            row["thought"] = None
        if number % 6 == 5:
            row["pos"], row["neg"] = [], []
        elif number % 2:
            row["pos"] = [f"{number // 2} shared"]
            row |= {"pos_scores": [1.0], "neg_scores": [float(n) / 3 for n in range(len(row["neg"]))]}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def recipe_of(base: Path, rows: Path | list[Path], output: Path, **sections: dict[str, Any]) -> TrainRecipe:
    """A recipe of a few short steps; `sections` has fields to change."""
    sources = [str(path) for path in (rows if isinstance(rows, list) else [rows])]
    value: dict[str, Any] = {
        "model": {"base": str(base), "tuning": "full", "gradient_checkpointing": False},
        "data": {
            "train": sources, "max_query_tokens": 24, "max_document_tokens": 28, "max_length": 56, "group": 3
        },
        "losses": {"temperature": 0.1},
        "optimisation": {"steps": 4, "queries": 8, "chunk": 3, "learning_rate": 1e-3, "seed": 7},
        "checkpoints": {"every": 2, "keep": 2},
        "output": str(output),
    }  # fmt: skip
    for name, fields in sections.items():
        value[name] = {**value.get(name, {}), **fields}
    return TrainRecipe.of(value)


def opened(recipe: TrainRecipe) -> tuple[Backbone, JointModel]:
    """The model of a recipe, in training mode."""
    backbone = open_backbone(
        recipe.model, recipe.data, seed=recipe.optimisation.seed, device=torch.device("cpu")
    )
    return backbone, JointModel(backbone.model, backbone.language_model).train()


def one_batch(recipe: TrainRecipe, backbone: Backbone, work: Path, rows: list[int]) -> Batch:
    """The tensors of some rows."""
    stored: TrainingRows = open_rows(recipe.data, backbone.template, work, show=False)
    drawn = DrawnRows(stored, recipe)
    collator = Collator(stored, backbone.template, recipe)
    return collator([drawn[row, 0] for row in rows])


# What children do.


def run(
    recipe: dict[str, Any],
    kill: dict[str, int] | None = None,
    most_bytes: int | None = None,
    result: str | None = None,
    restart: bool = False,
) -> None:
    """Train. `kill` {"step": n} ends the process right before its n-th step, {"disk": n} right before the
    n-th change of something on the disk; no file may have more than `most_bytes`."""
    from o1_retriever_training.joint.run import train

    torch.set_num_threads(1)
    if kill:
        sys.setprofile(_killer(**kill))
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    found = train(TrainRecipe.of(recipe), show_progress_bar=False, restart=restart)
    sys.setprofile(None)
    if result:
        said = {
            "steps": found.steps,
            "resumed_from": found.resumed_from,
            "best": found.best,
            "data": found.data,
        }
        Path(result).write_text(json.dumps(said))
    if "WORLD_SIZE" in os.environ:
        leave_together()


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def run_sharded(**fields: Any) -> None:
    """`run` under FSDP 2, as `accelerate launch` with recipes/accelerate/fsdp.yaml has it, but on processors.

    FSDP itself works there; accelerate alone takes it for what accelerators do, so it is told of one.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ.update(FSDP)
    begin = PartialState.__init__

    def begin_as_another(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = begin_as_another  # type: ignore[method-assign]
    run(**fields)


def dev_collection(folder: Path) -> Path:
    """A collection of a document and a question for every word."""
    write_collection(
        folder,
        documents=[{"_id": f"d{n}", "title": "", "text": f"{n} {word}"} for n, word in enumerate(WORDS)],
        queries=[{"_id": f"q{n}", "text": f"{n} of {word}?"} for n, word in enumerate(WORDS)],
        judgments=[(f"q{n}", f"d{n}", 1) for n in range(len(WORDS))],
        split="dev",
    )
    return folder


def step(recipe: dict[str, Any], out: str, steps: int, share: tuple[int, int] | None = None) -> None:
    """The parts of the loss and the gradients of the first steps, weights unchanged, under DDP if several.

    With `share` (rank, processes) a process alone takes the rows that it would have as one of several.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from o1_retriever_training.joint.batches import SameSourceBatches
    from o1_retriever_training.joint.steps import How, joint_step

    torch.set_num_threads(1)
    job, world = TrainRecipe.of(recipe), int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    backbone, model = opened(job)
    rows, work = job.optimisation.queries, Path(out).parent / f"data{rank}"
    stored = open_rows(job.data, backbone.template, work, show=False)
    place, count = share or (rank, world)
    batches = SameSourceBatches(stored.source, size=rows, steps=steps, seed=7, rank=place, world=count)
    # The second matrices of LoRA start as zeros: without this the first would have no gradient.
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(3))
    forward: Any = model
    if world > 1:
        dist.init_process_group("gloo")
        forward = DistributedDataParallel(model)
    how = How(
        tokens=job.chunk_tokens, unsynchronised=forward.no_sync if world > 1 else contextlib.nullcontext
    )
    found = []
    for picks in batches:
        model.zero_grad()
        parts = joint_step(
            forward, one_batch(job, backbone, work, [row for row, _ in picks]), job.losses, how
        )
        gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        found.append(
            (
                {name: value.item() for name, value in parts.items()},
                {n: g.clone() for n, g in gradients.items()},
            )
        )
    torch.save(found, f"{out}.{rank}")
    if world > 1:
        leave_together()


def _killer(*, step: int = 0, disk: int = 0, rank: int | None = None) -> Callable[[Any, str, Any], None]:
    made = 0

    def watch(frame: Any, event: str, called: Any) -> None:
        nonlocal made
        if step:
            counts = event == "call" and frame.f_code.co_name == "training_step"
        else:
            counts = event == "c_call" and called.__name__ in {
                "write",
                "replace",
                "rename",
                "save_file",
                "unlink",
            }
        made += counts
        if counts and made == (step or disk) and rank in (None, int(os.environ.get("RANK", "0"))):
            os.kill(os.getpid(), signal.SIGKILL)

    return watch
