"""Thoughts of models that the engine cannot run, written by transformers' own `generate`.

Each query is a batch of its own, and its prompt is read whole for every thought, so that this is many times
slower. Draws, ends and limits are the engine's: `generate` is told what to take.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from o1_retriever.engine.follow import Told
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.rows import Drafts, Job, Rows
from o1_retriever.thought import ThoughtSettings


def generate_thoughts(
    local: LocalModel, jobs: Sequence[Job], settings: ThoughtSettings, told: Told
) -> Iterator[tuple[int, Drafts]]:
    """What `decode.write_thoughts` gives, one job after the other."""
    for place, job in enumerate(jobs):
        writing = _Writing(local, settings, place, job, told)
        if not writing.left:
            _generate(local, settings, job, writing)
        if not writing.left:
            yield place, writing.drafts()


@torch.inference_mode()
def _generate(local: LocalModel, settings: ThoughtSettings, job: Job, writing: _Writing) -> None:
    ids = torch.tensor([job.prompt] * len(job.indices), device=local.device)
    # What the model's own configuration would do to logits is switched off: it is not in the settings.
    how = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=min(job.room, settings.max_new_tokens) + 1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        # None would be the model's own; ends are found here, where limits and time are known too.
        eos_token_id=[local.vocabulary],
        pad_token_id=local.template.eos,
        suppress_tokens=None,
    )
    with local.lock:
        local.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=how,
            logits_processor=LogitsProcessorList([writing.draw]),
            stopping_criteria=StoppingCriteriaList([writing.stop]),
        )


class _Writing:
    """The rows of one job, whose tokens are drawn from what `generate` has computed."""

    def __init__(
        self, local: LocalModel, settings: ThoughtSettings, place: int, job: Job, told: Told
    ) -> None:
        self.place, self.job, self.told = place, job, told
        self.count = len(job.indices)
        self.rows = Rows(local, settings, self.count, min(job.room, settings.max_new_tokens))
        self.begun = False
        self.draw, self.stop = _Draw(self), _Stop(self)

    @property
    def left(self) -> bool:
        """Whether nobody waits for the job any more."""
        return not self.told.follower.wanted(self.place)

    def next_tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """What each row is fed next (rows,), of its logits (rows, vocabulary)."""
        if self.begun:
            self.rows.logits = logits.clone()
        else:
            self.rows.take_in(0, {self.place: self.job}, logits)
            self.begun = True
        fed = self.rows.next_tokens(self.count, time.perf_counter())
        for order, index in enumerate(self.job.indices):
            self.told.tell(self.place, index, self.rows.written(order))
        return fed

    def drafts(self) -> Drafts:
        """The finished rows."""
        drafts = tuple(draft for _, draft in self.rows.drafts(range(self.count)))
        for index, draft in zip(self.job.indices, drafts, strict=True):
            self.told.tell(self.place, index, draft.token_ids, draft.finish)
        return Drafts(drafts=drafts, fast=None)


class _Draw(LogitsProcessor):
    """Leaves one token possible: the one that was drawn."""

    def __init__(self, writing: _Writing) -> None:
        self.writing = writing

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        """The scores with all other tokens struck out."""
        fed = self.writing.next_tokens(scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, fed[:, None], 0.0)


class _Stop(StoppingCriteria):
    """Ends when all rows are done, or nobody waits for them."""

    def __init__(self, writing: _Writing) -> None:
        self.writing = writing

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_options: Any) -> torch.Tensor:
        """Whether each row is done."""
        writing = self.writing
        over = writing.left or len(writing.rows.done(writing.count)) == writing.count
        return torch.full((len(input_ids),), over, dtype=torch.bool, device=input_ids.device)
