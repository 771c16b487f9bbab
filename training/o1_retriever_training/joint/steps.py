"""One training step: the joint loss of a batch and its gradient, at once or chunk by chunk.

With gradient caching (Gao et al. 2021, arXiv 2101.06983) every chunk is first embedded without a graph, the
loss's gradient with respect to the vectors is kept, and each chunk is embedded again with one: memory is
that of a chunk, and the gradient that of the whole batch. The thoughts' loss belongs to single tokens and is
computed in the second pass alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from o1_retriever.engine.batching import forward_tokens, free_memory
from o1_retriever_training.joint.batches import Batch
from o1_retriever_training.joint.gather import VectorBatch, gather_vectors, processes, total
from o1_retriever_training.joint.losses import (
    allowed_negatives,
    contrastive_loss,
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
    """What one forward takes, and which of the batch's vectors it gives (`at`)."""

    ids: Tensor
    rows: Tensor
    columns: Tensor
    at: slice
    labels: tuple[Tensor, Tensor, Tensor] | None = None
    weight: float = 1.0  # of its labels


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a step goes through a batch.

    `chunk` is the number of sequences of a forward; None keeps the graph of the whole batch. With `tokens` a
    forward has as many sequences as fit into so many tokens instead, padding included, so that memory is the
    same whether they are long or short. `backward` takes a loss; `unsynchronised` is entered for every
    backward but the last. With `even` all processes make the same number of forwards, which sharded weights
    need.
    """

    chunk: int | None
    tokens: int | None = None
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
    queries = query_chunks(batch, how.chunk, how.tokens)
    if how.even:
        queries = _as_many(queries, batch, labelled=True)
    words = total(len(batch["document_label_ids"]))
    # Every process uses the head, so that no weight is left without a gradient.
    weight = losses.document_token_weight if words or not queries else None
    documents = document_chunks(batch, how.chunk, how.tokens, weight=weight)
    if how.even:
        documents = _as_many(documents, batch, labelled=weight is not None)
    tokens = total(len(batch["label_ids"])) + losses.document_token_weight * words
    run = _direct if how.chunk is None else _cached
    return run(forward, batch, losses, how, _Plan(queries, documents, tokens, index))


@dataclass(frozen=True, slots=True)
class _Plan:
    queries: list[Chunk]
    documents: list[Chunk]
    tokens: float  # of all processes, each with its weight
    index: Tensor | None

    @property
    def chunks(self) -> list[Chunk]:
        # A chunk of queries comes last: it uses every weight, the head too, and its backward synchronises.
        return [*self.documents, *self.queries]

    def generation(self, chunk: Chunk, surprise: Tensor) -> Tensor:
        """What a chunk adds to the generation loss, so that the mean over processes is the global one."""
        return surprise * (chunk.weight * processes() / self.tokens if self.tokens else 0.0)


def _direct(forward: Forward, batch: Batch, losses: LossSection, how: How, plan: _Plan) -> Parts:
    outputs = [_run(forward, chunk) for chunk in plan.chunks]
    vectors = [found for found, _ in outputs]
    count = len(plan.documents)
    documents = torch.cat(vectors[:count]) if count else vectors[0][:0]
    queries = torch.cat(vectors[count:]) if plan.queries else documents[:0]
    loss = _Similarity.of(batch, queries, documents, losses, plan.index)
    surprises = [plan.generation(chunk, each) for chunk, (_, each) in zip(plan.chunks, outputs, strict=True)]
    generation = torch.stack(surprises).sum()
    share = losses.contrastive_weight
    how.backward(joint_loss(loss.backward, generation, weight=share))
    return _parts(loss, generation, share)


def _cached(forward: Forward, batch: Batch, losses: LossSection, how: How, plan: _Plan) -> Parts:
    states, embedded = [], []
    with torch.no_grad():
        for chunk in plan.chunks:
            states.append(RandomState())
            embedded.append(_run(forward, chunk, with_labels=False)[0])
            _give_back(embedded[-1])
    documents = _leaf(embedded[: len(plan.documents)], embedded[0])
    queries = _leaf(embedded[len(plan.documents) :], embedded[0])
    loss = _Similarity.of(batch, queries, documents, losses, plan.index)
    share = losses.contrastive_weight
    (loss.backward * share).backward()  # type: ignore[no-untyped-call]
    generation = torch.zeros((), device=queries.device)
    last = len(plan.chunks) - 1
    for number, (chunk, state) in enumerate(zip(plan.chunks, states, strict=True)):
        leaf = documents if number < len(plan.documents) else queries
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        with nullcontext() if number == last else how.unsynchronised():
            state.restore()
            vectors, surprise = _run(forward, chunk)
            own = plan.generation(chunk, surprise)
            how.backward((vectors * gradient[chunk.at]).sum() + (1 - share) * own)
            generation += own.detach()
            del vectors, surprise, own
        _give_back(leaf)
    return _parts(loss, generation, share)


@dataclass(frozen=True, slots=True)
class _Similarity:
    """The loss of a batch's vectors: its value, what `backward` is called of, and its parts."""

    value: Tensor
    backward: Tensor
    parts: Parts

    @classmethod
    def of(
        cls, batch: Batch, queries: Tensor, documents: Tensor, losses: LossSection, index: Tensor | None
    ) -> _Similarity:
        shared, parts = similarity_loss(_vector_batch(batch, queries, documents), losses)
        own, others = fixed_loss(batch, queries, documents, losses, index)
        # Everybody's shared loss is the global one, of which DDP's averaging would keep a share.
        scale = processes() if losses.across_processes else 1
        return cls((shared + own).detach(), shared * scale + own, parts | others)


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
    if losses.distillation_weight and everything.candidates is not None and everything.teacher is not None:
        distillation = distillation_loss(
            *vectors,
            everything.candidates,
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

    Parts are `teacher`, `relation` and `index`, as far as the recipe has them. The mean over the processes is
    that of the global batch; similarities are those within a process.
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
    return loss, {name: value.detach() for name, value in parts.items()}


def query_chunks(batch: Batch, size: int | None, tokens: int | None = None) -> list[Chunk]:
    """The query sequences with the vectors and labels that stand in them, `size` at a time.

    With `tokens`, as many as fit into so many; with neither, as many as make a full pass.
    """
    ids, rows, columns = batch["query_ids"], batch["vector_rows"], batch["vector_columns"]
    label_rows, label_columns, expected = (batch[f"label_{name}"] for name in ("rows", "columns", "ids"))
    widths = torch.ones(len(ids), dtype=torch.int64, device=ids.device)
    widths.scatter_reduce_(0, rows, columns + 1, "amax")
    widths.scatter_reduce_(0, label_rows, label_columns + 1, "amax")
    found = []
    for first, end, width in _spans(widths, size, tokens):
        at, labelled = _within(rows, first, end), _within(label_rows, first, end)
        labels = (label_rows[labelled] - first, label_columns[labelled], expected[labelled])
        found.append(
            Chunk(
                ids=ids[first:end, :width], rows=rows[at] - first, columns=columns[at], at=at, labels=labels
            )
        )
    return found


def document_chunks(
    batch: Batch, size: int | None, tokens: int | None = None, *, weight: float | None = None
) -> list[Chunk]:
    """The documents, cut as `query_chunks` cuts; with `weight` the labels in them count that much."""
    ids, ends = batch["document_ids"], batch["document_ends"]
    label_rows, label_columns, expected = (
        batch[f"document_label_{name}"] for name in ("rows", "columns", "ids")
    )
    found = []
    for first, end, width in _spans(ends + 1, size, tokens):
        rows = torch.arange(end - first, device=ids.device)
        columns = ends[first:end]
        chunk = Chunk(ids=ids[first:end, :width], rows=rows, columns=columns, at=slice(first, end))
        if weight is not None:
            words = _within(label_rows, first, end)
            labels = (label_rows[words] - first, label_columns[words], expected[words])
            chunk = replace(chunk, labels=labels, weight=weight)
        found.append(chunk)
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


def _give_back(vectors: Tensor) -> None:
    # On a CPU chunks of ever new shapes would leave ever more memory between blocks in use.
    if vectors.device.type == "cpu":
        free_memory(vectors.device)


def _run(forward: Forward, chunk: Chunk, *, with_labels: bool = True) -> tuple[Tensor, Tensor]:
    return forward(chunk.ids, chunk.rows, chunk.columns, chunk.labels if with_labels else None)


def _as_many(chunks: list[Chunk], batch: Batch, *, labelled: bool) -> list[Chunk]:
    """As many chunks as the process with most, the added ones first and of a single token without effect.

    They use the head only if the others do: what has a gradient must be the same in every process.
    """
    most = torch.tensor(len(chunks), device=batch["query_ids"].device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    nothing = batch["vector_rows"][:0]
    added = Chunk(
        ids=batch["query_ids"][:1, :1],
        rows=nothing,
        columns=nothing,
        at=slice(0, 0),
        labels=(nothing, nothing, nothing) if labelled else None,
    )
    return [added] * (int(most) - len(chunks)) + chunks


def _vector_batch(batch: Batch, queries: Tensor, documents: Tensor) -> VectorBatch:
    names = ("targets", "positive_keys", "candidates", "teacher", "groups")
    fields = {name: batch[name] for name in names}
    compared = batch["targets"] >= 0
    if not compared.all():  # those that learn from a teacher or an index alone
        fields = {name: value[compared] for name, value in fields.items()}
        queries = queries[compared]
    return VectorBatch(queries=queries, documents=documents, document_keys=batch["document_keys"], **fields)


def _parts(loss: _Similarity, generation: Tensor, share: float) -> Parts:
    whole = joint_loss(loss.value, generation.detach(), weight=share)
    return {"loss": whole, **loss.parts, "generation": generation.detach()}


def _leaf(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    return (torch.cat(list(vectors)) if vectors else like[:0]).detach().requires_grad_()


def _spans(widths: Tensor, size: int | None, tokens: int | None) -> Iterator[tuple[int, int, int]]:
    """(first, end, width) of each chunk of rows that are `widths` [rows] wide."""
    count = len(widths)
    by_count = size if tokens is None else None
    wide = widths.tolist()
    first = 0
    while first < count:
        full = _full(wide, first, tokens or forward_tokens(widths.device))
        end = min(first + by_count, count) if by_count else full
        yield first, end, max(wide[first:end])
        first = end


def _full(widths: Sequence[int], first: int, tokens: int) -> int:
    """The end of a chunk from `first` that has at most so many tokens, padding included."""
    width, end = widths[first], first + 1
    while end < len(widths) and max(width, widths[end]) * (end + 1 - first) <= tokens:
        width, end = max(width, widths[end]), end + 1
    return end


def _within(rows: Tensor, first: int, end: int) -> slice:
    """Where the sorted `rows` lie in [first, end)."""
    bounds = torch.searchsorted(rows, torch.tensor([first, end], device=rows.device))
    return slice(int(bounds[0]), int(bounds[1]))
