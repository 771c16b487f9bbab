"""How long a step of a recipe takes here, found out by making some."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from o1_retriever_training.joint.batches import (
    Collator,
    DrawnRows,
    SameSourceBatches,
    steps_per_epoch,
    unit_vectors,
)
from o1_retriever_training.joint.model import compute_dtype, open_backbone, uncast_inputs
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.rows import open_rows
from o1_retriever_training.joint.steps import How, joint_step
from o1_retriever_training.joint.trainer import budget_of, joint_model

_STEPS = 4  # of which the first does not count: it finds out how to compute


def pace(recipe: TrainRecipe) -> tuple[int, float]:
    """(Steps of a pass over a recipe's rows, seconds of a mean one here). Raises what training raises."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimisation = recipe.optimisation
    backbone = open_backbone(recipe.model, recipe.data, seed=optimisation.seed, device=device)
    dtype = compute_dtype(recipe.model, device)
    taken = []
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = open_rows(recipe.data, backbone.template, Path(folder), show=False)
        model = joint_model(backbone, recipe, rows).to(device).train()
        index = None if rows.index is None else unit_vectors(rows.index).to(device)
        drawn, collate = DrawnRows(rows, recipe), Collator(rows, backbone.template, recipe)
        budget, seed = budget_of(recipe, rows), optimisation.seed
        batches = SameSourceBatches(
            rows.source, size=optimisation.queries, steps=_STEPS, seed=seed, budget=budget
        )
        for picks in batches:
            batch = {name: value.to(device) for name, value in collate([drawn[p] for p in picks]).items()}
            started = time.perf_counter()
            rounded = dtype != torch.float32
            with (
                torch.autocast(device.type, dtype, enabled=rounded),
                uncast_inputs(backbone.model, autocast=rounded),
            ):
                joint_step(model, batch, recipe.losses, How(tokens=recipe.chunk_tokens), index)
            model.zero_grad(set_to_none=True)
            taken.append(time.perf_counter() - started)
    whole = steps_per_epoch(rows.source, size=optimisation.queries, budget=budget)
    return whole, sum(taken[1:]) / len(taken[1:])
