"""The losses of joint training, against arithmetic by hand and against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, normalize

from o1_retriever_training.joint import losses
from o1_retriever_training.joint.losses import (
    allowed_negatives,
    contrastive_loss,
    corrected_queries,
    cosine_loss,
    distillation_loss,
    generation_loss,
    index_loss,
    joint_loss,
    relation_loss,
)

NAN = math.nan


def close(found: Tensor, wanted: float, within: float = 1e-6) -> None:
    assert found.dtype in (torch.float32, torch.float64)
    assert found.item() == pytest.approx(wanted, abs=within, rel=within)


class TestByHand:
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([0, 1])

    def test_contrastive(self) -> None:
        # Scores 1, 0 and 0.6, 0.8; over 0.2: 5, 0 and 3, 4.
        # (ln(1 + e^-5) + ln(1 + e^-1)) / 2 = (0.0067153 + 0.3132617) / 2
        found = contrastive_loss(self.queries, self.documents, self.targets, temperature=0.2)
        close(found, 0.1599885)

    def test_a_document_that_is_no_negative_does_not_count(self) -> None:
        # The second query is left with its own document: ln 1 = 0. The first as above: 0.0067153 / 2.
        allowed = torch.tensor([[True, True], [False, True]])
        found = contrastive_loss(self.queries, self.documents, self.targets, temperature=0.2, allowed=allowed)
        close(found, 0.00335765)

    def test_a_mask_never_takes_the_target(self) -> None:
        nothing = torch.zeros(2, 2, dtype=torch.bool)
        found = contrastive_loss(self.queries, self.documents, self.targets, temperature=0.2, allowed=nothing)
        assert float(found) == 0.0
        assert not nothing.any(), "the caller's mask was written to"

    def test_the_gradient_of_contrastive(self) -> None:
        # Of the second query: (softmax - target) documents / temperature / 2; softmax(3, 4) = 0.2689414,
        # 0.7310586, so (0.2689414, -0.2689414) / 0.4 = (0.6723535, -0.6723535).
        queries = self.queries.clone().requires_grad_()
        contrastive_loss(queries, self.documents, self.targets, temperature=0.2).backward()
        assert queries.grad is not None
        assert torch.allclose(queries.grad[1], torch.tensor([0.6723535, -0.6723535]))

    def test_distillation(self) -> None:
        # The student: scores 1, 0 over 0.5 = 2, 0: 0.8807971, 0.1192029.
        # The teacher: scores 6, 4 over 2 = 3, 2: 0.7310586, 0.2689414.
        # 0.7310586 ln(0.7310586 / 0.8807971) + 0.2689414 ln(0.2689414 / 0.1192029)
        #   = 0.7310586 * -0.1863334 + 0.2689414 * 0.8136666 = 0.0826082
        found = distillation_loss(
            self.queries[:1], self.documents, torch.tensor([[0, 1]]), torch.tensor([[6.0, 4.0]]),
            temperature=0.5, teacher_temperature=2.0,
        )  # fmt: skip
        close(found, 0.0826082)

    def test_distillation_is_nothing_at_the_teacher(self) -> None:
        # Scores 0.6, 0.8 over 0.1 = 6, 8: the teacher's, up to a constant.
        queries = self.queries[1:].clone().requires_grad_()
        found = distillation_loss(
            queries, self.documents, torch.tensor([[0, 1]]), torch.tensor([[-1.0, 1.0]]),
            temperature=0.1, teacher_temperature=1.0,
        )  # fmt: skip
        close(found, 0.0)
        found.backward()
        assert queries.grad is not None
        assert queries.grad.abs().max() < 1e-5

    def test_generation(self) -> None:
        # Probabilities 3/4, 1/4 and 1/2, 1/2: -ln 0.75 - ln 0.5 = 0.2876821 + 0.6931472; over 4 tokens.
        logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
        close(generation_loss(logits, torch.tensor([0, 1]), tokens=4), 0.9808293 / 4)

    def test_index(self) -> None:
        # The index has (1, 0), (0, 1), (0.6, 0.8); the temperature is 0.5. The first query, (1, 0), scores
        # 2, 0, 1.2. Its answers, the first two, compete with the third alone: ln(1 + e^(1.2 - 2)) = 0.3711007
        # and ln(1 + e^1.2) = 1.4632825, whose mean is 0.9171916. The second, (0.6, 0.8), scores 1.2, 1.6, 2
        # and has one answer, the first: ln(1 + e^0.4 + e^0.8) = 1.5512505.
        index = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        answers = torch.tensor([[0, 1], [0, -1]])
        found = index_loss(self.queries, answers, index, temperature=0.5, count=2)
        close(found, (0.9171916 + 1.5512505) / 2)
        found = index_loss(self.queries, answers[:, :1], index, temperature=0.5, count=1)
        # ln(1 + e^-2 + e^-0.8) = 0.4603726, and as above.
        close(found, 0.4603726 + 1.5512505)

    def test_joint(self) -> None:
        # 0.8 * 3 + 0.2 * 5
        close(joint_loss(torch.tensor(3.0), torch.tensor(5.0), weight=0.8), 3.4)


def test_other_copies_of_a_positive_are_no_negatives() -> None:
    positives = torch.tensor([[7, 8], [9, 0]])
    documents = torch.tensor([7, 9, 8, 7, 0, 5])
    # The first query: its target 0 stays, 2 and 3 are positives too. The second: only its own target has 9,
    # and 3 is 0 again; a document without a key (0) is nobody's copy, although the query has a key 0.
    expected = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1]], dtype=torch.bool)
    assert torch.equal(allowed_negatives(positives, documents, torch.tensor([0, 1])), expected)


def test_the_same_id_or_the_same_text_is_enough() -> None:
    ids_and_texts = torch.tensor([[1, 10], [1, 11], [2, 10], [3, 12], [0, 0]])
    found = allowed_negatives(torch.tensor([[1, 10]]), ids_and_texts, torch.tensor([0]))
    assert found.tolist() == [[True, False, False, True, True]]


def test_of_copies_one_is_a_negative() -> None:
    # As if two processes had brought the document 5; the third query has it as its own.
    keys = torch.tensor([1, 5, 2, 5, 0, 0])
    found = allowed_negatives(torch.tensor([[1], [2], [5]]), keys, torch.tensor([0, 2, 3]))
    assert found.int().tolist() == [[1, 1, 1, 0, 1, 1], [1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1]]


def test_without_in_batch_negatives_a_query_sees_its_own_group() -> None:
    groups = torch.tensor([[0, 2, -1], [1, 3, 4]])
    found = allowed_negatives(
        torch.tensor([[5], [6]]), torch.tensor([5, 6, 5, 8, 9, 7]), torch.tensor([0, 1]), groups=groups
    )
    # In the first group 2 is a copy of the positive.
    assert found.tolist() == [
        [True, False, False, False, False, False],
        [False, True, False, True, True, False],
    ]


# The same in plain loops.


def log_softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    norm = top + math.log(sum(math.exp(score - top) for score in scores))
    return [score - norm for score in scores]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def plain_contrastive(
    queries: Tensor, documents: Tensor, targets: Tensor, temperature: float, allowed: Tensor
) -> float:
    losses = []
    for q, vector in enumerate(queries.tolist()):
        target = int(targets[q])
        rows = [d for d in range(len(documents)) if allowed[q, d] or d == target]
        scores = [dot(vector, documents[d].tolist()) / temperature for d in rows]
        losses.append(-log_softmax(scores)[rows.index(target)])
    return sum(losses) / len(losses) if losses else 0.0


def plain_distillation(
    queries: Tensor, documents: Tensor, candidates: Tensor, teacher: Tensor, temperatures: tuple[float, float]
) -> float:
    losses = []
    for vector, rows, wanted in zip(queries.tolist(), candidates.tolist(), teacher.tolist(), strict=True):
        pairs = [(d, score) for d, score in zip(rows, wanted, strict=True) if d >= 0 and score == score]
        if len(pairs) < 2:
            continue
        found = log_softmax([dot(vector, documents[d].tolist()) / temperatures[0] for d, _ in pairs])
        target = log_softmax([score / temperatures[1] for _, score in pairs])
        losses.append(sum(math.exp(t) * (t - f) for t, f in zip(target, found, strict=True)))
    return sum(losses) / len(losses) if losses else 0.0


def plain_index(queries: Tensor, answers: Tensor, index: Tensor, temperature: float, count: int) -> float:
    losses = []
    for vector, rows in zip(queries.tolist(), answers.tolist(), strict=True):
        own = [row for row in rows if row >= 0]
        scores = [dot(vector, each) / temperature for each in index.tolist()]
        others = [score for row, score in enumerate(scores) if row not in own]
        each = [-log_softmax([scores[row], *others])[0] for row in own]
        losses += [sum(each) / len(each)] if each else []
    return sum(losses) / count if count else 0.0


def plain_relation(vectors: Tensor, teacher: Tensor, temperature: float) -> float:
    losses = []
    for place in range(len(vectors)):
        found, wanted = (
            log_softmax(
                [dot(each[place], other) / temperature for row, other in enumerate(each) if row != place]
            )
            for each in (vectors.tolist(), teacher.tolist())
        )
        losses.append(sum(math.exp(w) * (w - f) for w, f in zip(wanted, found, strict=True)))
    return sum(losses) / len(losses)


def plain_unit(vector: list[float]) -> list[float]:
    length = max(math.hypot(*vector), 1e-12)
    return [each / length for each in vector]


def plain_corrected(encoded: Tensor, corrections: Tensor, alone: Tensor) -> list[list[float]]:
    rows = zip(encoded.tolist(), corrections.tolist(), alone.tolist(), strict=True)
    own = [
        plain_unit([a + b for a, b in zip(vector, added, strict=True)]) if row < 0 else plain_unit(vector)
        for vector, added, row in rows
    ]
    return [
        plain_unit([a + b for a, b in zip(own[row], vector, strict=True)]) if row >= 0 else vector
        for row, vector in zip(alone.tolist(), own, strict=True)
    ]


def plain_allowed(
    positives: Tensor, keys: Tensor, targets: Tensor, groups: Tensor | None
) -> list[list[bool]]:
    rows = []
    for q, target in enumerate(targets.tolist()):
        mine = {key for key in positives[q].tolist() if key}
        row = []
        for d in range(len(keys)):
            theirs = set(keys[d].reshape(-1).tolist())
            if groups is None:
                before = [keys[e].reshape(-1).tolist() for e in range(d)]
                copy = any(
                    key and key == one[place]
                    for place, key in enumerate(keys[d].reshape(-1).tolist())
                    for one in before
                )
                inside = not copy
            else:
                inside = d in groups[q].tolist()
            row.append(d == target or (inside and not mine & theirs))
        rows.append(row)
    return rows


@st.composite
def batches(draw: Any) -> dict[str, Tensor]:
    queries, documents, size, width = (draw(st.integers(low, 6)) for low in (0, 1, 1, 0))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    def vectors(rows: int) -> Tensor:
        return normalize(torch.randn(rows, size, generator=generator, dtype=torch.float64), dim=1)

    teacher = torch.randn(queries, width, generator=generator) * 3
    return {
        "queries": vectors(queries),
        "documents": vectors(documents),
        "targets": numbers(0, documents, queries),
        "allowed": numbers(0, 3, queries, documents) > 0,
        "candidates": numbers(-1, documents, queries, width),
        "teacher": teacher.masked_fill(numbers(0, 4, queries, width) == 0, NAN),
        # Few different keys, so that many documents are the same.
        "positive_keys": numbers(0, 4, queries, width),
        "document_keys": numbers(0, 4, documents, *[[], [1], [2]][draw(st.integers(0, 2))]),
        "groups": numbers(-1, documents, queries, width),
    }


TEMPERATURES = st.sampled_from([0.02, 0.3, 1.0, 7.0])


@settings(max_examples=60)
@given(batches(), TEMPERATURES, TEMPERATURES)
def test_plain_loops_find_the_same(batch: dict[str, Tensor], one: float, other: float) -> None:
    queries, documents, targets = batch["queries"], batch["documents"], batch["targets"]
    allowed, candidates, teacher = batch["allowed"], batch["candidates"], batch["teacher"]
    close(
        contrastive_loss(queries, documents, targets, temperature=one, allowed=allowed),
        plain_contrastive(queries, documents, targets, one, allowed),
    )
    close(
        contrastive_loss(queries, documents, targets, temperature=one),
        plain_contrastive(queries, documents, targets, one, torch.ones_like(allowed)),
    )
    close(
        distillation_loss(
            queries, documents, candidates, teacher, temperature=one, teacher_temperature=other
        ),
        plain_distillation(queries, documents, candidates, teacher, (one, other)),
        within=1e-5,
    )
    positives, keys = batch["positive_keys"], batch["document_keys"]
    for groups in (None, batch["groups"]):
        found = allowed_negatives(positives, keys, targets, groups=groups)
        assert found.dtype == torch.bool
        assert found.tolist() == plain_allowed(positives, keys, targets, groups)


@settings(max_examples=60)
@given(batches(), TEMPERATURES, st.integers(0, 3))
def test_plain_loops_find_the_same_for_an_index(
    batch: dict[str, Tensor], temperature: float, count: int
) -> None:
    queries, index, answers = batch["queries"], batch["documents"], batch["candidates"]
    found = index_loss(queries, answers, index, temperature=temperature, count=count)
    close(found, plain_index(queries, answers, index, temperature, count), within=1e-5)
    for size in (0, 1, 2, len(index)):
        vectors, teacher = index[:size], index.flip(0)[:size]
        found = relation_loss(vectors, teacher, temperature=temperature)
        close(found, plain_relation(vectors, teacher, temperature) if len(vectors) > 1 else 0.0, within=1e-5)
        cosines = [dot(*pair) for pair in zip(vectors.tolist(), teacher.tolist(), strict=True)]
        plain = sum(1 - each for each in cosines) / count if count else 0.0
        close(cosine_loss(vectors, teacher, count=count), plain)
    alone = torch.arange(-1, len(index) - 1)
    corrected = corrected_queries(index, index.flip(0) / 2, alone)
    assert torch.allclose(
        corrected, torch.tensor(plain_corrected(index, index.flip(0) / 2, alone)).to(corrected)
    )


@pytest.mark.parametrize("count", [0, 3])
def test_an_index_without_answers_and_no_vectors_teach_nothing(count: int) -> None:
    queries, none = unit(2), unit(0)
    answers = torch.full((2, 3), -1)
    whole(index_loss(queries, answers, unit(4).detach(), temperature=0.05, count=count), queries)
    whole(index_loss(none, answers[:0], unit(4).detach(), temperature=0.05, count=count), none)
    whole(cosine_loss(none, none.detach(), count=count), none)
    if not count:
        whole(
            index_loss(queries, torch.tensor([[0], [1]]), unit(4).detach(), temperature=0.05, count=0),
            queries,
        )
        whole(cosine_loss(queries, unit(2, seed=1).detach(), count=0), queries)
    one = torch.full((1, 4), math.inf, requires_grad=True)
    whole(relation_loss(one, one.detach(), temperature=0.05), one)


@settings(max_examples=15)
@given(batches(), st.sampled_from([0.3, 1.0]))
def test_gradients_are_those_of_the_loss(batch: dict[str, Tensor], temperature: float) -> None:
    vectors = tuple(batch[name].requires_grad_() for name in ("queries", "documents"))

    def contrastive(queries: Tensor, documents: Tensor) -> Tensor:
        return contrastive_loss(
            queries, documents, batch["targets"], temperature=temperature, allowed=batch["allowed"]
        )

    def distillation(queries: Tensor, documents: Tensor) -> Tensor:
        return distillation_loss(
            queries, documents, batch["candidates"], batch["teacher"],
            temperature=temperature, teacher_temperature=0.5,
        )  # fmt: skip

    assert gradcheck(contrastive, vectors)
    assert gradcheck(distillation, vectors)


def test_the_gradient_of_generation_is_that_of_the_loss() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([4, 0, 2])
    assert gradcheck(lambda logits: generation_loss(logits, labels, tokens=7), (logits,))


def test_parts_of_generation_add_up_to_the_mean_of_the_whole() -> None:
    logits, labels = torch.randn(10, 7), torch.randint(0, 7, (10,))
    parts = [generation_loss(logits[at], labels[at], tokens=10) for at in (slice(3), slice(3, 10))]
    close(sum(parts, torch.tensor(0.0)), float(cross_entropy(logits, labels)))


# Nothing to learn.


def unit(rows: int, size: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, size, generator=generator), dim=1).requires_grad_()


def whole(loss: Tensor, *leaves: Tensor) -> None:
    """The loss is 0 and its gradients are zeros: finite, and there."""
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, leaves):
        assert not gradient.any()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("documents", [0, 3])
def test_without_queries_there_is_nothing_to_learn(documents: int) -> None:
    queries, others = unit(0), unit(documents)
    whole(
        contrastive_loss(queries, others, torch.empty(0, dtype=torch.int64), temperature=0.02),
        queries,
        others,
    )


@pytest.mark.parametrize(
    ("candidates", "teacher"),
    [
        ([[], []], [[], []]),
        ([[0, -1], [1, -1]], [[1.0, 2.0], [1.0, 2.0]]),
        ([[0, 1], [1, 0]], [[1.0, NAN], [NAN, NAN]]),
        ([[0, 1], [1, 0]], [[1.0, -math.inf], [math.inf, NAN]]),
    ],
    ids=["none", "one each", "nan", "infinite"],
)
def test_fewer_than_two_scored_candidates_teach_nothing(candidates: Any, teacher: Any) -> None:
    queries, documents = unit(2), unit(3, seed=1)
    found = distillation_loss(
        queries, documents, torch.tensor(candidates, dtype=torch.int64), torch.tensor(teacher),
        temperature=0.02, teacher_temperature=1.0,
    )  # fmt: skip
    whole(found, queries, documents)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 0), (0, 5), (2, 0)])
def test_without_tokens_there_is_nothing_to_learn(rows: int, tokens: int) -> None:
    logits = torch.full((rows, 3), math.inf, requires_grad=True)
    whole(generation_loss(logits, torch.zeros(rows, dtype=torch.int64), tokens=tokens), logits)


# Numbers.


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6, 1e30])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    queries, documents = unit(3), unit(5, seed=1)
    targets, candidates = torch.tensor([0, 1, 2]), torch.tensor([[0, 3], [1, 4], [2, -1]])
    allowed = allowed_negatives(torch.tensor([[1], [2], [3]]), torch.tensor([1, 2, 3, 1, 9]), targets)
    contrastive = contrastive_loss(queries, documents, targets, temperature=temperature, allowed=allowed)
    for teacher_temperature in (1e-30, 1e30):
        distillation = distillation_loss(
            queries, documents, candidates, torch.tensor([[3e38, -3e38], [1.0, 1.0], [0.5, NAN]]),
            temperature=temperature, teacher_temperature=teacher_temperature,
        )  # fmt: skip
        for loss in (contrastive, distillation):
            assert torch.isfinite(loss)
            for gradient in torch.autograd.grad(loss, (queries, documents), retain_graph=True):
                assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_losses_are_in_float32_whatever_is_around_them(kind: torch.dtype) -> None:
    queries, documents, logits = unit(4).detach(), unit(6, seed=1).detach(), torch.randn(5, 9)
    targets, labels = torch.arange(4), torch.arange(5)
    pairs = torch.tensor([[0, 4], [1, 5], [2, 4], [3, 5]])
    teacher = torch.tensor([[2.0, 1.0]]).expand(4, 2)

    def all_of_them() -> list[Tensor]:
        return [
            contrastive_loss(queries, documents, targets, temperature=0.02),
            distillation_loss(queries, documents, pairs, teacher, temperature=0.02, teacher_temperature=1.0),
            generation_loss(logits, labels, tokens=5),
        ]

    expected = all_of_them()
    with torch.autocast("cpu", dtype=kind):
        assert all_of_them() == expected
    vectors = (queries.to(kind), documents.to(kind))
    half = contrastive_loss(*vectors, targets, temperature=0.02)
    close(half, contrastive_loss(*(one.float() for one in vectors), targets, temperature=0.02).item())
    coarse = generation_loss(logits.to(kind), labels, tokens=5)
    assert half.dtype == coarse.dtype == torch.float32
    close(coarse, generation_loss(logits.to(kind).float(), labels, tokens=5).item())


@pytest.mark.parametrize("block", [1, 4, 7, 8, 1 << 22])
def test_blocks_of_any_size_add_up_and_a_block_may_be_larger_than_all(block: int, monkeypatch: Any) -> None:
    queries, documents, targets = unit(5), unit(4, seed=1), torch.tensor([0, 1, 2, 3, 0])
    whole_loss = contrastive_loss(queries, documents, targets, temperature=0.5)
    sizes: list[int] = []
    plain = losses.cross_entropy
    monkeypatch.setattr(
        losses,
        "cross_entropy",
        lambda scores, *args, **options: sizes.append(len(scores)) or plain(scores, *args, **options),
    )
    monkeypatch.setattr(losses, "BLOCK", block)
    found = contrastive_loss(queries, documents, targets, temperature=0.5)
    close(found, whole_loss.item())
    assert sizes == {1: [1] * 5, 4: [1] * 5, 7: [1] * 5, 8: [2, 2, 1]}.get(block, [5])
    for one, other in zip(
        torch.autograd.grad(found, (queries, documents)),
        torch.autograd.grad(whole_loss, (queries, documents)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-6)


def test_many_scores_are_not_kept_for_the_gradient() -> None:
    size = 2304
    assert size * size > losses.BLOCK, "one block: nothing is tested"
    queries, documents, targets = unit(size), unit(size, seed=1), torch.arange(size)
    candidates = torch.stack([targets, targets.flip(0)], dim=1)
    teacher = torch.randn(size, 2)
    scores = queries @ documents.T / 0.5
    plain = [
        cross_entropy(scores, targets),
        torch.nn.functional.kl_div(
            scores.gather(1, candidates).log_softmax(1), teacher.softmax(1), reduction="batchmean"
        ),
    ]
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept = max(kept, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = [
            contrastive_loss(queries, documents, targets, temperature=0.5),
            distillation_loss(
                queries, documents, candidates, teacher, temperature=0.5, teacher_temperature=1.0
            ),
        ]
    assert kept < size * 10
    for one, other in zip(found, plain, strict=True):
        close(one, other.item(), within=1e-5)
        gradients = zip(
            *(torch.autograd.grad(loss, (queries, documents), retain_graph=True) for loss in (one, other)),
            strict=True,
        )
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in gradients)
