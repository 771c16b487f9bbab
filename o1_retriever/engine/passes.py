"""Passes of the model, and the batches they go in: rows of token ids, sized by their tokens.

A pass over prompts that go on as thoughts keeps their keys and values, the first logits and the fast vectors.
A pass over documents, fast queries and thoughts that were written before gives the state of the last token.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import inspect
import logging
import math
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from o1_retriever.engine.layers import layer_windows, sharing, takes_our_attention
from o1_retriever.engine.load import LocalModel, positions_of
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.reporting import counted
from o1_retriever.thought import Vector

logger = logging.getLogger(__name__)

_C_LIBRARY: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

# Tokens of one forward pass, padding included, and tokens whose keys and values are held while thinking.
# A processor's matrix products are at full speed from some hundred tokens on: 4096 at once take 200 MB more
# than 1024 and are no faster. A GPU wants more at once.
_FORWARD_TOKENS = {"cpu": 1024}
_HELD_TOKENS = {"cpu": 1 << 15}
# On a CPU, batches are padded to a multiple of so many tokens: 64 products of rows and width instead of 1024.
WIDTHS = 16
# After so many batches on a CPU, what they held is given back, which takes 20 ms.
_MANY = 16
_done = 0  # since then


def forward_tokens(device: Any) -> int:
    """How many tokens, padding included, to run through the model at once."""
    return _FORWARD_TOKENS.get(device.type, 1 << 15)


def held_tokens(device: Any) -> int:
    """How many tokens' keys and values to hold while thinking."""
    return _HELD_TOKENS.get(device.type, 1 << 17)


def by_tokens(lengths: Sequence[int], tokens: int, most: int | None = None) -> Iterator[list[int]]:
    """Places of the rows in batches, longest rows first, so that each batch holds rows of similar length.

    A batch has at most `tokens` tokens when padded, and at most `most` rows (None: any number); a single row
    may be longer.
    """
    order = sorted(range(len(lengths)), key=lambda place: lengths[place], reverse=True)
    start = 0
    while start < len(order):
        count = min(max(1, tokens // max(1, lengths[order[start]])), most or len(order))
        yield order[start : start + count]
        start += count


def padded(
    rows: Sequence[Sequence[int]], device: Any, *, side: Literal["left", "right"], multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask (rows, width), a multiple. Padded on the left, all rows end together."""
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[place, span] = torch.tensor(row)
        mask[place, span] = 1
    return ids.to(device), mask.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a batch was too large for the device's memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory(device: Any) -> None:
    """Give back what batches held."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu" and hasattr(_C_LIBRARY, "malloc_trim"):
        # glibc keeps what lies between blocks in use: batches of ever new shapes leave ever more of it.
        _C_LIBRARY.malloc_trim(0)


def batch_done(device: Any) -> None:
    """Count a batch, of whatever call; what many have held is given back."""
    global _done
    _done += 1
    if _done >= _MANY and device.type == "cpu":
        _done = 0
        free_memory(device)


# A shorter common beginning is not worth a pass of its own.
_SHORTEST_PREFIX = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefilled:
    """Prompts after their pass, one row each, padded on the left.

    `layers` has the keys and values of each layer, (prompts, heads, width, head dimension); `real` (prompts,
    width) is 1 where a prompt has a token; `logits` (prompts, vocabulary) are those of the next token; `fast`
    (prompts, dimension) the states of the fast path's `<emb>`, None where the layout's prompt has none.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    real: torch.Tensor
    logits: torch.Tensor
    fast: torch.Tensor | None


def prefill(local: LocalModel, prompts: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Prefilled:
    """One pass over prompts (token ids), which all begin with `prefix`: that is not computed again.

    A shared prefix is left out of the result, as passes and steps read its one copy.
    """
    prefix = prefix or Prefix()
    before = len(prefix.ids)
    ids, mask = padded([prompt[before:] for prompt in prompts], local.device, side="left")
    positions = (mask.cumsum(1) - 1).clamp(min=0) + before
    cache: Any = DynamicCache(config=local.model.config)
    attention = sharing(local.model, prefix.for_rows())
    if not prefix.shared:
        shape = (len(prompts), -1, -1, -1)
        for layer, (keys, values) in enumerate(prefix.layers):
            cache.update(keys.expand(shape), values.expand(shape), layer)
        mask = torch.cat([mask.new_ones(len(prompts), before), mask], 1)
    logits, hidden = forward(local, ids, mask, positions, cache, attention=attention)
    offset = local.template.fast_offset
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    if not prefix.shared and before and len({len(prompt) for prompt in prompts}) > 1:
        mask, layers = _behind_padding(mask, layers)
    return Prefilled(
        layers=layers, real=mask, logits=logits, fast=None if offset is None else hidden[:, offset].float()
    )


def _behind_padding(
    real: torch.Tensor, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Bring each row's tokens together: the shared beginning stands before the padding of the rest.

    A gap would make a row longer than its tokens, and its first column wrong.
    """
    order = real.argsort(dim=1, stable=True)

    def moved(states: torch.Tensor) -> torch.Tensor:
        return states.gather(2, order[:, None, :, None].expand_as(states))

    return real.gather(1, order), [(moved(keys), moved(values)) for keys, values in layers]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """What prompts of a model begin with: its ids, and each layer's keys and values for one row.

    `shared` says that all rows read this one copy; otherwise each row gets its own.
    """

    ids: tuple[int, ...] = ()
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    shared: bool = False

    def for_rows(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What all rows read of it, (heads, tokens, head dimension) a layer; nothing where each has one."""
        return [(keys[0], values[0]) for keys, values in self.layers] if self.shared else []

    def opens(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt begins with it and goes on."""
        return len(prompt) > len(self.ids) and tuple(prompt[: len(self.ids)]) == self.ids


def common_prefix(local: LocalModel) -> Prefix:
    """An instruction with its opening marker, or a chat's system message and examples, where it is worth it.

    Not for layers with a sliding window: between prefix and prompt lies padding, which would count there.
    """
    ids = tuple(local.template.opening)
    if len(ids) < _SHORTEST_PREFIX or any(layer_windows(local.model.config)):
        return Prefix()
    cache: Any = DynamicCache(config=local.model.config)
    rows, mask = padded([ids], local.device, side="left")
    forward(local, rows, mask, mask.cumsum(1) - 1, cache)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return Prefix(ids=ids, layers=layers, shared=takes_our_attention(local.model))


def forward(
    local: LocalModel,
    ids: torch.Tensor,
    mask: Any,
    positions: torch.Tensor,
    cache: Any,
    *,
    attention: AbstractContextManager[None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the last token (rows, vocabulary) and last hidden states (rows, width, dimension).

    Threads take turns here, one pass at a time. `attention` is entered for the pass.
    """
    passing = attention or nullcontext()
    with local.lock, passing, torch.inference_mode(), _hidden_states(local.model) as seen:
        output = local.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{_cache_name(local.model): cache},
        )
        return output.logits[:, -1], seen["last"]


def _cache_name(model: Any) -> str:
    """What the model calls its cache: newer versions of transformers have a new name and warn of the old."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward: Any = type(inner).forward
    return "cache" if "cache" in _parameters(forward) else "past_key_values"


@functools.cache
def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@contextmanager
def _hidden_states(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the base model's last hidden state while the whole model gives the logits.

    Through the whole model, whatever an architecture does to its logits (scaling, soft caps) is kept.
    """
    seen: dict[str, torch.Tensor] = {}

    def keep(_module: Any, _arguments: Any, output: Any) -> None:
        seen["last"] = output.last_hidden_state

    handle = model.base_model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def embed_sequences(
    local: LocalModel, sequences: Sequence[Sequence[int]], *, most: int | None = None
) -> Iterator[tuple[int, Vector]]:
    """Yield (place, state) of the last token of each sequence, longest first; a state is (dimension,).

    Only the base model runs: no language-model head. Batches hold rows of similar length, at most `most`
    (None: as many as make a full pass). When memory runs out all the same, batches are halved from there on.
    """
    local.check_process()
    tokens = forward_tokens(local.device)
    multiple = _multiple(local)
    widths = [-(-len(row) // multiple) * multiple for row in sequences]
    waiting = deque(by_tokens(widths, tokens, most))
    many = len(waiting) > 1  # those of a query are one
    with SparingThreads(local.device) as threads:
        while waiting:
            threads.look()
            places = waiting.popleft()
            try:
                states = last_states(local, [sequences[place] for place in places])
            except Exception as error:
                if not is_out_of_memory(error) or len(places) == 1:
                    raise
                waiting = _halved([places, *waiting], error)
                free_memory(local.device)
            else:
                if many:
                    batch_done(local.device)
                yield from zip(places, states, strict=True)


def _halved(batches: Sequence[Sequence[int]], error: Exception) -> deque[list[int]]:
    """All batches cut to half the rows of the first, which was too large."""
    most = -(-len(batches[0]) // 2)
    fewer = counted(most, "text")
    logger.warning("Out of memory: going on with batches of at most %s (%s)", fewer, str(error))
    return deque(
        list(batch[start : start + most]) for batch in batches for start in range(0, len(batch), most)
    )


def _multiple(local: LocalModel) -> int:
    """What widths of several rows are multiples of, none wider than the model reads: few, on a processor."""
    return math.gcd(positions_of(local.model) or WIDTHS, WIDTHS) if local.device.type == "cpu" else 1


def last_states(local: LocalModel, rows: Sequence[Sequence[int]]) -> Vector:
    """Hidden states of the last tokens of one batch, float32 (rows, dimension).

    Padded on the right, where a causal model cannot see the padding: no mask is needed, and attention takes
    its fastest way.
    """
    multiple = _multiple(local) if len(rows) > 1 else 1
    ids, _ = padded(rows, local.device, side="right", multiple=multiple)
    positions = torch.arange(ids.shape[1], device=local.device)[None]
    last = torch.tensor([len(row) - 1 for row in rows], device=local.device)
    with local.lock, torch.inference_mode():
        hidden = local.model.base_model(
            input_ids=ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        states = hidden[torch.arange(len(rows), device=local.device), last]
        return np.asarray(states.float().cpu().numpy(), dtype=np.float32)
