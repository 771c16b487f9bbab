"""Draw the next token of many rows, each from its own reproducible stream of random numbers.

A row's draw depends on the seed, its prompt, the thought's index and the step, and on nothing else: neither
on the other rows of the batch nor on their order. The uniform number is computed from that counter (the
SplitMix64 finaliser, Steele et al. 2014) and the row's distribution is inverted at it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def stream_key(seed: int, prompt: Sequence[int], index: int) -> int:
    """The 64-bit name of the stream of thought `index` about a prompt (token ids)."""
    digest = hashlib.blake2b(np.asarray(prompt, dtype="<i8").tobytes(), digest_size=8)
    digest.update(np.asarray([seed, index], dtype="<i8").tobytes())
    return int.from_bytes(digest.digest(), "little")


def uniforms(keys: NDArray[np.uint64], step: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each stream at one step; 53 random bits each."""
    with np.errstate(over="ignore"):
        x = keys + np.uint64(step + 1) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX1
        x = (x ^ (x >> np.uint64(27))) * _MIX2
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(
    logits: torch.Tensor, uniform: NDArray[np.float64], *, temperature: float, top_p: float
) -> torch.Tensor:
    """Token ids (rows,) drawn from logits (rows, vocabulary) by inverting each row's distribution.

    `top_p` keeps the smallest set of likeliest tokens whose probabilities reach it; temperature 0 takes the
    likeliest token.
    """
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    # The division must not overflow to two infinities, whose difference would be NaN: shift first.
    shifted = logits.float() - logits.float().amax(-1, keepdim=True)
    probabilities = torch.softmax(shifted / temperature, -1)
    if top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        before = ranked.cumsum(-1) - ranked
        ranked = ranked.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ranked)
    # Inverted in the order of the vocabulary: rounding can then not swap two nearly equal tokens.
    cumulated = probabilities.double().cumsum(-1)
    target = torch.from_numpy(uniform).to(cumulated.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
