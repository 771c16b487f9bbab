"""One-pass embeddings against plain forward passes, and draws that depend on nothing but their counter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.engine.decode import write_thoughts as stream_thoughts
from o1_retriever.engine.load import LocalModel, assemble
from o1_retriever.engine.passes import Prefix, embed_sequences
from o1_retriever.engine.rows import Drafts, Job
from o1_retriever.engine.steps import Shared, Slots, StaticSteps, Step
from o1_retriever.thought import ThoughtSettings
from tests.support.tiny import CONFIGS, POSITIONS, tiny_model

WARM = ThoughtSettings(n_thoughts=3, temperature=1.0, top_p=0.95, max_new_tokens=30)
QUERIES = ["a", "why is the sky blue?", "spelled <emb> and </s>", "x" * 70]


def build(architecture: str, layout: str = "paper") -> LocalModel:
    model, tokenizer = tiny_model(architecture, layout)  # type: ignore[arg-type]
    return assemble(architecture, model, tokenizer)


@pytest.fixture(scope="module")
def qwen() -> LocalModel:
    return build("qwen2")


def write_thoughts(local: LocalModel, jobs: list[Job], how: ThoughtSettings, **options: Any) -> list[Drafts]:
    found = dict(stream_thoughts(local, jobs, how, **options))
    assert sorted(found) == list(range(len(jobs)))
    return [found[place] for place in range(len(jobs))]


def jobs_for(local: LocalModel, queries: list[str], k: int = 3) -> list[Job]:
    template = local.template
    prompts = [tuple(template.prompt(ids)) for ids in template.text_ids(queries)]
    return [Job(prompt=p, indices=tuple(range(k)), room=template.room(p)) for p in prompts]


def plain_forward(model: Any, rows: list[list[int]], side: str | None) -> np.ndarray:
    """Last states by transformers alone: row by row (None), or as one batch padded on `side`."""
    if side is None:
        return np.stack([plain_forward(model, [row], "right")[0] for row in rows])
    width = max(map(len, rows))
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for place, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[place, span], mask[place, span] = torch.tensor(row), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions
        ).last_hidden_state
    last = mask.cumsum(1).argmax(1)
    return hidden[torch.arange(len(rows)), last].float().numpy()


def cosine_gap(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("layout", ["paper", "released"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_one_pass_equals_a_second_forward(architecture: str, layout: str) -> None:
    local = build(architecture, layout)
    jobs = jobs_for(local, QUERIES)
    written = write_thoughts(local, jobs, WARM)
    ids = local.template.text_ids(QUERIES)
    rows = [
        local.template.thinking_query(q, draft.token_ids)
        for q, drafts in zip(ids, written, strict=True)
        for draft in drafts.drafts
    ]
    states = np.stack([draft.state for drafts in written for draft in drafts.drafts])
    finishes = {draft.finish for drafts in written for draft in drafts.drafts}
    lengths = {len(draft.token_ids) for drafts in written for draft in drafts.drafts}
    assert len(lengths) > 3, "the mixture of lengths is what this test is about"
    assert "eos" in finishes
    for side in (None, "left", "right"):
        assert cosine_gap(states, plain_forward(local.model, rows, side)) < 1e-4


def test_the_fast_state_comes_with_the_prefill(qwen: LocalModel) -> None:
    written = write_thoughts(qwen, jobs_for(qwen, QUERIES), WARM)
    rows = [qwen.template.fast_query(ids) for ids in qwen.template.text_ids(QUERIES)]
    fast = np.stack([drafts.fast for drafts in written])
    assert cosine_gap(fast, plain_forward(qwen.model, rows, None)) < 1e-4


@pytest.mark.parametrize("architecture", CONFIGS)
def test_one_pass_equals_a_second_forward_in_nf4(architecture: str, tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from o1_retriever.engine.load import LoadOptions, load_model

    model, tokenizer = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    local = load_model(tmp_path, LoadOptions(device="cpu", load_in_4bit=True))
    assert local.precision.quantization == "nf4"
    written = write_thoughts(local, jobs_for(local, QUERIES), WARM)
    rows = [
        local.template.thinking_query(q, draft.token_ids)
        for q, drafts in zip(local.template.text_ids(QUERIES), written, strict=True)
        for draft in drafts.drafts
    ]
    states = np.stack([draft.state for drafts in written for draft in drafts.drafts])
    for side in (None, "left", "right"):
        assert cosine_gap(states, plain_forward(local.model, rows, side)) < 1e-4
    full = plain_forward(model, rows, None)
    assert cosine_gap(states, full) > 1e-3, "quantised weights must be at work"


def test_thoughts_do_not_depend_on_the_batch(qwen: LocalModel) -> None:
    short = WARM.with_changes(max_new_tokens=16)
    together = write_thoughts(qwen, jobs_for(qwen, QUERIES), short)
    for place, query in enumerate(QUERIES):
        alone = write_thoughts(qwen, jobs_for(qwen, [query]), short)[0]
        for one, other in zip(alone.drafts, together[place].drafts, strict=True):
            assert one.token_ids == other.token_ids
            assert cosine_gap(one.state, other.state) < 1e-4


def test_a_thought_does_not_depend_on_k(qwen: LocalModel) -> None:
    job = jobs_for(qwen, ["why?"])[0]
    short = WARM.with_changes(max_new_tokens=16)
    all_three = write_thoughts(qwen, [job], short)[0].drafts
    last = write_thoughts(qwen, [Job(prompt=job.prompt, indices=(2,), room=job.room)], short)[0].drafts
    assert last[0].token_ids == all_three[2].token_ids
    assert len({draft.token_ids for draft in all_three}) > 1


def test_another_seed_thinks_otherwise(qwen: LocalModel) -> None:
    jobs = jobs_for(qwen, ["why?"])
    one = write_thoughts(qwen, jobs, WARM)[0].drafts
    other = write_thoughts(qwen, jobs, WARM.with_changes(seed=1))[0].drafts
    assert [d.token_ids for d in one] != [d.token_ids for d in other]


def test_temperature_zero_is_greedy(qwen: LocalModel) -> None:
    jobs = jobs_for(qwen, ["why?"], k=1)
    draft = write_thoughts(qwen, jobs, WARM.with_changes(temperature=0.0, max_new_tokens=12))[0].drafts[0]
    ids = list(jobs[0].prompt)
    forbidden = qwen.template.suppressed(len(qwen.template.tokenizer))
    expected: list[int] = []
    while len(expected) < 12:
        with torch.no_grad():
            logits = qwen.model(input_ids=torch.tensor([ids + expected])).logits[0, -1]
        logits[forbidden] = -torch.inf
        if not expected:
            logits[list(qwen.stop_ids)] = -torch.inf
        token = int(logits.argmax())
        if token in qwen.stop_ids:
            break
        expected.append(token)
    assert list(draft.token_ids) == expected


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_thoughts_keep_within_the_positions_and_without_markers(architecture: str) -> None:
    model, tokenizer = tiny_model(architecture, stops=1)
    local = assemble(architecture, model, tokenizer)
    jobs = jobs_for(local, ["x" * 500, "short"])
    written = write_thoughts(local, jobs, WARM.with_changes(max_new_tokens=1000))
    special = set(local.template.suppressed(len(tokenizer)))
    for job, drafts in zip(jobs, written, strict=True):
        for draft in drafts.drafts:
            assert 1 <= len(draft.token_ids) <= POSITIONS - len(job.prompt) - 2
            assert special.isdisjoint(draft.token_ids)
            assert np.isfinite(draft.state).all()
    assert any(draft.finish == "length" for drafts in written for draft in drafts.drafts)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "bert"])
def test_steps_over_fixed_tensors_equal_steps_as_needed(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU replays as a graph, launched kernel by kernel: the same over fixed tensors."""
    local = build(architecture)
    jobs = jobs_for(local, [*QUERIES, "b", "another question", "y" * 40])
    short = WARM.with_changes(max_new_tokens=16)
    usual = write_thoughts(local, jobs, short)

    def borrow(
        _: Shared, local: LocalModel, rows: int, window: int, *, spare: int, prefix: Prefix
    ) -> tuple[Slots, Step]:
        slots = Slots(local.model, rows, window, spare=spare, clear=True, shared=prefix.for_rows())
        return slots, StaticSteps(local, slots, capture=False)

    monkeypatch.setattr(Shared, "borrow", borrow)
    for one, other in zip(usual, write_thoughts(local, jobs, short, most=2), strict=True):
        assert [d.token_ids for d in one.drafts] == [d.token_ids for d in other.drafts]
        states = [np.stack([d.state for d in drafts.drafts]) for drafts in (one, other)]
        assert cosine_gap(*states) < 1e-4


@settings(max_examples=25)
@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=9), st.integers(1, 9))
def test_embedding_does_not_depend_on_batching(texts: list[str], batch_size: int) -> None:
    local = _SHARED.setdefault("llama", build("llama"))
    rows = [local.template.document(ids) for ids in local.template.text_ids(texts)]
    found = dict(embed_sequences(local, rows, most=batch_size))
    assert sorted(found) == list(range(len(texts)))
    assert (
        cosine_gap(np.stack([found[i] for i in range(len(rows))]), plain_forward(local.model, rows, None))
        < 1e-4
    )


_SHARED: dict[str, LocalModel] = {}
