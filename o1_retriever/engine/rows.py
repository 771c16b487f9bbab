"""What rows have written, as tensors with one entry a row: what each is fed next, and when it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from o1_retriever.engine.load import LocalModel
from o1_retriever.engine.sampling import Sampler, penalise, stream_key
from o1_retriever.thought import Finish, ThoughtSettings, Vector

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
        # Seconds of `time.perf_counter` from here on: float32 holds them, and Apple's GPUs have no float64.
        self.began = time.perf_counter()
        self.deadline = torch.zeros(slots, device=device)
        self.owner = torch.zeros(slots, 2, **number)
        self.key = torch.zeros(slots, **number)
        self.room = torch.zeros(slots, **number)
        self.position = torch.zeros(slots, **number)
        self.stage = torch.zeros(slots, **number)
        self.finish = torch.zeros(slots, **number)
        self.length = torch.zeros(slots, **number)
        self.fed = torch.zeros(slots, **number)
        self.tokens = torch.zeros(slots, longest, **number)
        # Of the living rows alone, and whatever a step gave: copied for new rows and for nothing else.
        self.logits = torch.zeros(0, vocabulary, dtype=local.model.dtype, device=device)
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
            self.deadline[at] = time.perf_counter() - self.began + settings.budget_ms / 1000
        for tensor in (self.stage, self.finish, self.length):
            tensor[at] = 0
        self.logits = torch.cat([self.logits[:first], logits.to(self.logits.dtype)])

    def next_tokens(self, live: int, now: float) -> torch.Tensor:
        """What the first `live` rows are fed in this step (live,): sampled tokens, or eos and `<emb>`."""
        stage, length = self.stage[:live], self.length[:live]
        sampled = self._sample(live)
        thinking = stage == _TOKEN
        stops = thinking & torch.isin(sampled, self.stops)
        # A thought has at least one token: an empty one would be the fast path under another name.
        over = self.deadline[:live] < now - self.began if self.timed else None
        late = None if over is None else thinking & ~stops & (length > 0) & over
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
        self.logits = logits
        # A row that is done stays at its last position: it must not run past the model's positions.
        self.position[:live] += stage < _READY
        ready = (stage == _READY)[:, None]
        self.states[:live] = torch.where(ready, hidden.float(), self.states[:live])

    def done(self, live: int) -> torch.Tensor:
        """Places of the rows whose state has been kept."""
        done: torch.Tensor = self.stage[:live] >= _READY
        return done.nonzero()[:, 0]

    def written(self, row: int) -> list[int]:
        """The tokens that a row holds."""
        tokens: list[int] = self.tokens[row, : int(self.length[row])].tolist()
        return tokens

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
        for name in (
            "owner",
            "key",
            "room",
            "position",
            "deadline",
            "stage",
            "finish",
            "length",
            "fed",
            "tokens",
        ):
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
