"""Write the thoughts of many queries, and embed them from the keys and values that writing left.

The k thoughts of a query share one pass over its prompt. A row goes on until the model stops, its room or its
time is used up; then an eos and `<emb>` are fed as its next two tokens, so that its embedding costs two
short steps and never a second pass over query and thought. Rows that are done leave, waiting queries take
their places.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from o1_retriever.engine.batching import by_tokens, forward_tokens, free_memory, held_tokens, is_out_of_memory
from o1_retriever.engine.follow import Follower, Told
from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.passes import Prefix, common_prefix, prefill
from o1_retriever.engine.sampling import Sampler, penalise, stream_key
from o1_retriever.engine.steps import Shared
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.thought import Finish, ThoughtSettings, Vector

logger = logging.getLogger(__name__)

# Waiting queries come in when this share of the rows is free: a pass over their prompts costs about a step.
_REFILL_AT = 0.125
# Looking for finished rows makes a GPU wait for itself.
_LOOK_EVERY = {"cpu": 1}  # steps; 8 on other devices
# Stages of a row, by what it is fed next.
_TOKEN, _EOS, _EMB, _READY, _TAKEN = range(5)
_FINISHES: tuple[Finish, ...] = ("eos", "length", "budget")
_BY_LENGTH, _BY_BUDGET = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt (token ids), the indices of the thoughts wanted of it, and the tokens each may have."""

    prompt: tuple[int, ...]
    indices: tuple[int, ...]
    room: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A written thought: its token ids without eos, why it ended, and its `<emb>` state (dimension,)."""

    token_ids: tuple[int, ...]
    finish: Finish
    state: Vector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drafts:
    """The drafts of one job, in the order of its indices, and the fast state where the prompt holds it."""

    drafts: tuple[Draft, ...]
    fast: Vector | None


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
            flight = _Flight(local, jobs, settings, waiting, rows, prefix, told)
            with SparingThreads(local.device) as threads:
                yield from flight.run(threads)
            return
        except Exception as error:
            again = list(flight.drafts) if flight else []
            least = max((len(jobs[place].indices) for place in [*again, *waiting]), default=rows)
            if not is_out_of_memory(error) or rows <= least:
                raise
            rows = max(least, rows // 2)
            logger.warning("Out of memory: going on with %d thoughts at once (%s)", rows, str(error))
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
            self._step()
            steps += 1
            threads.look()
            if steps % self.look_every == 0:
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
        """Take the finished rows out, after whoever follows them has been told what is new."""
        done = self.rows.done(self.slots.live).tolist()
        self._tell()
        drafts = self.rows.drafts(done)
        self._take_out(done)
        # Last, as memory may run out above: what is no longer under way is not begun again.
        return self._finished(drafts)

    def _tell(self) -> None:
        """Tell of what the rows hold that are still being written."""
        if type(self.told.follower) is Follower:  # nobody listens
            return
        for row, (place, order) in enumerate(self.rows.owner[: self.slots.live].tolist()):
            tokens = self.rows.tokens[row, : int(self.rows.length[row])].tolist()
            self.told.tell(place, self.jobs[place].indices[order], tokens)

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


class Rows:
    """The state of all rows as tensors with one entry a slot, the living rows first."""

    def __init__(self, local: LocalModel, settings: ThoughtSettings, slots: int, longest: int) -> None:
        self.local, self.settings = local, settings
        self.sampler = Sampler(settings.temperature, settings.top_p)
        device = local.device
        vocabulary = local.vocabulary
        self.stops = torch.tensor(local.stop_ids, dtype=torch.long, device=device)
        self.forbidden = torch.tensor(local.template.suppressed(vocabulary), dtype=torch.long, device=device)
        number: dict[str, Any] = {"dtype": torch.long, "device": device}
        self.timed = settings.budget_ms is not None
        # Moments of `time.perf_counter`.
        self.deadline = torch.zeros(slots, dtype=torch.float64, device=device)
        self.owner = torch.zeros(slots, 2, **number)
        self.key = torch.zeros(slots, **number)
        self.room = torch.zeros(slots, **number)
        self.position = torch.zeros(slots, **number)
        self.stage = torch.zeros(slots, **number)
        self.finish = torch.zeros(slots, **number)
        self.length = torch.zeros(slots, **number)
        self.tokens = torch.zeros(slots, longest, **number)
        self.logits = torch.zeros(slots, vocabulary, dtype=local.model.dtype, device=device)
        self.states = torch.zeros(slots, local.dimension, device=device)

    def take_in(self, first: int, jobs: Mapping[int, Job], logits: torch.Tensor) -> None:
        """Put the rows of jobs, by place, at `first` and behind it, with the logits of their first tokens.

        A row is owned by a job's place and the order of its index there.
        """
        settings = self.settings
        new = [
            (
                place,
                order,
                stream_key(settings.seed, job.prompt, index),
                min(job.room, settings.max_new_tokens),
                len(job.prompt),
            )
            for place, job in jobs.items()
            for order, index in enumerate(job.indices)
        ]
        numbers = torch.tensor(new, dtype=torch.long, device=self.owner.device)
        at = slice(first, first + len(new))
        self.owner[at], self.key[at] = numbers[:, :2], numbers[:, 2]
        self.room[at], self.position[at] = numbers[:, 3], numbers[:, 4]
        if settings.budget_ms is not None:
            self.deadline[at] = time.perf_counter() + settings.budget_ms / 1000
        for tensor in (self.stage, self.finish, self.length):
            tensor[at] = 0
        self.logits[at] = logits

    def next_tokens(self, live: int, now: float) -> torch.Tensor:
        """What the first `live` rows are fed in this step (live,): sampled tokens, or eos and `<emb>`."""
        stage, length = self.stage[:live], self.length[:live]
        sampled = self._sample(live)
        thinking = stage == _TOKEN
        stops = thinking & torch.isin(sampled, self.stops)
        # A thought has at least one token: an empty one would be the fast path under another name.
        late = thinking & ~stops & (length > 0) & (self.deadline[:live] < now) if self.timed else None
        writes = thinking & ~stops if late is None else thinking & ~stops & ~late
        place = length.clamp(max=self.tokens.shape[1] - 1)[:, None]
        written = self.tokens[:live].gather(1, place)
        self.tokens[:live].scatter_(1, place, torch.where(writes[:, None], sampled[:, None], written))
        length += writes
        full = writes & (length >= self.room[:live])

        ends = stops if late is None else stops | late
        fed = sampled.masked_fill(ends | (stage == _EOS), self.local.template.eos)
        if self.local.template.emb is None:  # nothing is embedded: a row is done where its thought ends
            moved = torch.where(thinking, (ends | full) * _READY, _TAKEN)
        else:
            fed = fed.masked_fill(stage >= _EMB, self.local.template.emb)
            moved = torch.where(thinking, ends * _EMB + full * _EOS, (stage + 1).clamp(max=_TAKEN))
        finish = full * _BY_LENGTH
        # A row ends once; until then its finish is 0, the model's own end.
        self.finish[:live] += finish if late is None else finish + late * _BY_BUDGET
        stage.copy_(moved)
        return fed

    def after_step(self, live: int, logits: torch.Tensor, hidden: torch.Tensor) -> None:
        """Keep what the pass gave: the next logits, and the states of rows that were fed `<emb>`."""
        stage = self.stage[:live]
        self.logits[:live] = logits
        # A row that is done stays at its last position: it must not run past the model's positions.
        self.position[:live] += stage < _READY
        ready = (stage == _READY)[:, None]
        self.states[:live] = torch.where(ready, hidden.float(), self.states[:live])

    def done(self, live: int) -> torch.Tensor:
        """Places of the rows whose state has been kept."""
        done: torch.Tensor = self.stage[:live] >= _READY
        return done.nonzero()[:, 0]

    def drafts(self, rows: Sequence[int]) -> list[tuple[tuple[int, int], Draft]]:
        """Owner and draft of finished rows."""
        if not rows:
            return []
        places = torch.tensor(rows, device=self.owner.device)
        owners, lengths = self.owner[places].tolist(), self.length[places].tolist()
        finishes, states = self.finish[places].tolist(), self.states[places].cpu().numpy()
        tokens = self.tokens[places, : max(lengths, default=0)].tolist()
        return [
            (
                (owners[i][0], owners[i][1]),
                Draft(token_ids=tuple(tokens[i][:length]), finish=_FINISHES[finishes[i]], state=states[i]),
            )
            for i, length in enumerate(lengths)
        ]

    def move(self, holes: torch.Tensor, movers: torch.Tensor) -> None:
        """Let the rows `movers` take the places `holes`."""
        for name in ("owner", "key", "room", "position", "deadline", "stage", "finish", "length", "tokens"):
            tensor: torch.Tensor = getattr(self, name)
            tensor[holes] = tensor[movers]
        self.logits[holes] = self.logits[movers]
        self.states[holes] = self.states[movers]

    def _sample(self, live: int) -> torch.Tensor:
        logits, length = self.logits[:live], self.length[:live]
        logits.index_fill_(1, self.forbidden, -math.inf)
        if self.settings.repetition_penalty != 1:
            penalise(logits, self.tokens[:live], length, self.settings.repetition_penalty)
        if len(self.stops):
            first = (length == 0)[:, None]
            stops = logits.index_select(1, self.stops).masked_fill(first, -math.inf)
            logits.index_copy_(1, self.stops, stops)
        return self.sampler.draw(logits, self.key[:live], length)
