"""What is drawn follows the distribution from which transformers' `generate` samples."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.rows import Job
from o1_retriever.thought import ThoughtSettings
from tests.support.engine import exact_model, job_for, written_by

HOW = ThoughtSettings(temperature=0.8, top_p=0.9, max_new_tokens=1)
DRAWS, GROUPS = 800, 8
# A sum of squares over eight groups is above this once in a hundred thousand times.
CHI_SQUARE = 35.0


def sampled_from(local: LocalModel, job: Job) -> torch.Tensor:
    """The probabilities of the first token as `generate` samples it."""
    ids = torch.tensor([job.prompt])
    with torch.no_grad():
        logits = local.model(input_ids=ids).logits[:, -1].float()
    # No thought is empty, and none holds a special token.
    logits[:, [*local.template.suppressed(local.vocabulary), *local.stop_ids]] = -torch.inf
    warpers = LogitsProcessorList([TemperatureLogitsWarper(HOW.temperature), TopPLogitsWarper(HOW.top_p)])
    return warpers(ids, logits).softmax(-1)[0]


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "mistral", "mistral-window", "gemma", "gemma2", "phi", "phi3"]
)
def test_draws_follow_the_distribution_of_generate(architecture: str) -> None:
    local = exact_model(architecture)
    job = job_for(local, "why is the sky blue?", range(DRAWS))
    [drafts] = written_by(local, [job], HOW)
    expected = sampled_from(local, job)
    counts = torch.zeros_like(expected)
    for draft in drafts.drafts:
        counts[draft.token_ids[0]] += 1
    assert not counts[expected == 0].any()
    # Tokens in groups of about equal weight, the likeliest first.
    order = expected.argsort(descending=True)
    group = (expected[order].cumsum(0) * GROUPS).clamp(max=GROUPS - 1e-3).long()
    wanted = DRAWS * torch.zeros(GROUPS).index_add_(0, group, expected[order])
    found = torch.zeros(GROUPS).index_add_(0, group, counts[order])
    some = wanted > 0
    assert float(((found - wanted)[some] ** 2 / wanted[some]).sum()) < CHI_SQUARE
