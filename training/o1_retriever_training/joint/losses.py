"""The losses of joint training: tensors in, one number out, in float32 whatever the model computes in.

Every loss is 0 with a graph where there is nothing to learn, so that `backward` always works and every
process of a distributed run takes part in the same sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize, softplus
from torch.utils.checkpoint import checkpoint

# More scores than this at once are computed again for their gradient instead of being kept (16 MiB).
BLOCK = 1 << 22


def contrastive_loss(
    queries: Tensor, documents: Tensor, targets: Tensor, *, temperature: float, allowed: Tensor | None = None
) -> Tensor:
    """InfoNCE: how surprising each query's own document is among all that it is compared with.

    `queries` [V, d] and `documents` [D, d] are unit vectors, `targets` [V] is the row of each one's positive.
    Where `allowed` [V, D] is False a document is no negative of a query; its target counts all the same.
    The mean over V; 0 with a graph without queries.
    """
    if not len(queries):
        return _nothing(queries, documents)
    rows = torch.arange(len(queries), device=queries.device)

    def surprise(part: Tensor, documents: Tensor, rows: Tensor) -> Tensor:
        scores = _similarity(part, documents) / temperature
        if allowed is not None:
            mask = ~allowed[rows]
            mask[torch.arange(len(rows), device=rows.device), targets[rows]] = False
            scores = scores.masked_fill(mask, -torch.inf)
        return cross_entropy(scores, targets[rows], reduction="sum")

    return _sum_of_blocks(surprise, queries, documents, rows) / len(queries)


def distillation_loss(
    queries: Tensor,
    documents: Tensor,
    candidates: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """How far a query's scores of its own candidates are from its teacher's: KL of their softmaxes.

    `candidates` int64 [V, C] are rows of `documents` (-1: none), `teacher` [V, C] their scores (nan: none).
    The mean over the queries with at least two scored candidates; 0 with a graph without any, and 0 where
    the scores are the teacher's.
    """
    scored = (candidates >= 0) & torch.isfinite(teacher)
    rows = torch.nonzero(scored.sum(dim=1) >= 2).flatten()
    if not len(rows):
        return _nothing(queries, documents)

    def distance(part: Tensor, documents: Tensor, rows: Tensor) -> Tensor:
        absent = ~scored[rows]
        wanted = _wide(teacher[rows]).masked_fill(absent, -torch.inf)
        # The largest is taken off first: a large score over a small temperature would be infinite.
        wanted = ((wanted - wanted.amax(dim=1, keepdim=True)) / teacher_temperature).softmax(dim=1)
        scores = _similarity(part, documents).gather(1, candidates[rows].clamp(min=0)) / temperature
        found = scores.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, 0.0)
        return (torch.xlogy(wanted, wanted) - wanted * found).sum()

    return _sum_of_blocks(distance, queries[rows], documents, rows) / len(rows)


def cosine_loss(vectors: Tensor, teacher: Tensor, *, count: int) -> Tensor:
    """The sum of 1 - cosine between unit vectors [n, d] and their teacher's [n, d], divided by `count`.

    `count` is how many there are in all parts of the batch. 0 with a graph when it is 0.
    """
    if not count or not len(vectors):
        return _nothing(vectors)
    return (1 - (_wide(vectors) * _wide(teacher)).sum(dim=-1)).sum() / count


def relation_loss(vectors: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """How far the similarities of vectors [n, d] to each other are from those of their teacher's [n, d].

    The mean over n of the KL divergence between the softmaxes over all others; 0 with a graph below 2.
    """
    if len(vectors) < 2:
        return _nothing(vectors)
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    ours, theirs = (
        (_similarity(each, each) / temperature).masked_fill(itself, -1e4).log_softmax(dim=1)
        for each in (vectors, teacher)
    )
    return kl_div(ours, theirs, log_target=True, reduction="batchmean")


def corrected_queries(encoded: Tensor, corrections: Tensor, alone: Tensor) -> Tensor:
    """The vectors that an index of another's encoder is searched with, unit vectors [V, d].

    p(q) = unit(E(q) + W h(q)) for a query alone, and unit(a p(q) + mean_i unit(E(q + t_i))) with thoughts,
    here one and a = 1: what `ThoughtSettings.query_weight` and `PairBackend` compute. `encoded` [V, d] has E,
    `corrections` [V, d] has W h, and `alone` [V] is, for a query with a thought, the row of the same one
    without, and -1 for the others.
    """
    thinks = (alone >= 0)[:, None]
    own = normalize(encoded + corrections.masked_fill(thinks, 0.0), dim=-1)
    joined = normalize(own[alone.clamp(min=0)] + own, dim=-1)
    return torch.where(thinks, joined, own)


def index_loss(queries: Tensor, answers: Tensor, index: Tensor, *, temperature: float, count: int) -> Tensor:
    """InfoNCE over every document of an index: one product with its vectors, which do not change.

    `queries` [V, d] and `index` [N, d] are unit vectors, `answers` int64 [V, A] rows of the index (-1: none).
    The positives of a query do not compete with each other; each counts the same, and so does each query. The
    sum over the queries that have one, divided by `count`, how many there are in all parts of the batch.
    """
    rows = torch.nonzero((answers >= 0).any(dim=1)).flatten()
    if not count or not len(rows):
        return _nothing(queries)

    def surprise(part: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        own = answers[rows]
        scores = _similarity(part, index) / temperature
        mask = _members(own, len(index))
        others = scores.masked_fill(mask, -torch.inf).logsumexp(dim=1)
        each = softplus(others[:, None] - scores.gather(1, own.clamp(min=0)))
        present = own >= 0
        return (each.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)).sum()

    return _sum_of_blocks(surprise, queries[rows], index, rows) / count


def generation_loss(logits: Tensor, labels: Tensor, *, tokens: int) -> Tensor:
    """Next-token cross-entropy of the thoughts.

    `logits` [T, vocabulary] predict `labels` [T]. The sum over these T, divided by `tokens`, the number of
    labels in the whole batch of all chunks and processes: parts of a batch add up to its mean. 0 with a
    graph when `tokens` is 0.
    """
    if not tokens or not len(labels):
        return _nothing(logits)
    with _full_precision(logits):
        return cross_entropy(_wide(logits), labels, reduction="sum") / tokens


def joint_loss(contrastive: Tensor, generation: Tensor, *, weight: float) -> Tensor:
    """`weight` (the paper's lambda, 0 to 1) of the contrastive loss, the rest of the generation loss."""
    return weight * contrastive + (1 - weight) * generation


def allowed_negatives(
    positive_keys: Tensor, document_keys: Tensor, targets: Tensor, *, groups: Tensor | None = None
) -> Tensor:
    """Which documents a query may be compared with, bool [V, D]: no other copy of any of its positives.

    Keys are 64-bit hashes of what makes documents the same, an id or a text; 0 is no key. `positive_keys`
    [V, P] has those of all positives of a query, `document_keys` [D], or [D, K] where a document has several,
    those of the batch. Of copies that several processes brought the first counts. The row in `targets` [V]
    is always allowed. With `groups` [V, G], rows of documents (-1: none), a query is compared with these
    alone.
    """
    keys = document_keys if document_keys.dim() == 2 else document_keys[:, None]
    same = torch.zeros(len(targets), len(keys), dtype=torch.bool, device=keys.device)
    for own in positive_keys.unbind(1):
        for other in keys.unbind(1):
            same |= (own[:, None] == other[None, :]) & (own != 0)[:, None]
    compared = ~_copies(keys) if groups is None else _members(groups, len(keys))
    allowed = compared & ~same
    allowed[torch.arange(len(targets), device=keys.device), targets] = True
    return allowed


def _copies(keys: Tensor) -> Tensor:
    """Whether a document has a key that one before it has, bool [D]."""
    found = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    for column in keys.unbind(1):
        ordered, places = column.sort(stable=True)
        found[places[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]] = True
    return found


def _members(groups: Tensor, documents: int) -> Tensor:
    """Whether a document is in a query's group, bool [V, documents]."""
    found = torch.zeros(len(groups), documents + 1, dtype=torch.bool, device=groups.device)
    # What is missing (-1) goes to a column of its own.
    found.scatter_(1, torch.where(groups < 0, documents, groups), True)
    return found[:, :documents]


def _similarity(queries: Tensor, documents: Tensor) -> Tensor:
    with _full_precision(queries):
        return _wide(queries) @ _wide(documents).T


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast would compute the scores in bfloat16, too coarse for a temperature of 0.02."""
    return torch.autocast(tensor.device.type, enabled=False)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _sum_of_blocks(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], queries: Tensor, documents: Tensor, rows: Tensor
) -> Tensor:
    """The loss of all queries, block by block; `rows` are their numbers for what goes with them.

    Of several blocks none keeps its scores for the gradient, so that memory grows with the vectors alone.
    """
    size = max(1, BLOCK // len(documents))
    if len(queries) <= size:
        return loss(queries, documents, rows)
    parts = [
        checkpoint(loss, part, documents, own, use_reentrant=False, preserve_rng_state=False)
        for part, own in zip(torch.split(queries, size), torch.split(rows, size), strict=True)
    ]
    return torch.stack(parts).sum()


def _nothing(*tensors: Tensor) -> Tensor:
    """0 that depends on the tensors; of no row, so that an infinite one does not make it nan."""
    return torch.stack([_wide(tensor[:0]).sum() for tensor in tensors]).sum()
