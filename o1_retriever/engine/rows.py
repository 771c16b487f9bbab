"""What rows have written, as tensors with one entry a row: what each is fed next, and when it ends.

The next token of a row is drawn from a reproducible stream of random numbers of its own.

A row's draw depends on the seed, its prompt, the thought's index and the step, and on nothing else: neither
on the other rows of the batch nor on their order. The uniform number is computed from that counter (the
SplitMix64 finaliser, Steele et al. 2014) and the row's distribution is inverted at it.

Nothing is sorted as a rule: sorting the vocabulary would cost more than the model's step. A token is drawn
from the whole distribution, and taken if the tokens likelier than it hold less than `top_p`; else the
counter's next number is used. What is left is the nucleus, renormalised, exactly as by sorting.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad, threshold

from o1_retriever.engine.load import LocalModel
from o1_retriever.thought import Finish, ThoughtSettings, Vector

# Stages of a row, by what it is fed next.
_TOKEN, _EOS, _EMB, _READY, _TAKEN = range(5)
_FINISHES: tuple[Finish, ...] = ("eos", "length", "budget")
_BY_LENGTH, _BY_BUDGET = 1, 2
# Below this the likeliest token is taken: no second one could have a probability.
_COLDEST = 1e-5
# Rows whose draws all fell outside the nucleus are sorted after so many: few, unless `top_p` is small.
_ATTEMPTS = 6
_BLOCK = 128
# Apple's GPUs: what needs it is drawn on the processor, with the same numbers.
_WITHOUT_FLOAT64 = ("mps",)


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


def stream_key(seed: int, prompt: Sequence[int], index: int) -> int:
    """The 64-bit name (signed) of the stream of thought `index` about a prompt (token ids)."""
    digest = hashlib.blake2b(np.asarray(prompt, dtype="<i8").tobytes(), digest_size=8)
    digest.update(np.asarray([seed, index], dtype="<i8").tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def uniforms(keys: torch.Tensor, steps: torch.Tensor, attempt: int = 0) -> torch.Tensor:
    """One float64 in [0, 1) for each stream (int64) at its own step; 53 random bits each."""
    x = keys + (steps + 1) * _signed(0x9E3779B97F4A7C15) + _signed(attempt * 0xD1B54A32D192ED03)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(x ^ _shifted(x, 31), 11).double() * 2.0**-53


class Sampler:
    """Draws tokens at one temperature and `top_p`.

    `top_p` keeps the smallest set of likeliest tokens whose probabilities reach it, with all that are as
    likely as its last; temperature 0 takes the likeliest token.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature = temperature
        self.top_p = top_p
        # Fresh memory for a large batch costs more than the arithmetic on it.
        self._spare: torch.Tensor | None = None

    def draw(self, logits: torch.Tensor, keys: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Token ids (rows,) from logits (rows, vocabulary), which are overwritten.

        Each row draws from its stream `keys` (rows,) at its step `steps` (rows,).
        """
        if self.temperature < _COLDEST:
            return logits.argmax(-1)
        if logits.device.type in _WITHOUT_FLOAT64:
            return self.draw(logits.cpu(), keys.cpu(), steps.cpu()).to(logits.device)
        weights = logits.float().div_(self.temperature)
        weights = weights.sub_(weights.amax(-1, keepdim=True)).exp_()
        tokens = _invert(weights, uniforms(keys, steps))
        if self.top_p >= 1:
            return tokens
        left = self._outside(weights, tokens)
        for attempt in range(1, _ATTEMPTS):
            if not len(left):
                return tokens
            some = weights[left]
            tokens[left] = _invert(some, uniforms(keys[left], steps[left], attempt))
            left = left[self._outside(some, tokens[left])]
        if len(left):
            nucleus = _nucleus(weights[left], self.top_p)
            tokens[left] = _invert(nucleus, uniforms(keys[left], steps[left], _ATTEMPTS))
        return tokens

    def _outside(self, weights: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Places of the rows whose token is not in the nucleus."""
        if (
            self._spare is None
            or self._spare.shape[1:] != weights.shape[1:]
            or len(self._spare) < len(weights)
        ):
            self._spare = torch.empty_like(weights)
        own = weights.gather(-1, tokens[:, None])
        relative = torch.div(weights, own, out=self._spare[: len(weights)])
        likelier: torch.Tensor = threshold(relative, 1.0, 0.0, inplace=True).sum(-1) * own[:, 0]
        return (likelier >= self.top_p * weights.sum(-1)).nonzero()[:, 0]


def penalise(logits: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor, penalty: float) -> None:
    """Make what a row has written less likely: its logits (rows, vocabulary) are changed in place.

    Of `tokens` (rows, longest) the first `lengths` (rows,) are written. A token is penalised once, however
    often it stands there.
    """
    within = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    # Places behind the end repeat the first token, so that every write to one token is the same.
    places = torch.where(within, tokens, tokens[:, :1])
    usual = logits.gather(1, places)
    less = torch.where(usual > 0, usual / penalty, usual * penalty)
    logits.scatter_(1, places, torch.where((lengths > 0)[:, None], less, usual))


def _nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    ranked = weights.sort(-1, descending=True).values
    inside = ranked.cumsum(-1) - ranked < top_p * weights.sum(-1, keepdim=True)
    least = ranked.gather(-1, inside.sum(-1, keepdim=True) - 1)
    return weights * (weights >= least)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulated weights pass the share `uniform`: its block, then its place there.

    Inverted in the order of the vocabulary: rounding can then not swap two nearly equal tokens.
    """
    size = _block_size(weights.shape[-1])
    rest = -weights.shape[-1] % size
    cut = (pad(weights, (0, rest)) if rest else weights).view(len(weights), -1, size)
    block, within = _passed(cut.sum(-1), uniform)
    inside = cut[torch.arange(len(cut), device=cut.device), block]
    place, _ = _passed(inside, within)
    return block * size + place


@cache
def _block_size(vocabulary: int) -> int:
    """A block that cuts the vocabulary evenly, where there is one: padding would copy all weights."""
    return next((size for size in range(_BLOCK, _BLOCK // 2, -1) if vocabulary % size == 0), _BLOCK)


def _passed(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the cumulated weights pass that share of their sum, and how far into that weight, in [0, 1)."""
    cumulated = weights.double().cumsum(-1)
    total = cumulated[:, -1:]
    # Rounding must not reach the sum itself, behind which there may be only tokens of no probability.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    place = torch.searchsorted(cumulated, target, right=True)
    weight = weights.double().gather(-1, place)
    into = (target - cumulated.gather(-1, place) + weight) / weight
    return place[:, 0], into[:, 0].clamp(0.0, 1.0)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right, which torch has for signed numbers only with the sign filled in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The 64-bit number with these low bits: torch multiplies signed numbers, and wraps."""
    low = value & ((1 << 64) - 1)
    return low - (1 << 64) if low >> 63 else low
