"""Attention on a processor: over keys and values that all rows share, and over each row's own.

torch's attention kernel is made for many queries at once, and so it gets them: in a step, the heads that
share keys are queries of one product, and what all prompts begin with is one product for all rows. Each part
comes with the logarithm of its sum of weights, by which the two are joined exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from o1_retriever.errors import CheckpointError

_NAME = "o1_retriever"
Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]
_shared: ContextVar[Layers] = ContextVar("shared", default=())
# What a model may pass along that changes nothing here: a window is part of the mask already.
_HARMLESS = frozenset(
    ("dropout", "is_causal", "sliding_window", "position_ids", "use_cache", "cache_position")
)


def takes_our_attention(model: Any) -> bool:
    """Whether a model can go through this attention: on a CPU, where it would take torch's own."""
    config = model.config.get_text_config(decoder=True)
    return bool(model.device.type == "cpu" and config._attn_implementation in ("sdpa", _NAME))


@contextmanager
def sharing(model: Any, layers: Layers) -> Iterator[None]:
    """Within it, `model` takes this attention where it can.

    `layers` are keys and values, (heads, tokens, head dimension), that stand before those of every row; no
    other attention knows of them.
    """
    if not takes_our_attention(model):
        yield
        return
    config = model.config.get_text_config(decoder=True)
    usual, before = config._attn_implementation, _shared.set(layers)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
        _shared.reset(before)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    layer: int,
) -> torch.Tensor:
    """Attention of queries (rows, tokens, group, kv heads, d) over keys (rows, kv heads, columns, d).

    The `group` query heads of a kv head share its keys. The mask is added to the scores, (rows, 1, tokens,
    columns); None: each token sees those before it. Gives what the queries' shape is.
    """
    shared = _shared.get()
    states, sums = _over_own(query, keys, values, mask, scaling)
    if not shared:
        return states
    first, first_sums = _over_shared(query, *shared[layer], scaling)
    share = torch.sigmoid(sums - first_sums).unsqueeze(-1).to(states.dtype)
    return torch.lerp(first, states, share)


def _over_own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over each row's own tokens, and the logarithms of the sums of its weights."""
    rows, tokens, group, kv, _ = query.shape
    if tokens == 1:
        states, sums = _kernel(query[:, 0].transpose(1, 2), keys, values, mask, scaling)
        return states.transpose(1, 2).unsqueeze(1), sums.transpose(1, 2).unsqueeze(1)
    if group > 1:
        keys, values = keys.repeat(1, group, 1, 1), values.repeat(1, group, 1, 1)
    states, sums = _kernel(query.flatten(2, 3).transpose(1, 2), keys, values, mask, scaling, mask is None)
    shape = (rows, tokens, group, kv)
    return states.transpose(1, 2).view(*shape, -1), sums.transpose(1, 2).view(shape)


def _over_shared(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same over what all rows share, (kv heads, tokens, d), as if they were queries of one row."""
    rows, tokens, group, kv, size = query.shape
    together = query.permute(3, 0, 1, 2, 4).reshape(1, kv, rows * tokens * group, size)
    states, sums = _kernel(together, keys[None], values[None], None, scaling)
    shape = (kv, rows, tokens, group)
    return states[0].view(*shape, -1).permute(1, 2, 3, 0, 4), sums[0].view(shape).permute(1, 2, 3, 0)


def _kernel(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    states, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, is_causal=causal, attn_mask=mask, scale=scaling
    )
    return states, sums


def _as_called(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As transformers calls an attention: query (rows, heads, tokens, d), keys (rows, kv heads, columns, d).

    Gives (rows, tokens, heads, d). What is not for us goes to transformers' own function.
    """
    shared = bool(_shared.get())
    unusual = any(value is not None for name, value in options.items() if name not in _HARMLESS)
    if shared and unusual:
        raise CheckpointError(
            f"A {type(module).__name__} asks for an attention that cannot share a prompt's beginning.",
            hint="Load the model with attn_implementation='eager'.",
        )
    if not shared and (unusual or query.shape[2] != 1 or attention_mask is None):
        given: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return given  # type: ignore[no-any-return]
    rows, _, tokens, size = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, tokens, size).permute(0, 3, 2, 1, 4)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = added(attention_mask, query.dtype)
    states = attend(grouped, key, value, mask, scaling=scaling, layer=module.layer_idx)
    return states.transpose(2, 3).flatten(2, 3), None


def added(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask that is added to scores, of one that says what is seen."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


AttentionInterface.register(_NAME, _as_called)
AttentionMaskInterface.register(_NAME, sdpa_mask)
