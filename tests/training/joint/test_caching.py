"""Gradient caching: the gradient of a batch that is gone through in chunks is the gradient of the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from o1_retriever_training.joint.model import JointModel
from o1_retriever_training.joint.recipe import TrainRecipe
from o1_retriever_training.joint.steps import (
    How,
    VectorBatch,
    document_chunks,
    joint_step,
    query_chunks,
    similarity_loss,
)
from tests.support.joint_runs import base_folder, one_batch, opened, recipe_of, rows_file

ROWS = list(range(12))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("caching")
    return {
        "rows": rows_file(folder / "rows.jsonl"),
        "paper": base_folder(folder / "paper"),
        "released": base_folder(folder / "released", layout="released"),
        "dropout": base_folder(folder / "dropout", attention_dropout=0.3),
        "work": folder / "work",
    }


def made(
    files: dict[str, Path], *, base: str = "paper", **sections: Any
) -> tuple[TrainRecipe, JointModel, Any]:
    recipe = recipe_of(files[base], files["rows"], files["work"], **sections)
    backbone, model = opened(recipe)
    return recipe, model, one_batch(recipe, backbone, files["work"], ROWS)


def gradients(model: JointModel) -> dict[str, Tensor]:
    found = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad()
    assert all(gradient is not None for gradient in found.values()), "a weight has no gradient"
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3, "there is no gradient to compare"
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-5 * max(1.0, largest)), name


Whole = tuple[TrainRecipe, JointModel, Any, dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def wholes() -> dict[tuple[object, ...], Whole]:
    """Models with losses and gradients of the undivided batch, with which every size of chunk is compared."""
    return {}


def undivided(files: dict[str, Path], tuning: str, layout: str, vectors: str, distillation: float) -> Whole:
    recipe, model, batch = made(
        files,
        base=layout,
        model={"tuning": tuning, "layout": layout, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}},
        losses={"vectors": vectors, "distillation_weight": distillation, "thought_dropout": 0.2},
    )
    if tuning == "lora":
        # The second matrices start as zeros: without this the first would have no gradient.
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(3))
    whole = joint_step(model, batch, recipe.losses, How(tokens=None))
    return recipe, model, batch, whole, gradients(model)


@pytest.mark.parametrize("tokens", [1, 90, 250])
@pytest.mark.parametrize("distillation", [0.0, 1.0])
@pytest.mark.parametrize(
    ("layout", "vectors"), [("paper", "sampled"), ("paper", "both"), ("released", "sampled")]
)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_chunks_have_the_gradient_of_the_batch(
    files: dict[str, Path],
    wholes: dict[tuple[object, ...], Whole],
    tuning: str,
    layout: str,
    vectors: str,
    distillation: float,
    tokens: int,
) -> None:
    case = (tuning, layout, vectors, distillation)
    if case not in wholes:
        wholes[case] = undivided(files, *case)
    recipe, model, batch, whole, expected = wholes[case]
    parts = joint_step(model, batch, recipe.losses, How(tokens=tokens))
    same(gradients(model), expected)
    assert ("distillation" in whole) == bool(distillation)
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        assert value.item() > 0
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("tokens", [20, 90, 400])
def test_a_chunk_has_at_most_so_many_tokens(files: dict[str, Path], tokens: int) -> None:
    _, _, batch = made(files)
    for chunks, ids in (
        (query_chunks(batch, tokens), batch["query_ids"]),
        (document_chunks(batch, tokens), batch["document_ids"]),
    ):
        assert sum(len(chunk.ids) for chunk in chunks) == len(ids)
        for chunk in chunks:
            # A sequence longer than that has a forward of its own.
            assert chunk.ids.numel() <= tokens or len(chunk.ids) == 1
        assert len(chunks) > 1 or ids.numel() <= tokens


def test_nothing_is_lost_under_autocast(files: dict[str, Path]) -> None:
    """Weights that autocast converted without a graph must not be taken for those with one."""
    recipe, model, batch = made(files)

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: tuple[Tensor, Tensor] = model(*arguments)
            return found

    joint_step(forward, batch, recipe.losses, How(tokens=None))
    expected = gradients(model)
    parts = joint_step(forward, batch, recipe.losses, How(tokens=160))
    assert {value.dtype for value in parts.values()} == {torch.float32}
    found = gradients(model)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 0.1 * gradient.norm() + 1e-3, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_dropout_falls_on_the_same_places_twice(
    files: dict[str, Path], tuning: str, checkpointing: bool
) -> None:
    recipe, model, batch = made(
        files,
        base="dropout",
        model={
            "tuning": tuning, "lora": {"rank": 4, "alpha": 8, "dropout": 0.4}, "attention": "eager",
            "gradient_checkpointing": checkpointing,
        },
    )  # fmt: skip
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(11)
    plain = keep_the_graph(model, batch, recipe)
    expected = gradients(model)
    torch.manual_seed(12)
    other = keep_the_graph(model, batch, recipe)
    assert abs(other - plain) > 1e-4, "there is no dropout"
    model.zero_grad()
    torch.manual_seed(11)
    parts = joint_step(model, batch, recipe.losses, How(tokens=120))
    same(gradients(model), expected)
    assert parts["loss"].item() == pytest.approx(plain, rel=1e-5)


def keep_the_graph(model: JointModel, batch: Any, recipe: TrainRecipe) -> float:
    """The same chunks in the same order, every graph kept, one backward."""
    documents = [model(chunk.ids, chunk.rows, chunk.columns)[0] for chunk in document_chunks(batch, 120)]
    outputs = [
        model(chunk.ids, chunk.rows, chunk.columns, chunk.labels) for chunk in query_chunks(batch, 120)
    ]
    names = ("targets", "positive_keys", "document_keys", "teacher", "groups")
    own = VectorBatch(
        queries=torch.cat([vectors for vectors, _ in outputs]),
        documents=torch.cat(documents),
        **{name: batch[name] for name in names},
    )
    contrastive, _ = similarity_loss(own, recipe.losses)
    surprise = sum((found for _, found in outputs), start=torch.zeros(()))
    share = recipe.losses.contrastive_weight
    loss = share * contrastive + (1 - share) * surprise / batch["labels"].shape[1]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


@pytest.mark.parametrize("tokens", [None, 80])
@pytest.mark.parametrize(
    ("rows", "missing"), [([5, 11], "contrastive"), ([4, 10], "generation"), ([5, 4], None)],
    ids=["no positives", "no thoughts", "one of each"],
)  # fmt: skip
def test_a_batch_may_lack_thoughts_or_positives(
    files: dict[str, Path], rows: list[int], missing: str | None, tokens: int | None
) -> None:
    recipe = recipe_of(files["paper"], files["rows"], files["work"])
    backbone, model = opened(recipe)
    batch = one_batch(recipe, backbone, files["work"], rows)
    parts = joint_step(model, batch, recipe.losses, How(tokens=tokens))
    for name in ("contrastive", "generation"):
        # One query with one document has nothing to be told apart from.
        expected_zero = name == missing or (name == "contrastive" and rows == [5, 4])
        assert (parts[name].item() == 0.0) == expected_zero, name
    for name, gradient in gradients(model).items():
        assert torch.isfinite(gradient).all(), name
