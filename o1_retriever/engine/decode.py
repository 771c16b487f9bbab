"""Write the thoughts of many queries, and embed them from the keys and values that writing left.

The k thoughts of a query share one pass over its prompt. A row goes on until the model stops, its room or its
time is used up; then an eos and `<emb>` are fed as its next two tokens, so that its embedding costs two
short steps and never a second pass over query and thought. Rows that are done leave, waiting queries take
their places.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from o1_retriever.engine.batching import by_tokens, forward_tokens, free_memory, held_tokens, is_out_of_memory
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.prefill import Prefilled, prefill
from o1_retriever.engine.rows import Draft, NewRow, Rows
from o1_retriever.engine.sampling import stream_key
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.thought import ThoughtSettings, Vector

logger = logging.getLogger(__name__)

# Waiting queries come in when this share of the rows is free: a pass over their prompts costs about a step.
_REFILL_AT = 0.125
# Looking for finished rows makes a GPU wait for itself.
_LOOK_EVERY = {"cpu": 1}
_LOOK_EVERY_ELSEWHERE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt (token ids), the indices of the thoughts wanted of it, and the tokens each may have."""

    prompt: tuple[int, ...]
    indices: tuple[int, ...]
    room: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drafts:
    """The drafts of one job, in the order of its indices, and the fast state where the prompt holds it."""

    drafts: tuple[Draft, ...]
    fast: Vector | None


def write_thoughts(
    local: LocalModel, jobs: Sequence[Job], settings: ThoughtSettings, *, most: int | None = None
) -> Iterator[tuple[int, Drafts]]:
    """Write the thoughts of all jobs; (place, drafts) of a job come as soon as it is done.

    At most `most` jobs are in flight (None: as many as the memory set aside for them holds). When memory runs
    out all the same, the jobs in flight are begun again with half as many at once.
    """
    if not jobs:
        return
    waiting = deque(sorted(range(len(jobs)), key=lambda place: len(jobs[place].prompt), reverse=True))
    rows = _row_count(local, jobs, settings, most)
    while waiting:
        flight: _Flight | None = None
        try:
            flight = _Flight(local, jobs, settings, waiting, rows)
            with SparingThreads(local.device) as threads:
                yield from flight.run(threads)
            return
        except Exception as error:
            again = flight.under_way if flight else []
            least = max((len(jobs[place].indices) for place in [*again, *waiting]), default=rows)
            if not is_out_of_memory(error) or rows <= least:
                raise
            rows = max(least, rows // 2)
            logger.warning("Out of memory: going on with %d thoughts at once (%s)", rows, str(error))
            waiting.extendleft(sorted(again, key=lambda place: len(jobs[place].prompt)))
        flight = None
        free_memory(local.device)


def _row_count(local: LocalModel, jobs: Sequence[Job], settings: ThoughtSettings, most: int | None) -> int:
    window = max(_window(job, settings) for job in jobs)
    each = max(len(job.indices) for job in jobs)
    wanted = sum(len(job.indices) for job in jobs[: most or len(jobs)]) if most else math.inf
    fits = held_tokens(local.device) // window
    return int(max(each, min(wanted, fits, sum(len(job.indices) for job in jobs))))


def _window(job: Job, settings: ThoughtSettings) -> int:
    """The longest a row of a job can become, with eos and `<emb>`."""
    return len(job.prompt) + min(job.room, settings.max_new_tokens) + 2


class _Flight:
    """Rows in flight: waiting jobs come in where rows are free, finished ones go out."""

    def __init__(
        self,
        local: LocalModel,
        jobs: Sequence[Job],
        settings: ThoughtSettings,
        waiting: deque[int],
        rows: int,
    ) -> None:
        self.local, self.jobs, self.settings, self.waiting = local, jobs, settings, waiting
        self.look_every = _LOOK_EVERY.get(local.device.type, _LOOK_EVERY_ELSEWHERE)
        window = max(_window(jobs[place], settings) for place in waiting)
        # Rows that are done are fed until somebody looks, and those that come later end later.
        spare = self.look_every + (max(64, window // 2) if rows < self._rows_wanted(waiting) else 0)
        self.slots, self.step = local.shared.borrow(local, rows, window, spare=spare)
        longest = max(min(jobs[place].room, settings.max_new_tokens) for place in waiting)
        self.rows = Rows(local, settings, self.slots.rows, longest)
        self.fast: dict[int, Vector | None] = {}
        self.drafts: dict[int, dict[int, Draft]] = {}

    @property
    def under_way(self) -> list[int]:
        """Jobs that have come in and not gone out."""
        return list(self.drafts)

    def run(self, threads: SparingThreads) -> Iterator[tuple[int, Drafts]]:
        """Until nothing waits and nothing lives."""
        steps = 0
        while self.waiting or self.slots.live:
            self._refill()
            self._step()
            steps += 1
            threads.look()
            if steps % self.look_every == 0:
                yield from self._harvest()
        self.local.shared.give_back(self.slots, self.step)

    def _rows_wanted(self, places: Sequence[int] | deque[int]) -> int:
        return sum(len(self.jobs[place].indices) for place in places)

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
        lengths = [len(self.jobs[place].prompt) for place in coming]
        for batch in by_tokens(lengths, forward_tokens(self.local.device)):
            self._take_in([coming[i] for i in batch])

    def _take_in(self, places: Sequence[int]) -> None:
        started = prefill(self.local, [self.jobs[place].prompt for place in places])
        for row, place in enumerate(places):
            self.fast[place] = None if started.fast is None else started.fast[row].cpu().numpy()
        new = [row for place in places for row in self._new_rows(place)]
        repeats = [len(self.jobs[place].indices) for place in places]
        repeated = _repeated(started, repeats)
        self.rows.take_in(self.slots.live, new, repeated.logits)
        self.slots.take_in(repeated.layers, repeated.real)

    def _new_rows(self, place: int) -> list[NewRow]:
        job, settings = self.jobs[place], self.settings
        budget = math.inf if settings.budget_ms is None else settings.budget_ms / 1000
        return [
            NewRow(
                owner=(place, order),
                key=stream_key(settings.seed, job.prompt, index),
                room=min(job.room, settings.max_new_tokens),
                position=len(job.prompt),
                deadline=time.perf_counter() + budget,
            )
            for order, index in enumerate(job.indices)
        ]

    @torch.inference_mode()
    def _step(self) -> None:
        """Feed every row its next token."""
        slots, rows = self.slots, self.rows
        fed = rows.next_tokens(slots.live, time.perf_counter())
        slots.open_column()
        logits, hidden = self.step(fed, rows.position[: slots.live])
        slots.close_column()
        rows.after_step(slots.live, logits, hidden)

    @torch.inference_mode()
    def _harvest(self) -> list[tuple[int, Drafts]]:
        """Take the finished rows out; living ones from the end move into their places."""
        slots, done = self.slots, self.rows.done(self.slots.live)
        if not len(done):
            return []
        drafts = self.rows.drafts(done)
        left = slots.live - len(done)
        last = torch.ones(slots.live, dtype=torch.bool, device=done.device)
        last[done] = False
        holes, movers = done[done < left], left + last[left:].nonzero()[:, 0]
        if len(holes):
            slots.move(holes, movers)
            self.rows.move(holes, movers)
        slots.shrink(left)
        # Last, as memory may run out above: what is no longer under way is not begun again.
        return self._finished(drafts)

    def _finished(self, rows: Sequence[tuple[tuple[int, int], Draft]]) -> list[tuple[int, Drafts]]:
        """The jobs whose last rows these are."""
        finished = []
        for (place, order), draft in rows:
            self.drafts[place][order] = draft
            count = len(self.jobs[place].indices)
            if len(self.drafts[place]) == count:
                parts = self.drafts.pop(place)
                drafts = tuple(parts[i] for i in range(count))
                finished.append((place, Drafts(drafts=drafts, fast=self.fast.pop(place))))
        return finished


def _repeated(started: Prefilled, repeats: Sequence[int]) -> Prefilled:
    """Each prompt as many times as thoughts are wanted about it."""
    times = torch.tensor(repeats, device=started.logits.device)
    return Prefilled(
        layers=[(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in started.layers],
        real=started.real.repeat_interleave(times, 0),
        logits=started.logits.repeat_interleave(times, 0),
        fast=None,
    )
