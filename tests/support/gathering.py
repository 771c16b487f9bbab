"""A global batch with known parts, and the losses that one process, or several, compute of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from o1_retriever_training.joint.losses import (
    allowed_negatives,
    contrastive_loss,
    distillation_loss,
    generation_loss,
)
from o1_retriever_training.joint.steps import VectorBatch, gather_vectors, processes, total
from tests.support.forks import leave_together

SIZE, WORDS, TEMPERATURE = 5, 7, 0.1
# Queries, documents, thought tokens, the widths of keys and groups of each process, and whether a teacher has
# scored the groups.
CASES: dict[str, list[tuple[int, int, int, int, int, bool]]] = {
    "even": [(2, 4, 3, 1, 2, True), (2, 4, 3, 1, 2, True)],
    "ragged": [(3, 5, 4, 2, 4, True), (1, 2, 1, 1, 2, True)],
    "no queries in the first": [(0, 0, 2, 0, 0, False), (2, 4, 0, 3, 4, True)],
    "documents alone in the second": [(2, 3, 0, 2, 3, True), (0, 4, 5, 1, 0, True)],
    "a teacher in the second alone": [(2, 3, 1, 1, 2, False), (2, 3, 1, 1, 3, True)],
    "no teacher": [(2, 3, 1, 1, 2, False), (1, 3, 1, 1, 3, False)],
    "three": [(2, 3, 2, 1, 2, True), (0, 1, 0, 2, 1, False), (3, 4, 4, 2, 3, True)],
    "nothing": [(0, 0, 0, 1, 2, True), (0, 0, 0, 1, 2, True)],
}


class Model(nn.Module):
    """Vectors of inputs [n, SIZE] and logits of words, from two layers of float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        shapes = {"encode": (SIZE, SIZE), "speak": (SIZE, WORDS)}
        for name, shape in shapes.items():
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(values))

    def forward(self, inputs: Tensor, spoken: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.encode, Tensor)
        assert isinstance(self.speak, Tensor)
        return normalize(inputs @ self.encode, dim=1), spoken @ self.speak


def part(case: str, rank: int) -> dict[str, Any]:
    """The inputs of a process; its numbers are rows of its own documents."""
    queries, documents, tokens, keys, group, scored = CASES[case][rank]
    generator = torch.Generator().manual_seed(1000 * list(CASES).index(case) + rank)

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=generator)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scores = floats(queries, group)
    scores[(numbers(0, 4, *scores.shape) == 0) | (not scored)] = torch.nan
    return {
        "queries": floats(queries, SIZE),
        "documents": floats(documents, SIZE),
        "targets": numbers(0, documents, queries),
        "positive_keys": numbers(0, 5, queries, keys),
        "document_keys": numbers(0, 5, documents, 2),
        "teacher": scores,
        "groups": numbers(-1, documents, queries, group),
        "spoken": floats(tokens, SIZE),
        "words": numbers(0, WORDS, tokens),
    }


def whole(case: str) -> dict[str, Any]:
    """The inputs of all processes as one, put together row by row."""
    parts = [part(case, rank) for rank in range(len(CASES[case]))]
    out: dict[str, Any] = {}
    for name in ("queries", "documents", "targets", "document_keys", "spoken", "words"):
        out[name] = torch.cat([one[name] for one in parts])
    starts = [sum(len(one["documents"]) for one in parts[:rank]) for rank in range(len(parts))]
    out["targets"] = torch.cat([one["targets"] + start for one, start in zip(parts, starts, strict=True)])
    padding = {"positive_keys": 0, "teacher": torch.nan, "groups": -1}
    for name, missing in padding.items():
        rows: list[list[Any]] = []
        for one, start in zip(parts, starts, strict=True):
            moved = start if name == "groups" else 0
            for row in one[name].tolist():
                rows.append([value if value < 0 and moved else value + moved for value in row])
        width = max((len(row) for row in rows), default=0)
        kind = torch.float64 if name == "teacher" else torch.int64
        filled = [row + [missing] * (width - len(row)) for row in rows]
        out[name] = torch.tensor(filled, dtype=kind).reshape(len(rows), width)
    return out


def vectors_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `VectorBatch`, the inputs standing for vectors."""
    return {name: value for name, value in inputs.items() if name not in ("spoken", "words")}


def losses(model: Any, inputs: dict[str, Any], *, own_groups: bool, cached: bool) -> dict[str, float]:
    """The global losses; their gradients, together, are added to the model's."""
    encoded = torch.cat([inputs["queries"], inputs["documents"]])
    vectors, logits = model(encoded, inputs["spoken"])
    leaf = vectors.detach().requires_grad_() if cached else vectors
    queries, documents = leaf.split([len(inputs["queries"]), len(inputs["documents"])])
    batch = VectorBatch(**{**vectors_of(inputs), "queries": queries, "documents": documents})
    gathered = gather_vectors(batch)
    assert processes() > 1 or gathered is batch
    contrastive, distillation = both_losses(gathered, own_groups=own_groups)
    generation = generation_loss(logits, inputs["words"], tokens=total(len(inputs["words"])))
    loss = processes() * (contrastive + distillation + (0 if cached else generation))
    loss.backward()
    if cached:
        # The second step of gradient caching: the vectors once more, now with the gradient they shall have.
        ((vectors * leaf.grad).sum() + processes() * generation).backward()
    return {
        "contrastive": contrastive.item(),
        "distillation": distillation.item(),
        "generation": generation.item(),
    }


def both_losses(batch: VectorBatch, *, own_groups: bool) -> tuple[Tensor, Tensor]:
    """The contrastive loss and the distillation of a batch."""
    allowed = allowed_negatives(
        batch.positive_keys, batch.document_keys, batch.targets, groups=batch.groups if own_groups else None
    )
    contrastive = contrastive_loss(
        batch.queries, batch.documents, batch.targets, temperature=TEMPERATURE, allowed=allowed
    )
    return contrastive, distillation_loss(
        batch.queries, batch.documents, batch.groups, batch.teacher,
        temperature=TEMPERATURE, teacher_temperature=0.5,
    )  # fmt: skip


def gather_all(out: str) -> None:
    """What a process of a distributed world does: all cases, under DDP, its findings in a file."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}
    for case, own_groups, cached in runs():
        if len(CASES[case]) == processes():
            model = nn.parallel.DistributedDataParallel(Model())
            values = losses(model, part(case, rank), own_groups=own_groups, cached=cached)
            gradients = [parameter.grad for parameter in model.parameters()]
            found[case, own_groups, cached] = (values, gradients)
    for case in CASES:
        if len(CASES[case]) == processes():
            found[case] = asdict(gather_vectors(VectorBatch(**vectors_of(part(case, rank)))))
    found["total"] = total(rank + 5)
    torch.save(found, f"{out}.{rank}")
    leave_together()


def runs() -> list[tuple[str, bool, bool]]:
    """Every case, with and without in-batch negatives, with and without gradient caching."""
    return [(case, own, cached) for case in CASES for own in (False, True) for cached in (False, True)]
