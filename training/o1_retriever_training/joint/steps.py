"""One training step: the joint loss of a batch and its gradient, at once or chunk by chunk.

With gradient caching (Gao et al. 2021, arXiv 2101.06983) every chunk is first embedded without a graph, the
loss's gradient with respect to the vectors is kept, and each chunk is embedded again with one: memory is
that of a chunk, and the gradient that of the whole batch. The thoughts' loss belongs to single tokens and is
computed in the second pass alone.

With several processes each sees the others' documents as negatives: every process computes the loss of the
whole global batch, in which only its own vectors have a gradient. As DDP averages the gradients of the
processes, such a loss is multiplied by their number before `backward`: the average is then what one process
with the whole batch computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from o1_retriever.engine.passes import forward_tokens, free_memory
from o1_retriever_training.joint.batches import Batch
from o1_retriever_training.joint.losses import (
    allowed_negatives,
    contrastive_loss,
    corrected_queries,
    cosine_loss,
    distillation_loss,
    index_loss,
    joint_loss,
    relation_loss,
)
from o1_retriever_training.joint.recipe import LossSection

Forward: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
Parts: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one forward takes; each of its `labels` counts `weight`."""

    ids: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor | None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a step goes through a batch.

    A forward has as many sequences as fit into `tokens`, padding included, so that memory is the same whether
    they are long or short; None keeps the graph of the whole batch. `backward` takes a loss; `unsynchronised`
    is entered for every backward but the last. With `even` all processes make the same number of forwards,
    which sharded weights need.
    """

    tokens: int | None
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()  # type: ignore[no-untyped-call]
    unsynchronised: Callable[[], AbstractContextManager[Any]] = nullcontext
    even: bool = False


def joint_step(
    forward: Forward, batch: Batch, losses: LossSection, how: How, index: Tensor | None = None
) -> Parts:
    """Add the gradient of a batch's joint loss to the weights; return the parts of the loss, detached.

    `forward` is a `JointModel`, or what DDP or FSDP made of it, `index` the vectors [N, d] of the recipe's
    index. Parts are `loss`, `contrastive`, `distillation`, `generation` and those of `fixed_loss`; their mean
    over the processes is that of the global batch.
    """
    queries = query_chunks(batch, how.tokens)
    if how.even:
        queries = _as_many(queries, batch, labelled=True)
    words = total(batch["document_labels"].shape[1])
    # Every process uses the head, so that no weight is left without a gradient.
    weight = losses.document_token_weight if words or not queries else None
    documents = document_chunks(batch, how.tokens, weight=weight)
    if how.even:
        documents = _as_many(documents, batch, labelled=weight is not None)
    tokens = total(batch["labels"].shape[1]) + losses.document_token_weight * words
    # So that the mean over the processes is the loss of the global batch.
    scale = processes() / tokens if tokens else 0.0

    def loss_of(vectors: list[Tensor]) -> _Loss:
        count = len(documents)
        nothing = vectors[0][:0]
        parts = [torch.cat(part) if part else nothing for part in (vectors[count:], vectors[:count])]
        return _loss(batch, parts[0], parts[1], losses, index)

    # A chunk of queries comes last: it uses every weight, the head too, and its backward synchronises.
    chunks = [*documents, *queries]
    run = _direct if how.tokens is None else _cached
    loss, generation = run(forward, chunks, loss_of, scale, how, losses.contrastive_weight)
    whole = joint_loss(loss.value, generation, weight=losses.contrastive_weight)
    return {"loss": whole, **loss.parts, "generation": generation}


def _direct(
    forward: Forward, chunks: Sequence[Chunk], loss_of: LossOf, scale: float, how: How, share: float
) -> tuple[_Loss, Tensor]:
    outputs = [forward(chunk.ids, chunk.rows, chunk.columns, chunk.labels) for chunk in chunks]
    loss = loss_of([vectors for vectors, _ in outputs])
    surprises = [
        surprise * chunk.weight * scale for chunk, (_, surprise) in zip(chunks, outputs, strict=True)
    ]
    generation = torch.stack(surprises).sum()
    how.backward(joint_loss(loss.backward, generation, weight=share))
    return loss, generation.detach()


def _cached(
    forward: Forward, chunks: Sequence[Chunk], loss_of: LossOf, scale: float, how: How, share: float
) -> tuple[_Loss, Tensor]:
    states, leaves = [], []
    for chunk in chunks:
        states.append(RandomState())
        with torch.no_grad():
            vectors, _ = forward(chunk.ids, chunk.rows, chunk.columns)
        leaves.append(vectors.detach().requires_grad_())
        if vectors.device.type == "cpu":  # chunks of ever new shapes leave ever more memory between blocks
            free_memory(vectors.device)
    loss = loss_of(leaves)
    (loss.backward * share).backward()  # type: ignore[no-untyped-call]
    generation = torch.zeros((), device=loss.value.device)
    for chunk, state, leaf in zip(chunks, states, leaves, strict=True):
        with nullcontext() if chunk is chunks[-1] else how.unsynchronised():
            state.restore()
            vectors, surprise = forward(chunk.ids, chunk.rows, chunk.columns, chunk.labels)
            own = surprise * chunk.weight * scale
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            how.backward((vectors * gradient).sum() + (1 - share) * own)
            generation += own.detach()
            del vectors, surprise, own
        if leaf.device.type == "cpu":
            free_memory(leaf.device)
    return loss, generation


@dataclass(frozen=True, slots=True)
class _Loss:
    """The loss of a batch's vectors: its value, what `backward` is called of, and its parts."""

    value: Tensor
    backward: Tensor
    parts: Parts


LossOf: TypeAlias = Callable[[list[Tensor]], _Loss]  # of the vectors of each chunk


def _loss(
    batch: Batch, queries: Tensor, documents: Tensor, losses: LossSection, index: Tensor | None
) -> _Loss:
    if "encoded" in batch:
        queries = corrected_queries(batch["encoded"], queries, batch["alone"])
    own, others = fixed_loss(batch, queries, documents, losses, index)
    compared = batch["targets"] >= 0  # the others learn from a teacher or an index alone
    fields = {name: batch[name][compared] for name in ("targets", "positive_keys", "groups", "teacher")}
    vectors = VectorBatch(
        queries=queries[compared], documents=documents, document_keys=batch["document_keys"], **fields
    )
    shared, parts = similarity_loss(vectors, losses)
    # Everybody's shared loss is the global one, of which DDP's averaging would keep a share.
    scale = processes() if losses.across_processes else 1
    return _Loss((shared + own).detach(), shared * scale + own, parts | others)


def similarity_loss(own: VectorBatch, losses: LossSection) -> tuple[Tensor, Parts]:
    """The contrastive part of the objective, distillation included, over the vectors of all processes."""
    everything = gather_vectors(own) if losses.across_processes else own
    groups = None if losses.in_batch_negatives else everything.groups
    vectors = (everything.queries, everything.documents)
    allowed = allowed_negatives(
        everything.positive_keys, everything.document_keys, everything.targets, groups=groups
    )
    temperature = losses.temperature
    contrastive = contrastive_loss(*vectors, everything.targets, temperature=temperature, allowed=allowed)
    parts = {"contrastive": contrastive.detach()}
    loss = losses.contrastive_part_weight * contrastive
    if losses.distillation_weight:
        distillation = distillation_loss(
            *vectors,
            everything.groups,
            everything.teacher,
            temperature=temperature,
            teacher_temperature=losses.teacher_temperature,
        )
        parts["distillation"] = distillation.detach()
        loss = loss + losses.distillation_weight * distillation
    return loss, parts


def fixed_loss(
    batch: Batch, queries: Tensor, documents: Tensor, losses: LossSection, index: Tensor | None
) -> tuple[Tensor, Parts]:
    """What the vectors of this process learn from vectors that do not change: a teacher's, and an index's.

    Parts are `teacher`, `relation`, `index` and `fast`, as far as the recipe has them. The mean over the
    processes is that of the global batch; similarities are those within a process.
    """
    loss, parts = queries.new_zeros(()), {}
    if "teacher_queries" in batch:
        vectors = torch.cat([queries, documents])
        teacher = torch.cat([batch["teacher_queries"], batch["teacher_documents"]])
        known = torch.isfinite(teacher).all(dim=1)
        vectors, teacher = vectors[known], teacher[known]
        parts["teacher"] = cosine_loss(vectors, teacher, count=total(len(vectors))) * processes()
        loss = loss + losses.teacher_weight * parts["teacher"]
        if losses.relation_weight:
            parts["relation"] = relation_loss(vectors, teacher, temperature=losses.relation_temperature)
            loss = loss + losses.relation_weight * parts["relation"]
    if index is not None:
        answers = batch["answers"]
        count = total(int((answers >= 0).any(dim=1).sum()))
        surprise = index_loss(queries, answers, index, temperature=losses.temperature, count=count)
        parts["index"] = surprise * processes()
        loss = loss + losses.index_weight * parts["index"]
    if "alone" in batch:
        thinking = torch.nonzero(batch["alone"] >= 0).flatten()
        fast, taught = queries[batch["alone"][thinking]], queries[thinking].detach()
        parts["fast"] = cosine_loss(fast, taught, count=total(len(thinking))) * processes()
        loss = loss + losses.fast_weight * parts["fast"]
    return loss, {name: value.detach() for name, value in parts.items()}


def query_chunks(batch: Batch, tokens: int | None) -> list[Chunk]:
    """The query sequences with the vectors and labels that stand in them, at most `tokens` at a time.

    With None as many as the device's forward pass takes.
    """
    return _chunks(batch["query_ids"], batch["vector_rows"], batch["vector_columns"], batch["labels"], tokens)


def document_chunks(batch: Batch, tokens: int | None, *, weight: float | None = None) -> list[Chunk]:
    """The documents, cut as `query_chunks` cuts; with `weight` the labels in them count that much."""
    ends = batch["document_ends"]
    rows = torch.arange(len(ends), device=ends.device)
    chunks = _chunks(batch["document_ids"], rows, ends, batch["document_labels"], tokens)
    if weight is None:
        return [replace(chunk, labels=None) for chunk in chunks]
    return [replace(chunk, weight=weight) for chunk in chunks]


def _chunks(ids: Tensor, rows: Tensor, columns: Tensor, labels: Tensor, tokens: int | None) -> list[Chunk]:
    ends = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    for at_rows, at_columns in ((rows, columns), (labels[0], labels[1])):
        ends.scatter_reduce_(0, at_rows, at_columns, "amax")
    widths = (ends + 1).tolist()
    most = tokens or forward_tokens(ids.device)
    found = []
    first = 0
    while first < len(widths):
        width, end = widths[first], first + 1
        while end < len(widths) and max(width, widths[end]) * (end + 1 - first) <= most:
            width, end = max(width, widths[end]), end + 1
        at, labelled = _within(rows, first, end), _within(labels[0], first, end)
        own = labels[:, labelled].clone()
        own[0] -= first
        found.append(
            Chunk(ids=ids[first:end, :width], rows=rows[at] - first, columns=columns[at], labels=own)
        )
        first = end
    return found


class RandomState:
    """The state of the random numbers, to be taken up again: dropout then falls on the same places."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        """Go on from here again."""
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def _as_many(chunks: list[Chunk], batch: Batch, *, labelled: bool) -> list[Chunk]:
    """As many chunks as the process with most, the added ones first and of a single token without effect.

    They use the head only if the others do: what has a gradient must be the same in every process.
    """
    most = torch.tensor(len(chunks), device=batch["query_ids"].device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    nothing = batch["labels"][:, :0]
    added = Chunk(
        ids=batch["query_ids"][:1, :1],
        rows=nothing[0],
        columns=nothing[1],
        labels=nothing if labelled else None,
    )
    return [added] * (int(most) - len(chunks)) + chunks


def _within(rows: Tensor, first: int, end: int) -> slice:
    """Where the sorted `rows` lie in [first, end)."""
    bounds = torch.searchsorted(rows, torch.tensor([first, end], device=rows.device))
    return slice(int(bounds[0]), int(bounds[1]))


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
