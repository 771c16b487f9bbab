"""The vectors of all processes, so that each sees the others' documents as negatives.

Every process computes the loss of the whole global batch, in which only its own vectors have a gradient.
As DDP averages the gradients of the processes, such a loss is multiplied by their number before `backward`:
the average is then what one process with the whole batch computes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# What stands for a missing value of each field; the vectors and targets have none.
_PADDING = {"positive_keys": 0, "document_keys": 0, "candidates": -1, "teacher": torch.nan, "groups": -1}
_OF_DOCUMENTS = ("documents", "document_keys")
_ROW_NUMBERS = ("targets", "candidates", "groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorBatch:
    """V queries' and D documents' unit vectors and who belongs to whom: of one process, or of all.

    Targets, candidates and groups are rows of `documents`.
    """

    queries: Tensor
    """float [V, d]"""
    documents: Tensor
    """float [D, d]"""
    targets: Tensor
    """int64 [V], each query's positive"""
    positive_keys: Tensor
    """int64 [V, P], keys of all positives of a query, 0 for none"""
    document_keys: Tensor
    """int64 [D], or [D, K] where a document has several keys"""
    candidates: Tensor | None = None
    """int64 [V, C], documents that a teacher scored, -1 for none"""
    teacher: Tensor | None = None
    """float [V, C], these scores, nan for none"""
    groups: Tensor | None = None
    """int64 [V, G], a query's own documents, -1 for none"""


def processes() -> int:
    """How many processes train together; 1 when `torch.distributed` is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(count: int | Tensor) -> int:
    """The sum of a count over all processes; every process must ask."""
    if processes() == 1:
        return int(count)
    device = torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")
    summed = torch.tensor(int(count), dtype=torch.int64, device=device)
    dist.all_reduce(summed)
    return int(summed)


def gather_vectors(own: VectorBatch) -> VectorBatch:
    """The batches of all processes as one, in the order of the processes; every process must ask.

    Gradients reach the own vectors alone. Processes may bring different numbers of queries and documents,
    also none. A field that is None everywhere stays None. The batch itself when alone.
    """
    if processes() == 1:
        return own
    shapes = _shapes(own)
    parts = {
        field.name: _gather(own, field.name, shapes[:, index]) for index, field in enumerate(fields(own))
    }
    before = 0
    for rank, documents in enumerate(parts["documents"]):
        for name in _ROW_NUMBERS:
            if parts[name]:
                rows = parts[name][rank]
                parts[name][rank] = torch.where(rows < 0, rows, rows + before)
        before += len(documents)
    everything: dict[str, Any] = {name: torch.cat(rows) if rows else None for name, rows in parts.items()}
    return replace(own, **everything)


def _shapes(own: VectorBatch) -> Tensor:
    """int64 [processes, fields, 2]: rows and columns of every field, a width of -1 for None."""
    sizes = []
    for field in fields(own):
        value = getattr(own, field.name)
        rows = len(own.documents) if field.name in _OF_DOCUMENTS else len(own.queries)
        sizes.append((rows, -1 if value is None else 1 if value.dim() == 1 else value.shape[1]))
    mine = torch.tensor(sizes, dtype=torch.int64, device=own.queries.device)
    return torch.stack(_exchange(mine)).cpu()


def _gather(own: VectorBatch, name: str, shapes: Tensor) -> list[Tensor]:
    """One field of every process, as wide as the widest; nothing when no process has it."""
    height, width = (int(size) for size in shapes.amax(dim=0))
    if width < 0:
        return []
    value, padding = getattr(own, name), _PADDING.get(name, 0)
    if value is None:
        kind = own.queries.dtype if name == "teacher" else torch.int64
        value = torch.empty(len(own.queries), 0, dtype=kind, device=own.queries.device)
    if value.dim() == 2:
        value = _widened(value, len(value), width, padding)
    rows = [int(size) for size in shapes[:, 0]]
    if height * width:
        sent = (
            _widened(value.detach(), height, width, padding) if value.dim() == 2 else _longer(value, height)
        )
        parts = [part[:count] for part, count in zip(_exchange(sent), rows, strict=True)]
    else:
        parts = [value.new_empty(count, *value.shape[1:]) for count in rows]
    # What comes back from the others has no graph; the own part is the one that was given.
    parts[dist.get_rank()] = value
    return parts


def _exchange(tensor: Tensor) -> list[Tensor]:
    """Everybody's tensor; all have the same shape."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(processes())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def _widened(value: Tensor, rows: int, columns: int, padding: float) -> Tensor:
    if value.shape == (rows, columns):
        return value
    wide = value.new_full((rows, columns), padding)
    wide[: value.shape[0], : value.shape[1]] = value
    return wide


def _longer(value: Tensor, rows: int) -> Tensor:
    return torch.cat([value, value.new_zeros(rows - len(value))])
