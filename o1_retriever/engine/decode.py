"""Write the thoughts of many queries, and embed them from the keys and values that writing left.

The k thoughts of a query share one pass over its prompt. A row goes on until the model stops, its room or its
time is used up; then an eos and `<emb>` are fed as its next two tokens, so that its embedding costs two
short steps and never a second pass over query and thought. Rows that are done leave, waiting queries take
their places.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
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

from o1_retriever.engine.follow import Follower, Told
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import (
    Prefix,
    by_tokens,
    common_prefix,
    forward_tokens,
    free_memory,
    held_tokens,
    is_out_of_memory,
    prefill,
)
from o1_retriever.engine.rows import Draft, Drafts, Job, Rows
from o1_retriever.engine.steps import Shared
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.errors import O1RetrieverError
from o1_retriever.reporting import counted
from o1_retriever.thought import ThoughtSettings, Vector

logger = logging.getLogger(__name__)

# Waiting queries come in when this share of the rows is free: a pass over their prompts costs about a step.
_REFILL_AT = 0.125
# Looking for finished rows makes a GPU wait for itself.
_LOOK_EVERY = {"cpu": 1}  # steps; 8 on other devices
# transformers' names of the architectures whose thoughts are tested against plain passes.
_KNOWN = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "bert"))
# Two prompts of different lengths, as one is padded then, and what each is fed behind.
_PROMPTS, _FED = ((5, 6, 7), (8, 9, 10, 11, 12, 13)), ((14, 15), (16, 17))
# How far logits may be off, as a share of them: the rounding of half precision, and no more.
_OFF = 0.05


def write_thoughts(
    local: LocalModel,
    jobs: Sequence[Job],
    settings: ThoughtSettings,
    *,
    most: int | None = None,
    follower: Follower | None = None,
) -> Iterator[tuple[int, Drafts]]:
    """Write the thoughts of all jobs; (place, drafts) of a job come as soon as it is done.

    At most `most` jobs are in flight (None: as many as the memory set aside for them holds). When memory runs
    out all the same, the jobs in flight are begun again with half as many at once. A `follower` is told of
    each token as it is written, and can let go of a job, of which nothing comes then.
    """
    told = Told(follower or Follower())
    local.check_process()
    if local.template.emb is None and jobs and not local.once(steps_work):
        yield from _generate_thoughts(local, jobs, settings, told)
        return
    prefix = local.once(common_prefix) if jobs else Prefix()
    opened = [place for place, job in enumerate(jobs) if prefix.opens(job.prompt)]
    others = sorted(set(range(len(jobs))) - set(opened))
    for places, beginning in ((opened, prefix), (others, Prefix())):
        if places:
            yield from _write_group(local, jobs, places, beginning, settings, most, told)


def _write_group(
    local: LocalModel,
    jobs: Sequence[Job],
    places: Sequence[int],
    prefix: Prefix,
    settings: ThoughtSettings,
    most: int | None,
    told: Told,
) -> Iterator[tuple[int, Drafts]]:
    """The thoughts of those jobs, whose prompts all begin with `prefix`."""
    waiting = deque(sorted(places, key=lambda place: len(jobs[place].prompt), reverse=True))
    rows = _row_count(local, [jobs[place] for place in places], prefix, settings, most)
    while waiting:
        flight: _Flight | None = None
        try:
            with SparingThreads(local.device) as threads:  # before the first product of this thread
                flight = _Flight(local, jobs, settings, waiting, rows, prefix, told)
                yield from flight.run(threads)
            return
        except Exception as error:
            again = list(flight.drafts) if flight else []
            least = max((len(jobs[place].indices) for place in [*again, *waiting]), default=rows)
            if not is_out_of_memory(error) or rows <= least:
                raise
            rows = max(least, rows // 2)
            fewer = counted(rows, "thought")
            # The words alone: a record of the log that held the error would hold the tensors of its frames.
            logger.warning("Out of memory: going on with %s at once (%s)", fewer, str(error))
            waiting.extendleft(sorted(again, key=lambda place: len(jobs[place].prompt)))
        flight = None
        free_memory(local.device)


def _row_count(
    local: LocalModel, jobs: Sequence[Job], prefix: Prefix, settings: ThoughtSettings, most: int | None
) -> int:
    fits = held_tokens(local.device) // max(_window(job, prefix, settings) for job in jobs)
    counts = [len(job.indices) for job in jobs]
    return max(*counts, min(fits, sum(counts[: most or None])))


def _window(job: Job, prefix: Prefix, settings: ThoughtSettings) -> int:
    """The longest a row of a job can become, with eos and `<emb>`, and without what all rows share."""
    return len(job.prompt) - prefix.shared * len(prefix.ids) + min(job.room, settings.max_new_tokens) + 2


class _Flight:
    """Rows in flight: waiting jobs come in where rows are free, finished ones go out."""

    def __init__(
        self,
        local: LocalModel,
        jobs: Sequence[Job],
        settings: ThoughtSettings,
        waiting: deque[int],
        rows: int,
        prefix: Prefix,
        told: Told,
    ) -> None:
        self.local, self.jobs, self.settings, self.waiting = local, jobs, settings, waiting
        self.prefix, self.told = prefix, told
        self.look_every = _LOOK_EVERY.get(local.device.type, 8)
        # A row that is not embedded need not be fed its last token.
        self.ends_with_its_token = local.template.emb is None and self.look_every == 1
        window = max(_window(jobs[place], prefix, settings) for place in waiting)
        wanted = sum(len(jobs[place].indices) for place in waiting)
        # Rows that are done are fed until somebody looks, and those that come later end later.
        spare = self.look_every + (max(64, window // 2) if rows < wanted else 0)
        self.slots, self.step = local.once(Shared).borrow(local, rows, window, spare=spare, prefix=prefix)
        longest = max(min(jobs[place].room, settings.max_new_tokens) for place in waiting)
        self.rows = Rows(local, settings, self.slots.rows, longest)
        self.fast: dict[int, Vector | None] = {}
        # Of each job that has come in and not gone out, what is written.
        self.drafts: dict[int, dict[int, Draft]] = {}

    def run(self, threads: SparingThreads) -> Iterator[tuple[int, Drafts]]:
        """Until nothing waits and nothing lives."""
        steps = 0
        while self._wanted():
            self._refill()
            self._draw()
            if self.ends_with_its_token:
                yield from self._harvest()
            if self.slots.live:
                self._step()
            steps += 1
            threads.look()
            if steps % self.look_every == 0 and not self.ends_with_its_token:
                yield from self._harvest()
        self.local.once(Shared).give_back(self.slots, self.step)

    @torch.inference_mode()
    def _wanted(self) -> bool:
        """Let go of what nobody waits for any more; whether something is left to do."""
        wanted = self.told.follower.wanted
        gone = {place for place in [*self.waiting, *self.drafts] if not wanted(place)}
        if gone:
            for place in gone & set(self.waiting):
                self.waiting.remove(place)
            for place in gone & set(self.drafts):
                del self.drafts[place]
                self.fast.pop(place, None)
            owners = self.rows.owner[: self.slots.live, 0].tolist()
            self._take_out([row for row, place in enumerate(owners) if place in gone])
        return bool(self.waiting or self.slots.live)

    @torch.inference_mode()
    def _refill(self) -> None:
        """Let waiting jobs in, where enough rows are free for it to pay."""
        free = self.slots.free
        if not self.waiting or (self.slots.live and free < _REFILL_AT * self.slots.rows):
            return
        coming: list[int] = []
        while self.waiting and free >= len(self.jobs[self.waiting[0]].indices):
            coming.append(self.waiting.popleft())
            self.drafts[coming[-1]] = {}
            free -= len(self.jobs[coming[-1]].indices)
        lengths = [len(self.jobs[place].prompt) - len(self.prefix.ids) for place in coming]
        for batch in by_tokens(lengths, forward_tokens(self.local.device)):
            self._take_in([coming[i] for i in batch])

    def _take_in(self, places: Sequence[int]) -> None:
        started = prefill(self.local, [self.jobs[place].prompt for place in places], self.prefix)
        for row, place in enumerate(places):
            self.fast[place] = None if started.fast is None else started.fast[row].cpu().numpy()
        # Each prompt as many times as thoughts are wanted about it.
        times = torch.tensor([len(self.jobs[place].indices) for place in places], device=self.local.device)
        repeated = functools.partial(torch.repeat_interleave, repeats=times, dim=0)
        self.rows.take_in(
            self.slots.live, {place: self.jobs[place] for place in places}, repeated(started.logits)
        )
        layers = [(repeated(keys), repeated(values)) for keys, values in started.layers]
        self.slots.take_in(layers, repeated(started.real))

    @torch.inference_mode()
    def _draw(self) -> None:
        """Decide what every row is fed next."""
        self.rows.fed[: self.slots.live] = self.rows.next_tokens(self.slots.live, time.perf_counter())

    @torch.inference_mode()
    def _step(self) -> None:
        """Feed every row its next token."""
        slots, rows = self.slots, self.rows
        slots.open_column()
        logits, hidden = self.step(rows.fed[: slots.live], rows.position[: slots.live])
        slots.close_column()
        rows.after_step(slots.live, logits, hidden)

    @torch.inference_mode()
    def _harvest(self) -> list[tuple[int, Drafts]]:
        """Take the finished rows out, after whoever follows them has been told what is new."""
        done = self.rows.done(self.slots.live).tolist()
        self._tell()
        drafts = self.rows.drafts(done)
        self._take_out(done)
        # Last, as memory may run out above: what is no longer under way is not begun again.
        return self._finished(drafts)

    def _tell(self) -> None:
        """Tell of what the rows hold that are still being written."""
        hears = self.told.follower.hears
        if not any(map(hears, self.drafts)):
            return
        for row, (place, order) in enumerate(self.rows.owner[: self.slots.live].tolist()):
            if hears(place):
                self.told.tell(place, self.jobs[place].indices[order], self.rows.written(row))

    def _take_out(self, rows: Sequence[int]) -> None:
        """Free these rows, in ascending order; living ones from the end move into their places."""
        if not rows:
            return
        left = self.slots.live - len(rows)
        out = set(rows)
        holes = torch.tensor([row for row in rows if row < left], device=self.local.device)
        if len(holes):
            movers = [row for row in range(left, self.slots.live) if row not in out]
            moving = torch.tensor(movers, device=self.local.device)
            self.slots.move(holes, moving)
            self.rows.move(holes, moving)
        self.slots.shrink(left)

    def _finished(self, rows: Sequence[tuple[tuple[int, int], Draft]]) -> list[tuple[int, Drafts]]:
        """The jobs whose last rows these are."""
        finished = []
        for (place, order), draft in rows:
            self.drafts[place][order] = draft
            self.told.tell(place, self.jobs[place].indices[order], draft.token_ids, draft.finish)
            count = len(self.jobs[place].indices)
            if len(self.drafts[place]) == count:
                parts = self.drafts.pop(place)
                drafts = tuple(parts[i] for i in range(count))
                finished.append((place, Drafts(drafts=drafts, fast=self.fast.pop(place))))
        return finished


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


def _generate_thoughts(
    local: LocalModel, jobs: Sequence[Job], settings: ThoughtSettings, told: Told
) -> Iterator[tuple[int, Drafts]]:
    """What `write_thoughts` gives, one job after the other."""
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
