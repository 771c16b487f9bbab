"""Draw the next token of many rows, each from its own reproducible stream of random numbers.

A row's draw depends on the seed, its prompt, the thought's index and the step, and on nothing else: neither
on the other rows of the batch nor on their order. The uniform number is computed from that counter (the
SplitMix64 finaliser, Steele et al. 2014) and the row's distribution is inverted at it.

Nothing is sorted as a rule: sorting the vocabulary would cost more than the model's step. A token is drawn
from the whole distribution, and taken if the tokens likelier than it hold less than `top_p`; else the
counter's next number is used. What is left is the nucleus, renormalised, exactly as by sorting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Below this the likeliest token is taken: no second one could have a probability.
_COLDEST = 1e-5
# Rows whose draws all fell outside the nucleus are sorted after so many: few, unless `top_p` is small.
_ATTEMPTS = 6
_BLOCK = 128
# Apple's GPUs: what needs it is drawn on the processor, with the same numbers.
_WITHOUT_FLOAT64 = ("mps",)


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
        import torch
        from torch.nn.functional import threshold

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
    import torch

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
    import torch
    from torch.nn.functional import pad

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
    import torch

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
