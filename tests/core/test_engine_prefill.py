"""A beginning that all prompts share is computed once, and nothing else changes by it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever import ThinkingEmbedder
from o1_retriever.engine import passes
from o1_retriever.engine.backend import LocalBackend
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import Prefilled, Prefix, common_prefix, padded, prefill
from o1_retriever.thought import ThoughtSettings
from tests.support.caches import EXAMPLES
from tests.support.engine import TOLERANCE, before_passes, exact_model, gap, job_for

SHARING = ["llama", "qwen2", "qwen3", "mistral", "bert"]
INSTRUCTION = "find what answers: "

suffixes = st.lists(st.lists(st.integers(0, 255), min_size=2, max_size=40), min_size=1, max_size=6)


def copied(local: LocalModel) -> Prefix:
    """The common beginning as it is where every row gets a copy of it."""
    return replace(local.once(common_prefix), shared=False)


def assert_same(local: LocalModel, some: Prefilled, other: Prefilled) -> None:
    """Equal where there is a token; what stands at the padding is nobody's business."""
    assert torch.equal(some.real, other.real)
    assert torch.allclose(some.logits, other.logits, atol=1e-8)
    assert (some.fast is None) == (other.fast is None)
    if some.fast is not None and other.fast is not None:
        assert gap(some.fast, other.fast) < TOLERANCE
    real = some.real.bool()
    for mine, theirs in zip(some.layers, other.layers, strict=True):
        for states, expected in zip(mine, theirs, strict=True):
            assert torch.allclose(states.transpose(1, 2)[real], expected.transpose(1, 2)[real], atol=1e-8)


@settings(EXAMPLES)
@given(architecture=st.sampled_from(SHARING), rest=suffixes, layout=st.sampled_from(["paper", "released"]))
def test_prompts_that_share_their_beginning_equal_prompts_that_do_not(
    architecture: str, rest: list[list[int]], layout: str
) -> None:
    local = exact_model(architecture, INSTRUCTION, layout)
    opening = local.template.opening
    letters = [[token % (local.template.emb - 10) + 5 for token in row] for row in rest]
    prompts = [[*opening, *row] for row in letters]
    assert local.once(common_prefix).ids == tuple(opening)
    shared = prefill(local, prompts, copied(local))
    assert_same(local, shared, prefill(local, prompts))
    # Padded on the left alone: a row's tokens end at the last column, without a gap.
    width = max(map(len, prompts))
    expected = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    assert shared.real.tolist() == expected


def test_the_shared_beginning_runs_once_and_is_left_out_of_every_pass() -> None:
    local = exact_model("qwen2", INSTRUCTION)
    local.made.pop(common_prefix, None)
    widths: list[int] = []

    def before(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        widths.append(given["input_ids"].shape[1])

    handle = local.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        for queries in (["a"], ["bcd", "ef"], ["g"]):
            prefill(local, [job_for(local, query).prompt for query in queries], local.once(common_prefix))
    finally:
        handle.remove()
    # The opening, then each batch's own text with its two markers.
    assert widths == [len(local.template.opening), 3, 5, 3]


def test_a_query_that_is_the_instruction_again() -> None:
    local = exact_model("llama", INSTRUCTION)
    prompts = [list(job_for(local, query).prompt) for query in (INSTRUCTION.strip(), "a")]
    assert_same(local, prefill(local, prompts, copied(local)), prefill(local, prompts))


@pytest.mark.parametrize(
    ("architecture", "instruction"), [("qwen2", ""), ("qwen2", "why"), ("gemma2", INSTRUCTION)]
)
def test_what_is_not_worth_sharing_or_cannot_be_is_not_shared(architecture: str, instruction: str) -> None:
    """A beginning of a few tokens, and layers that see a window only: padding would count in it."""
    assert exact_model(architecture, instruction).once(common_prefix).ids == ()


@pytest.mark.parametrize("architecture", SHARING)
def test_an_instruction_by_sharing_is_the_instruction_in_the_query(architecture: str) -> None:
    """What a user sees: the embedder with an instruction, and one whose queries begin with it."""
    how = ThoughtSettings(n_thoughts=2, temperature=1.0, max_new_tokens=9)
    queries = ["a", "why is the sky blue?", "z" * 30]
    with_instruction, without = exact_model(architecture, INSTRUCTION), exact_model(architecture)
    assert len(with_instruction.once(common_prefix).ids) > 8
    sharing = ThinkingEmbedder(LocalBackend(with_instruction), settings=how, cache=False)
    plain = ThinkingEmbedder(LocalBackend(without), settings=how, cache=False)
    for mine, theirs in zip(
        sharing.embed_queries(queries),
        plain.embed_queries([INSTRUCTION + query for query in queries]),
        strict=True,
    ):
        assert [t.token_ids for t in mine.thoughts] == [t.token_ids for t in theirs.thoughts]
        assert gap(mine.vectors, theirs.vectors) < TOLERANCE


def test_one_pass_over_the_prompt_serves_all_thoughts() -> None:
    local = exact_model("qwen2")
    embedder = ThinkingEmbedder(LocalBackend(local), cache=False)
    tokens: list[int] = []

    def before(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        tokens.append(given["input_ids"].numel())

    handle = local.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        for k in (1, 5):
            tokens.clear()
            embedder.embed_query("why?", settings=ThoughtSettings(n_thoughts=k, max_new_tokens=1))
            # The prompt once; then the token, eos and <emb> of each thought.
            assert tokens == [len(job_for(local, "why?").prompt), k, k, k]
    finally:
        handle.remove()


@settings(EXAMPLES)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=7),
    st.sampled_from(["left", "right"]),
    st.integers(1, 16),
)
def test_padding_keeps_every_id_in_its_place(rows: list[list[int]], side: Any, multiple: int) -> None:
    ids, mask = padded(rows, torch.device("cpu"), side=side, multiple=multiple)
    width = ids.shape[1]
    assert 0 <= width - max(map(len, rows)) < multiple
    assert width % multiple == 0
    assert ids.shape == mask.shape == (len(rows), width)
    for row, found, real in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        rest = [0] * (width - len(row))
        assert found == ([*rest, *row] if side == "left" else [*row, *rest])
        ones = [1] * len(row)
        assert real == ([*rest, *ones] if side == "left" else [*ones, *rest])


def test_a_batch_of_many_lengths_costs_no_pass_of_its_own_for_each() -> None:
    local = exact_model("qwen2")
    jobs = [job_for(local, "x" * length, [0]) for length in range(1, 60)]
    with before_passes(local.model, lambda _: None) as passes:
        started = prefill(local, [job.prompt for job in jobs])
    assert len(passes) == 1
    assert np.isfinite(started.logits.numpy()).all()


class _Older(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None) -> None:
        """As in models whose code names its cache as transformers did before."""


class _Adapted(torch.nn.Module):
    def forward(self, *_arguments: Any, **_options: Any) -> None:
        """As in wrappers of adapters, which hand everything on."""

    def get_base_model(self) -> torch.nn.Module:
        """The model in it."""
        return _Older()


def test_the_cache_is_handed_over_by_the_name_that_the_model_has_for_it() -> None:
    assert passes._cache_name(_Older()) == passes._cache_name(_Adapted()) == "past_key_values"
    parameters = inspect.signature(type(exact_model("llama").model).forward).parameters
    assert passes._cache_name(exact_model("llama").model) in parameters
