"""The vectors of all processes, so that each sees the others' documents as negatives.

Every process computes the loss of the whole global batch, in which only its own vectors have a gradient.
As DDP averages the gradients of the processes, such a loss is multiplied by their number before `backward`:
the average is then what one process with the whole batch computes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

# What stands for a missing value of each field; the vectors and targets have none.
_PADDING = {"positive_keys": 0, "document_keys": 0, "groups": -1, "teacher": torch.nan}


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorBatch:
    """V queries' and D documents' unit vectors and who belongs to whom: of one process, or of all.

    Targets and groups are rows of `documents`.
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
    groups: Tensor
    """int64 [V, G], a query's own documents, -1 for none"""
    teacher: Tensor
    """float [V, G], a teacher's scores of these, nan for none"""


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
    also none. The batch itself when alone.
    """
    if processes() == 1:
        return own
    names = [field.name for field in fields(own)]
    sizes = [(*getattr(own, name).shape, 1)[:2] for name in names]
    shapes = torch.stack(_exchange(torch.tensor(sizes, device=own.queries.device))).cpu()
    parts = {
        name: _gather(getattr(own, name), shapes[:, index], _PADDING.get(name, 0))
        for index, name in enumerate(names)
    }
    before = 0
    for rank, documents in enumerate(parts["documents"]):
        for name in ("targets", "groups"):
            rows = parts[name][rank]
            parts[name][rank] = torch.where(rows < 0, rows, rows + before)
        before += len(documents)
    return VectorBatch(**{name: torch.cat(values) for name, values in parts.items()})


def _gather(value: Tensor, shapes: Tensor, padding: float) -> list[Tensor]:
    """A field of every process, of which int64 `shapes` [processes, 2] are known, as wide as the widest."""
    height, width = shapes.amax(dim=0).tolist()
    if value.dim() == 2:
        value = pad(value, (0, width - value.shape[1]), value=padding)
    counts = shapes[:, 0].tolist()
    if height * width:
        sent = pad(value.detach(), (0, 0) * (value.dim() - 1) + (0, height - len(value)), value=padding)
        parts = [part[:count] for part, count in zip(_exchange(sent), counts, strict=True)]
    else:
        parts = [value.new_empty(count, *value.shape[1:]) for count in counts]
    # What comes back from the others has no graph; the own part is the one that was given.
    parts[dist.get_rank()] = value
    return parts


def _exchange(tensor: Tensor) -> list[Tensor]:
    """Everybody's tensor; all have the same shape."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(processes())]
    dist.all_gather(parts, tensor.contiguous())
    return parts
