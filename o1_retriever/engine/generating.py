"""Models that the engine's steps do not fit: found out by a trial, and written by transformers' `generate`.

The trial is made once, on models that no test of ours has seen. With `generate`, each query is a batch of its
own, and its prompt is read whole for every thought, so that this is many times slower. Draws, ends and limits
are the engine's: `generate` is told what to take.
"""

from __future__ import annotations

import logging
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
from o1_retriever.engine.passes import Prefix, prefill
from o1_retriever.engine.rows import Drafts, Job, Rows
from o1_retriever.engine.steps import Shared
from o1_retriever.errors import O1RetrieverError
from o1_retriever.thought import ThoughtSettings

logger = logging.getLogger(__name__)

# transformers' names of the architectures whose thoughts are tested against plain passes.
_KNOWN = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "bert"))
# Two prompts of different lengths, as one is padded then, and what each is fed behind.
_PROMPTS, _FED = ((5, 6, 7), (8, 9, 10, 11, 12, 13)), ((14, 15), (16, 17))
# How far logits may be off, as a share of them: the rounding of half precision, and no more.
_OFF = 0.05


def steps_work(local: LocalModel) -> bool:
    """Whether thoughts can be written by steps; where not, a warning says why."""
    if local.model.config.get_text_config().model_type in _KNOWN:
        return True
    try:
        off = _difference(local)
    except Exception as error:  # whatever an architecture raises that expects something else
        why = error.message if isinstance(error, O1RetrieverError) else repr(error)
    else:
        if off < _OFF:
            return True
        why = "its steps give something else than a whole pass"
    logger.warning(
        "The engine cannot run a %s (%s). transformers' generate writes its thoughts, which takes several "
        "times as long; behind a server, such as llama.cpp's or vLLM's, it is faster.",
        type(local.model).__name__,
        why,
    )
    return False


@torch.inference_mode()
def _difference(local: LocalModel) -> float:
    """How far the logits after some steps are from those of whole passes, as a share of them."""
    window = max(map(len, _PROMPTS)) + len(_FED[0])
    slots, step = local.once(Shared).borrow(local, len(_PROMPTS), window, spare=1, prefix=Prefix())
    started = prefill(local, _PROMPTS)
    slots.take_in(started.layers, started.real)
    positions = torch.tensor([len(prompt) for prompt in _PROMPTS], device=local.device)
    found = started.logits
    for fed in torch.tensor(_FED, device=local.device).T:
        slots.open_column()
        found, _ = step(fed, positions)
        slots.close_column()
        positions = positions + 1
    local.once(Shared).give_back(slots, step)
    expected = torch.cat([_whole(local, [*prompt, *fed]) for prompt, fed in zip(_PROMPTS, _FED, strict=True)])
    return float((found.float() - expected).norm() / expected.norm())


def _whole(local: LocalModel, ids: list[int]) -> torch.Tensor:
    with local.lock:
        output = local.model(input_ids=torch.tensor([ids], device=local.device))
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


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
